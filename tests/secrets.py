"""The secrets of a test run, and a search for them in the files that it wrote.

`watch` records the secrets that HTTP and gRPC clients of this process send and receive: the fields
that the contracts mark `debug_redact`. It also records the keys and passwords of each stack that is
made. `search` looks for all of them in all files below a folder.
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

_MIN_CHARACTERS = 12
_MIN_DISTINCT = 6
"""Simpler texts, such as passwords that are too short to be accepted, occur by chance."""

_GRANTING = frozenset({"token", "policy", "signature", "x-amz-signature"})
"""The query parameters and form fields of presigned requests that are secrets."""

_KEY_FOLDERS = frozenset({"pki", "etc"})
"""The folders in which a stack keeps keys and configurations that contain keys."""

_SHAPES = (
    # A JWT with its signature, the query of a presigned URL, a private key, a URL with a password.
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
    r"X-Amz-Signature=[0-9a-f]{16,}",
    r"PRIVATE KEY-----",
    r"://[^/ :@]+:[^/ @*]+@",
    # A password hash.
    r"\$argon2id?\$",
    r"SCRAM-SHA-256\$",
)
"""Patterns of secrets, to find those that other clients, such as curl, sent."""


@dataclass(frozen=True)
class Finding:
    """A secret in a file."""

    kind: str
    path: Path
    line: str
    """The line of the first occurrence, with secrets masked."""
    times: int = 1

    def __str__(self) -> str:
        return f"{self.kind} in {self.path}, {self.times} times: {self.line}"


@dataclass
class Secrets:
    """Maps each secret, as it would be written to a file, to its kind."""

    kinds: dict[bytes, str] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        """Records a secret verbatim and as JSON, URLs and Python write it."""
        if len(text) < _MIN_CHARACTERS or len(set(text)) < _MIN_DISTINCT:
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
            # grep searches line by line.
            self.kinds.setdefault(max(form.split(b"\n"), key=len), kind)

    def add_url(self, kind: str, url: str) -> None:
        """Records the secrets in the query of a URL."""
        for name, value in parse_qsl(urlsplit(url).query):
            if name.lower() in _GRANTING:
                self.add(kind, value)

    def add_message(self, message: Message) -> None:
        """Records the marked fields of a message."""
        if not _may_hold_secrets(message.DESCRIPTOR):
            return
        for known, value in message.ListFields():
            if known.GetOptions().debug_redact:
                self._add_field(known.name, value)
            elif known.message_type and not known.message_type.GetOptions().map_entry:
                for inner in value if known.is_repeated else [value]:
                    self.add_message(inner)

    def add_json(self, text: bytes) -> None:
        """Records the marked fields of JSON."""
        for name, value in _secret_json().findall(text):
            self._add_field(name.decode(), json.loads(value))
        for name, value in _FORM_FIELDS.findall(text):
            self._add_field("form_fields", {name.decode(): json.loads(value)})

    def add_stack(self, stack: Stack) -> None:
        """Records the keys and passwords of a stack."""
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
        """Searches all files below a folder. Returns one finding per kind and file.

        Skips the files that hold keys if only their owner may read them.
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
        # From standard input: grep would find a file of patterns, and arguments are public.
        grep = subprocess.run(
            ["grep", "-rabHoZ", *options, "-f", "-", "--", folder],
            input=b"\n".join(patterns) + b"\n",
            env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        # 2: some files could not be read, for example because they were removed meanwhile.
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
"""The secrets that the tests of this process have used so far."""

_FORM_FIELDS = re.compile(rb'"(policy|x-amz-signature)": ?("(?:[^"\\]|\\.)*")', re.IGNORECASE)


@contextlib.contextmanager
def watch(secrets: Secrets = USED) -> Iterator[None]:
    """Records the secrets in this process's HTTP and gRPC calls, and the keys of its stacks."""
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
    """Returns whether a file is meant to hold keys and only its owner may read it."""
    return not _KEY_FOLDERS.isdisjoint(path.parts) and not path.stat().st_mode & 0o077


@functools.cache
def _secret_names() -> frozenset[str]:
    """Returns the names of all marked fields, as in contracts and as in JSON."""
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
