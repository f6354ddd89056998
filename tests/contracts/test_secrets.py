"""Secret fields are marked in the contracts, and marked fields are not printed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.feed.v1 import feed_service_pb2 as feed_pb
from photomesh.media.v1 import media_service_pb2 as media_pb

from services.chassis import contracts
from services.chassis.telemetry.redaction import printable

ROOT = Path(__file__).parents[2]
FILES = [file for file in contracts.files().file if file.package.startswith("photomesh.")]

SUSPECT = re.compile(
    r"passw|token|secret|\bkeys?\b|_key|key_|\burls?\b|_url|signature|\bforms?\b|form_"
    r"|credential|grant|certificate|cookie|session",
    re.IGNORECASE,
)

NOT_SECRET = {
    "photomesh.account.v1.CreateAccountResponse.session": "its own fields are marked",
    "photomesh.account.v1.CreateSessionResponse.session": "its own fields are marked",
    "photomesh.account.v1.RefreshSessionResponse.session": "its own fields are marked",
    "photomesh.account.v1.Session.access_token_expire_time": "a time",
    "photomesh.account.v1.Session.refresh_token_expire_time": "a time",
    "photomesh.common.v1.DeadLetter.key": "the id of an account",
    "photomesh.common.v1.Topic.key": "the name of a field",
    "photomesh.common.v1.Topic.partitions": "a number",
    "photomesh.media.v1.CreateUploadRequest.size_bytes": "a size",
    "photomesh.media.v1.CreateUploadResponse.expire_time": "a time",
    "photomesh.media.v1.GetUploadLimitsResponse.form_max_bytes": "a size",
    "photomesh.media.v1.SignUploadPartsResponse.expire_time": "a time",
    "photomesh.media.v1.StoredMedia.key_prefix": "a name in S3, which only signed requests open",
    "photomesh.media.v1.StoredVariant.object_name": "a name in S3, which only signed requests open",
}
"""Fields whose name or comment suggests a secret, and why they are not."""


def fields() -> Iterator[tuple[str, descriptor_pb2.FieldDescriptorProto, str]]:
    """Yields the full name, the descriptor and the comment of each field of our contracts."""
    for file in FILES:
        comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}

        def of(
            message: descriptor_pb2.DescriptorProto,
            name: str,
            path: tuple[int, ...],
            comments: dict[tuple[int, ...], str] = comments,
        ) -> Iterator[tuple[str, descriptor_pb2.FieldDescriptorProto, str]]:
            for number, field in enumerate(message.field):
                yield f"{name}.{field.name}", field, comments.get((*path, 2, number), "")
            for number, nested in enumerate(message.nested_type):
                if not nested.options.map_entry:
                    yield from of(nested, f"{name}.{nested.name}", (*path, 3, number))

        for number, message in enumerate(file.message_type):
            yield from of(message, f"{file.package}.{message.name}", (4, number))


def test_every_field_that_suggests_a_secret_is_marked_or_explained():
    suspect = {
        name: field
        for name, field, comment in fields()
        if SUSPECT.search(f"{field.name} {comment}")
    }
    unmarked = {name for name, field in suspect.items() if not field.options.debug_redact}

    assert unmarked == set(NOT_SECRET)


def test_marked_fields_are_known_to_be_secrets():
    marked = {name.rpartition(".")[2] for name, field, _ in fields() if field.options.debug_redact}

    assert marked == {
        "password",
        "access_token",
        "refresh_token",
        "page_token",
        "next_page_token",
        "upload_url",
        "form_fields",
        "url",
    }


def message_types() -> list[type[Message]]:
    pool = descriptor_pool.Default()
    names = [f"{file.package}.{message.name}" for file in FILES for message in file.message_type]
    for file in FILES:
        # Registers contracts that no other import has registered.
        __import__(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names]


def fill(message: Message, secret: bool = False, depth: int = 0) -> None:
    """Sets every field. The values of marked fields, and of all fields within them, have LEAKED."""
    for field in message.DESCRIPTOR.fields:
        # One of a oneof can be set at a time; the others are set by `fillings`.
        if field.containing_oneof and message.WhichOneof(field.containing_oneof.name):
            continue
        set_field(message, field, secret, depth)


def set_field(message: Message, field: FieldDescriptor, secret: bool, depth: int) -> None:
    secret = secret or field.GetOptions().debug_redact
    text = "LEAKED" if secret else "shown"
    value = getattr(message, field.name)
    if field.message_type and field.message_type.GetOptions().map_entry:
        item = field.message_type.fields_by_name["value"]
        if item.message_type:
            fill(value[text], secret, depth + 1)
        else:
            value[text] = text
    elif field.message_type:
        if depth < 6:
            inner = value.add() if field.is_repeated else value
            inner.SetInParent()
            fill(inner, secret, depth + 1)
    else:
        scalar = {"string": text, "bytes": text.encode()}.get(
            kind_of(field), 424242424242 if secret else 7
        )
        if field.enum_type:
            scalar = field.enum_type.values[-1].number
        if field.is_repeated:
            value.append(scalar)
        else:
            kind = type(value)
            setattr(message, field.name, kind(scalar) if kind in (bool, float) else scalar)


def kind_of(field: FieldDescriptor) -> str:
    kinds = {FieldDescriptor.TYPE_STRING: "string", FieldDescriptor.TYPE_BYTES: "bytes"}
    return kinds.get(field.type, "number")


def fillings(kind: type[Message]) -> Iterator[Message]:
    """Yields messages with all fields set, and one more for each further field of a oneof."""
    message = kind()
    fill(message)
    yield message
    for oneof in kind.DESCRIPTOR.oneofs:
        for field in oneof.fields[1:]:
            other = kind()
            set_field(other, field, False, 0)
            yield other


@pytest.mark.parametrize("kind", message_types(), ids=lambda kind: kind.DESCRIPTOR.name)
def test_no_marked_field_is_printed(kind: type[Message]):
    for message in fillings(kind):
        # The filling sets the marked fields at any depth.
        filled = str(message)
        shown = repr(printable(message))

        assert "LEAKED" not in shown
        assert "424242424242" not in shown
        assert ("[redacted]" in shown) == ("LEAKED" in filled or "424242424242" in filled)


def test_events_hold_no_secrets():
    """The broker, outboxes and dead letters store events, and reasons may quote them."""
    events = [
        kind for kind in message_types() if kind.DESCRIPTOR.file.name.endswith("/events.proto")
    ]

    assert len(events) > 5
    for kind in events:
        for message in fillings(kind):
            assert "LEAKED" not in str(message)
            assert "424242424242" not in str(message)


def test_most_of_a_message_is_printed():
    for kind in message_types():
        [message, *_] = fillings(kind)
        shown = printable(message)

        assert set(shown) == {field.name for field, _ in message.ListFields()}, kind


def test_secrets_are_found_in_maps_lists_and_oneofs():
    page = feed_pb.GetFeedResponse(next_page_token="LEAKED")
    page.posts.add(caption="shown").media.add().variants.add(name="w600", url="http://cdn/?LEAKED")
    upload = media_pb.CreateUploadResponse(
        upload_url="http://s3/", form_fields={"policy": "LEAKED"}
    )
    response = feed_pb.WatchFeedResponse(post=page.posts[0])

    assert printable(page) == {
        "posts": [
            {
                "caption": "shown",
                "media": [{"variants": [{"name": "w600", "url": "[redacted]"}]}],
            }
        ],
        "next_page_token": "[redacted]",
    }
    assert printable(upload) == {"upload_url": "[redacted]", "form_fields": "[redacted]"}
    assert "LEAKED" not in repr(printable(response))
    assert "shown" in repr(printable(response))
    # The mark of the field decides, not its name.
    assert printable(account_pb.CreateAccountRequest(username="ann", password="LEAKED")) == {
        "username": "ann",
        "password": "[redacted]",
    }


def test_printed_values_are_bounded():
    file = media_pb.UploadMediaRequest(sha256="x" * 100_000)
    file.file.data = bytes(4 * 2**20)
    page = feed_pb.GetFeedResponse()
    for _ in range(3000):
        page.posts.add(caption="c" * 2000)
    upload = media_pb.GetUploadLimitsResponse(content_types=["t" * 500] * 5000)

    assert printable(file)["file"] == {"data": "<4194304 bytes>"}
    assert printable(file)["sha256"].endswith("... (100000 characters)")
    for message in (file, page, upload):
        assert len(repr(printable(message))) < 64 * 1024
    assert printable(upload)["content_types"][-1] == "... (5000 in all)"
