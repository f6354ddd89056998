"""What grants something in a test run, and whether any of it was written to disk.

`watch` notes what goes through HTTP and gRPC clients of this process: which fields are secrets is
read from the contracts, where they are marked `debug_redact`. It also notes the keys and passwords
of each stack that is made. `search` looks for all of it at once in all files below a folder.
"""

import base64
import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import grpc
import httpx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from deploy.local.stack import Stack
from services.chassis import contracts

_FEWEST_CHARACTERS = 12
_FEWEST_DIFFERENT = 6
"""Other texts, such as passwords that are refused for being short, occur by chance."""

_GRANTING = frozenset({"token", "policy", "signature", "x-amz-signature"})
"""The query parameters and form fields, of those that presigned requests have, that are secrets."""

_KEY_FOLDERS = frozenset({"pki", "etc"})
"""Where a stack keeps its keys, and the configurations that hold them, in files of its own."""

_SHAPES = (
    # A JWT with its signature, the query of a presigned URL, a private key, a URL with a password.
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    r"X-Amz-Signature=[0-9a-f]{16,}",
    r"PRIVATE KEY-----",
    r"://[^/ :@]+:[^/ @*]+@",
    # What is stored of a password.
    r"\$argon2id?\$",
    r"SCRAM-SHA-256\$",
)
"""What no log holds, also where it went through clients that are not ours, such as curl."""


@dataclass(frozen=True)
class Finding:
    """A secret in a file."""

    kind: str
    path: Path
    line: str
    """What stands around the first such, without the secret itself."""
    times: int = 1

    def __str__(self) -> str:
        return f"{self.kind} in {self.path}, {self.times} times: {self.line}"


