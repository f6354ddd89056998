"""`make demo`: signs people up, makes them follow, upload, and post, and shows one feed."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.demo import graph, photos
from deploy.demo.api import Phone, RequestFailed
from deploy.demo.photos import Photo
from deploy.demo.sheet import contact_sheet
from deploy.local.process import ROOT
from deploy.local.state import read_ports

# Enough to keep the mesh busy: more requests would only queue for password hashing.
_CONCURRENCY = 8
_TIMEOUT_SECONDS = 120.0

Item = TypeVar("Item")


@dataclass(frozen=True)
class Posted:
    """A post, and when its creation was requested."""

    post_id: str
    author: str
    at: float


class Demo:
    """The steps of the demo."""

    def __init__(self, http: httpx.AsyncClient, console: Console) -> None:
        self._http = http
        self._console = console
        # Usernames must be new in each run, so they end with the run's suffix.
        self._run = secrets.token_hex(3)
        self._phones: dict[str, Phone] = {}

    async def run(self, follows: graph.FollowGraph, pictures: list[Photo]) -> str:
        """Runs all steps; returns the contact sheet.

        Raises:
            RequestFailed: the API, S3, or the CDN rejected a request.
            TimeoutError: a post did not appear in a feed.
        """
        await self._sign_up(follows.people)
        await self._follow(follows)
        authors = follows.most_followed()
        work = [(authors[n % len(authors)], picture) for n, picture in enumerate(pictures)]
        # The first read builds a feed; after that, new posts are pushed into it.
        watchers = sorted({f for author, _ in work for f in follows.followers_of(author)})
        await self._each("Opening feeds", watchers, lambda name: self._phones[name].feed(1))
        posted, seconds = await self._post_and_watch(follows, work)

        reader = max(
            watchers, key=lambda name: sum(follows.reaches(post.author, name) for post in posted)
        )
        feed = await self._phones[reader].feed()
        self._show(reader, feed, seconds[reader])
        await self._fetch_pictures(feed)
        made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
        note = f"{len(feed['posts'])} posts, {made}. The picture links expire after two hours."
        return contact_sheet(self._phones[reader].username, feed["posts"], seconds[reader], note)

    async def _sign_up(self, people: Iterable[str]) -> None:
        self._phones = {name: Phone(self._http, f"{name[:20]}.{self._run}") for name in people}
        password = secrets.token_urlsafe(16)
        await self._each(
            "Signing up", list(self._phones.values()), lambda phone: phone.sign_up(password)
        )

    async def _follow(self, follows: graph.FollowGraph) -> None:
        await self._each(
            "Following",
            follows.follows,
            lambda pair: self._phones[pair[0]].follow(self._phones[pair[1]]),
        )

    async def _post_and_watch(
        self, follows: graph.FollowGraph, work: list[tuple[str, Photo]]
    ) -> tuple[list[Posted], dict[str, dict[str, float]]]:
        """Uploads, posts, and waits until every follower's feed has every post.

        Returns the posts, and for each follower the seconds from each CreatePost request (with the
        photo uploaded but not yet processed) until the post appeared in the feed.
        """
        posted: list[Posted] = []

        async def share(item: tuple[str, Photo]) -> None:
            author, picture = item
            phone = self._phones[author]
            media_id = await phone.upload(picture)
            at = time.monotonic()
            posted.append(Posted(await phone.post(media_id, picture.name), author, at))

        await self._each("Uploading and posting", work, share)
        expected = {
            name: [post for post in posted if follows.reaches(post.author, name)]
            for name in {f for post in posted for f in follows.followers_of(post.author)}
        }
        seconds: dict[str, dict[str, float]] = {follower: {} for follower in expected}

        async def watch(follower: str) -> None:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                missing = {post.post_id: post for post in expected[follower]}
                while missing:
                    feed = await self._phones[follower].feed()
                    now = time.monotonic()
                    for post in feed["posts"]:
                        if arrived := missing.pop(post["postId"], None):
                            seconds[follower][arrived.post_id] = now - arrived.at
                    if missing:
                        await asyncio.sleep(0.05)

        await self._each("Waiting for the feeds", sorted(expected), watch)
        return posted, seconds

    def _show(self, reader: str, feed: Any, seconds: dict[str, float]) -> None:
        table = Table(
            title=f"\n{self._phones[reader].username}'s feed", title_justify="left", expand=False
        )
        table.add_column("author", style="bold")
        table.add_column("caption")
        table.add_column("picture", justify="right")
        table.add_column("post to feed", justify="right")
        for post in feed["posts"]:
            media = post["media"][0]
            table.add_row(
                post["author"]["username"],
                post["caption"],
                f"{media['width']} x {media['height']}",
                f"{seconds[post['postId']]:.2f} s",
            )
        self._console.print(table)
        self._console.print(
            "[dim]From the CreatePost request, with the photo uploaded but not yet processed, "
            "until a reader who polls every 50 ms received the post.[/]"
        )

    async def _fetch_pictures(self, feed: Any) -> None:
        variants = [
            variant
            for post in feed["posts"]
            for media in post["media"]
            for variant in media["variants"]
        ]
        fetched = 0

        async def fetch(variant: Any) -> None:
            nonlocal fetched
            answer = await self._http.get(variant["url"])
            whole = len(answer.content) == int(variant["sizeBytes"])
            if answer.status_code != 200 or not whole:
                raise RequestFailed(f"the CDN returned {answer.status_code} for {variant['url']}")
            if b"Exif\0\0" in answer.content:
                raise RequestFailed(f"{variant['url']} still has EXIF data")
            fetched += len(answer.content)

        await self._each("Fetching pictures", variants, fetch)
        self._console.print(
            f"{len(variants)} pictures through the CDN edge, {fetched / 2**20:.1f} MiB, "
            "all of the expected size and without EXIF."
        )

    async def _each(
        self, title: str, items: Iterable[Item], do: Callable[[Item], Awaitable[Any]]
    ) -> None:
        """Processes the items, a few at a time, and shows the progress."""
        todo = list(items)
        slots = asyncio.Semaphore(_CONCURRENCY)
        began = time.monotonic()
        columns = (
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        shown = self._console.is_terminal
        with Progress(*columns, console=self._console, disable=not shown) as progress:
            bar = progress.add_task(title, total=len(todo))

            async def one(item: Item) -> None:
                async with slots:
                    await do(item)
                progress.advance(bar)

            async with asyncio.TaskGroup() as tasks:
                for item in todo:
                    tasks.create_task(one(item))
        if not shown:
            self._console.print(f"{title}: {len(todo)} in {time.monotonic() - began:.1f} s")


def _gateway() -> str:
    """Returns the API address of the stack that `make up` started."""
    ports = read_ports(ROOT / "var")
    if ports is None:
        raise click.ClickException("the mesh was never started here; run make up")
    return f"http://127.0.0.1:{ports.gateway_http}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--photos",
    "photo_folder",
    type=click.Path(path_type=Path),
    help="A folder with JPEG, PNG or WebP files. By default, photos are generated.",
)
@click.option(
    "--graph",
    "graph_file",
    type=click.Path(path_type=Path),
    help="An edge list: a line `a b` means that a follows b. By default, ten people are generated.",
)
@click.option(
    "--gateway",
    envvar="PHOTOMESH_GATEWAY",
    default=_gateway,
    show_default="the stack that `make up` started",
    help="The address of the API.",
)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    default=Path("var/demo/feed.html"),
    show_default=True,
    help="The file to write the contact sheet to.",
)
def main(photo_folder: Path | None, graph_file: Path | None, gateway: str, sheet: Path) -> None:
    """Demonstrates the main use case on real input.

    People sign up, follow each other, upload photos directly to S3, and post them. The demo then
    shows one feed, fetches its pictures through the CDN edge, and writes a contact sheet.
    """
    console = Console()
    try:
        follows = graph.from_file(graph_file) if graph_file else graph.generated()
        pictures = _pictures(photo_folder, console)
        page = asyncio.run(_run(follows, pictures, gateway, console))
    except (graph.BadEdgeList, photos.NoPhotos, RequestFailed, TimeoutError) as error:
        raise click.ClickException(
            str(error)
            or f"a post was not in a feed after {_TIMEOUT_SECONDS:.0f} s; see make status"
        ) from None
    except httpx.TransportError as error:
        text = f"the gateway at {gateway} does not respond ({error}); start the mesh with make up"
        raise click.ClickException(text) from None
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_text(page)
    console.print(f"\nContact sheet of this feed: [bold]{sheet.resolve().as_uri()}[/]")


def _pictures(folder: Path | None, console: Console) -> list[Photo]:
    if folder is None:
        return photos.generated()
    pictures, skipped = photos.from_folder(folder)
    for line in skipped:
        console.print(f"[yellow]skipped[/] {line}")
    return pictures


async def _run(
    follows: graph.FollowGraph, pictures: list[Photo], gateway: str, console: Console
) -> str:
    async with httpx.AsyncClient(base_url=gateway, timeout=60) as http:
        try:
            return await Demo(http, console).run(follows, pictures)
        except ExceptionGroup as group:
            # One error of several concurrent tasks is enough.
            error: Exception = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            raise error from None


if __name__ == "__main__":
    main()
