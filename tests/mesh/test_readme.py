"""The Markdown pages: their examples run as written, and their links resolve."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eventually import PATIENCE_SECONDS
from tests.mesh.people import ApiError
from tests.pictures import photo

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Returns every page: README.md, then the others by path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert README in found
    return [README, *sorted(found - {README})]


def blocks(page: Path, language: str) -> str:
    """Returns a page's code blocks in one language, joined in order."""
    return "\n".join(code for found, code in _FENCED.findall(page.read_text()) if found == language)


def prose(page: Path) -> str:
    """Returns a page's text without its examples."""
    return _FENCED.sub("", page.read_text())


@pytest.fixture
def variables(mesh, tmp_path) -> dict[str, str]:
    (tmp_path / "photo.jpg").write_bytes(photo(1200, 800, orientation=6))
    return {
        **os.environ,
        **mesh.shell_environment(),
        "PHOTO": str(tmp_path / "photo.jpg"),
        # services/media/README.md uses these.
        "PHOTOMESH_DATABASE_URL": mesh.database_url("media"),
        "BUF_CACHE_DIR": str(tmp_path),
    }


def run(command: list[str], **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shell_examples(variables, tmp_path):
    # The other pages use variables that README.md sets, and do not depend on each other.
    script = blocks(README, "sh") + "".join(
        f"\necho '# {page.relative_to(ROOT)}' | tee /dev/stderr\n(\n{code})\n"
        for page in pages()[1:]
        if (code := blocks(page, "sh"))
    )
    for shown, here in (
        # This line would read the addresses of the stack of `make up`, not the test's.
        ('eval "$(make -s env)"', ":"),
        (".venv/bin/", f"{ROOT}/.venv/bin/"),
        ("PYTHONPATH=.:gen ", f"PYTHONPATH={ROOT}:{ROOT}/gen "),
    ):
        assert shown in script
        script = script.replace(shown, here)

    output = run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=variables)

    assert (tmp_path / "picture.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    assert "photomesh.feed.v1.FeedService/GetFeed" in output
    assert "SERVING" in output


def test_the_python_examples(variables):
    environment = {**variables, "PYTHONPATH": str(ROOT / "gen")}
    outputs = [
        run([sys.executable, "-c", code], env=environment)
        for page in pages()
        if (code := blocks(page, "python"))
    ]

    [gateway] = outputs
    assert re.fullmatch(r"carol\.\w+ 0 FEED_STATE_\w+\n", gateway)


async def test_the_error_in_the_example_is_the_actual_error(person):
    [shown] = [json.loads(code) for page in pages() if (code := blocks(page, "json"))]
    author = await person().sign_up()

    with pytest.raises(ApiError) as refused:
        await author.post("1", caption="x" * 2201)

    assert refused.value.status == 400
    trace = refused.value.body["details"][0]["metadata"]
    assert trace.keys() == {"traceId"}
    trace["traceId"] = shown["details"][0]["metadata"]["traceId"]
    assert refused.value.body == shown


def test_every_example_is_in_a_language_that_these_tests_run():
    languages = {
        (str(page.relative_to(ROOT)), language)
        for page in pages()
        for language, _ in _FENCED.findall(page.read_text())
        if language not in ("sh", "python", "json")
    }

    # The first two commands, and the diagram.
    assert languages == {("README.md", "")}


def test_the_make_targets_in_the_pages_exist():
    verbs = {
        verb
        for page in pages()
        for verb in re.findall(r"(?:`|^|=\w+ )make ([a-z]+)", page.read_text(), re.MULTILINE)
    }
    makefile = (ROOT / "Makefile").read_text()

    assert verbs
    for verb in verbs:
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb


def links(page: Path) -> list[tuple[Path, str]]:
    """Returns the file and the anchor of each of a page's relative links."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    parts = [link.partition("#") for link in found if not re.match(r"[a-z]+:", link)]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_resolves():
    for page in pages():
        for target, anchor in links(page):
            link = f"{page.relative_to(ROOT)}: {target}#{anchor}"
            assert target.exists(), link
            assert target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme():
    reached: set[Path] = set()
    found = {README}
    while found:
        reached |= found
        found = {target for page in found for target, _ in links(page) if target.suffix == ".md"}
        found -= reached

    assert set(pages()) == reached


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) < 150