@dataclass
class Secrets:
    """Secrets by what they are in a file, and of which kind they are."""

    kinds: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        """Notes a secret, as it is and as JSON, URLs and Python write it."""
        if len(text) < _FEWEST_CHARACTERS or len(set(text)) < _FEWEST_DIFFERENT:
            return
        raw = text.encode(errors="surrogateescape")
        for form in (
            raw,
            json.dumps(text)[1:-1].encode(),
            json.dumps(text, ensure_ascii=False)[1:-1].encode(errors="surrogateescape"),
            quote(raw, safe="").encode(),
            repr(text)[1:-1].encode(errors="surrogateescape"),
            repr(raw)[2:-1].encode(),
        ):
            # A line of what is searched is all that can be found.
            self.kinds.setdefault(max(form.split(b"\n"), key=len), kind)

    def add_url(self, kind: str, url: str) -> None:
        """Notes what of a URL is secret."""
        for name, value in parse_qsl(urlsplit(url).query):
            if name.lower() in _GRANTING:
                self.add(kind, value)

    def add_message(self, message: Message) -> None:
        """Notes the marked fields of a message."""
        if not _may_hold_secrets(message.DESCRIPTOR):
            return
        for known, value in message.ListFields():
            if known.GetOptions().debug_redact:
                self._add_field(known.name, value)
            elif known.message_type and not known.message_type.GetOptions().map_entry:
                for inner in value if known.is_repeated else [value]:
                    self.add_message(inner)

    def add_json(self, text: bytes) -> None:
        """Notes the marked fields of JSON."""
        for name, value in _secret_json().findall(text):
            self._add_field(name.decode(), json.loads(value))
        for name, value in _FORM_FIELDS.findall(text):
            self._add_field("form_fields", {name.decode(): json.loads(value)})

    def add_stack(self, stack: Stack) -> None:
        """Notes the keys and passwords of a stack."""
        credentials = stack.credentials
        self.add("database password", credentials.database_superuser)
        for password in credentials.database.values():
            self.add("database password", password)
        for pair in (
            credentials.s3_provision,
            credentials.s3_media,
            credentials.s3_broker,
            credentials.s3_edge,
        ):
            self.add("S3 secret key", pair.secret_key)
        for path in stack.layout.pki.rglob("*.key"):
            self.add(path.name, path.read_text())
            key = bytes.fromhex(path.read_text())
            self.add(path.name, base64.b64encode(key).decode())
            self.add(path.name, base64.urlsafe_b64encode(key).rstrip(b"=").decode())
        for path in stack.layout.pki.rglob("key.pem"):
            for line in path.read_text().splitlines()[1:-1]:
                self.add("private key", line)

    def search(self, folder: Path) -> list[Finding]:
        """Searches all files below a folder; of each kind and file returns what was found first.

        Files that hold keys are passed over if only their owner may read them.
        """
        shapes = dict.fromkeys((shape.encode() for shape in _SHAPES), "what looks like a secret")
        found: dict[tuple[str, Path], Finding] = {}
        for one in (
            *self._search(folder, ["-F"], self.kinds),
            *self._search(folder, ["-E", "--include=*.log", "--include=*.log.*"], shapes),
        ):
            first = found.setdefault((one.kind, one.path), one)
            found[one.kind, one.path] = replace(first, times=first.times + (first is not one))
        return list(found.values())

    def _search(
        self, folder: Path, options: Iterable[str], patterns: dict[bytes, str]
    ) -> Iterator[Finding]:
        if not patterns:
            return
        # From standard input: in a file, they would be found, and as arguments, be seen.
        grep = subprocess.run(
            ["grep", "-rabHoZ", *options, "-f", "-", "--", folder],
            input=b"\n".join(patterns) + b"\n",
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        # 2: some files could not be read, such as those that went meanwhile.
        if grep.returncode not in (0, 1) and not grep.stderr:
            raise RuntimeError(f"grep ended with code {grep.returncode}")
        for one in grep.stdout.splitlines():
            name, _, at = one.partition(b"\0")
            offset, _, secret = at.partition(b":")
            path = Path(name.decode())
            if not _holds_keys(path):
                kind = patterns.get(secret, "what looks like a secret")
                yield Finding(kind, path, self._around(path, int(offset), secret))

    def _around(self, path: Path, offset: int, secret: bytes) -> str:
        with path.open("rb") as file:
            file.seek(max(0, offset - 200))
            before = file.read(min(offset, 200))
            after = file.read(len(secret) + 100)[len(secret) :]
        masked = before.rpartition(b"\n")[2] + b"[...]" + after.partition(b"\n")[0]
        for other in self.kinds:
            masked = masked.replace(other, b"[...]")
        return masked.decode("ascii", "backslashreplace")

    def _add_field(self, name: str, value: Any) -> None:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            self.add_url(name, value)
        elif isinstance(value, str):
            self.add(name, value)
        elif hasattr(value, "items"):
            for key, item in value.items():
                if key.lower() in _GRANTING:
                    self.add(f"{name}[{key}]", item)
        else:
            for item in value:
                self._add_field(name, item)


USED = Secrets()
"""What this process's tests used so far."""

_FORM_FIELDS = re.compile(rb'"(policy|x-amz-signature)": ?("(?:[^"\\]|\\.)*")', re.IGNORECASE)


@contextlib.contextmanager
def watch(secrets: Secrets = USED) -> Iterator[None]:
    """Notes what HTTP and gRPC clients of this process send and receive, and its stacks' keys."""
    make = Stack.__init__

    def made(self: Stack, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        secrets.add_stack(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "__init__", made)
        _watch_http(patch, secrets)
        _watch_grpc(patch, secrets)
        yield


def _watch_http(patch: pytest.MonkeyPatch, secrets: Secrets) -> None:
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def note(response: httpx.Response) -> None:
        request = response.request
        secrets.add_url("token", str(request.url))
        for name, value in request.url.params.multi_items():
            if name in _secret_names():
                secrets.add(name, value)
        authorization = request.headers.get("authorization", "")
        if authorization.startswith("Bearer "):
            secrets.add("accessToken", authorization.removeprefix("Bearer "))
        for part in (request, response):
            if part.headers.get("content-type", "").startswith("application/json"):
                with contextlib.suppress(httpx.StreamError):
                    secrets.add_json(part.content)

    def watched(self: httpx.Client, *arguments: Any, **options: Any) -> httpx.Response:
        response = send(self, *arguments, **options)
        note(response)
        return response

    async def watched_async(
        self: httpx.AsyncClient, *arguments: Any, **options: Any
    ) -> httpx.Response:
        response = await send_async(self, *arguments, **options)
        note(response)
        return response

    patch.setattr(httpx.Client, "send", watched)
    patch.setattr(httpx.AsyncClient, "send", watched_async)


def _watch_grpc(patch: pytest.MonkeyPatch, secrets: Secrets) -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        sync = type(channel)

    def noting_request(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
        def noted(message: Any) -> bytes:
            if isinstance(message, Message):
                secrets.add_message(message)
            return serialize(message)

        return serialize and noted

    def noting_response(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
        def noted(text: bytes) -> Any:
            message = parse(text)
            if isinstance(message, Message):
                secrets.add_message(message)
            return message

        return parse and noted

    for channel_type in (grpc.aio._channel.Channel, sync):
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            make = getattr(channel_type, kind)

            @functools.wraps(make)
            def watched(
                self: Any,
                method: str,
                request_serializer: Any = None,
                response_deserializer: Any = None,
                *rest: Any,
                make: Callable[..., Any] = make,
                **options: Any,
            ) -> Any:
                return make(
                    self,
                    method,
                    noting_request(request_serializer),
                    noting_response(response_deserializer),
                    *rest,
                    **options,
                )

            patch.setattr(channel_type, kind, watched)


def _holds_keys(path: Path) -> bool:
    """Tells whether a file is one that must hold keys, and nobody else may read it."""
    return not _KEY_FOLDERS.isdisjoint(path.parts) and not path.stat().st_mode & 0o077


@functools.cache
def _secret_names() -> frozenset[str]:
    """Returns the names of all marked fields, in contracts and in JSON."""
    return frozenset(
        name
        for file in contracts.files().file
        for message in file.message_type
        for known in message.field
        if known.options.debug_redact
        for name in (known.name, known.json_name)
    )


@functools.cache
def _secret_json() -> re.Pattern[bytes]:
    names = "|".join(sorted(_secret_names())).encode()
    return re.compile(rb'"(%s)": ?("(?:[^"\\]|\\.)*")' % names)


@functools.cache
def _may_hold_secrets(message: Descriptor) -> bool:
    return _has_marked(message, set())


def _has_marked(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        known.GetOptions().debug_redact
        or (known.message_type is not None and _has_marked(known.message_type, seen))
        for known in message.fields
    )
