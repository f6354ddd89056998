"""Log lines contain no locals and no secrets, and have a bounded length."""

import contextlib
import io
import json
import logging
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import structlog
from botocore.config import Config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from photomesh.account.v1 import account_service_pb2 as account_pb
from photomesh.media.v1 import media_service_pb2 as media_pb

from services.chassis import context
from services.chassis.telemetry import logs

LIMIT = 16 * 1024
SECRET = "correct horse battery"


class Written:
    """Returns what was written since the last call."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def text(self) -> str:
        text = self._stream.getvalue()
        self._stream.seek(0)
        self._stream.truncate()
        return text

    def lines(self) -> list[dict]:
        text = self.text()
        assert text == "" or text.endswith("\n")
        lines = text.split("\n")[:-1]
        assert all(len(line.encode()) < LIMIT for line in lines)
        return [json.loads(line) for line in lines]

    def line(self) -> dict:
        [line] = self.lines()
        return line


@contextlib.contextmanager
def configured(level: str) -> Iterator[Written]:
    """Configures logging as a process of the mesh does, and restores it afterwards."""
    root = logging.getLogger()
    usual = root.handlers, root.level, structlog.get_config()
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    root.handlers = []
    stream = io.StringIO()
    try:
        with contextlib.redirect_stdout(stream):
            logs.configure("tested", level)
        yield Written(stream)
    finally:
        root.handlers, root.level = usual[0], usual[1]
        structlog.configure(**usual[2])
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks


def fail_with_a_secret(depth: int = 0) -> None:
    password = SECRET
    request = account_pb.CreateAccountRequest(username="ann", password=password)
    file = bytes(4 * 2**20)
    if depth:
        fail_with_a_secret(depth - 1)
    raise ValueError(f"{request.username} sent {len(file)} bytes")


def raised(depth: int = 0) -> ValueError:
    with pytest.raises(ValueError) as caught:
        fail_with_a_secret(depth)
    return caught.value


def log_with_structlog(error: BaseException) -> None:
    logs.logger("tested").error("failed", exc_info=error)


def log_as_a_library(error: BaseException) -> None:
    logging.getLogger("grpc._cython.cygrpc").error("Unexpected %s", "error", exc_info=error)


@pytest.mark.parametrize("log", [log_with_structlog, log_as_a_library])
def test_tracebacks_have_frames_but_no_locals(log):
    with configured("INFO") as written:
        log(raised())

        [error] = written.line()["exception"]
        assert error["exc_type"] == "ValueError"
        assert error["exc_value"] == "ann sent 4194304 bytes"
        assert error["frames"][-1]["name"] == "fail_with_a_secret"
        assert {key for frame in error["frames"] for key in frame} == {"filename", "lineno", "name"}


def test_tracebacks_contain_the_causes_of_the_error():
    with configured("INFO") as written:
        try:
            try:
                fail_with_a_secret()
            except ValueError as error:
                raise RuntimeError("failed") from error
        except RuntimeError:
            logs.logger("tested").exception("failed")

        chain = written.line()["exception"]
        assert [each["exc_type"] for each in chain] == ["RuntimeError", "ValueError"]


def test_tracebacks_are_bounded():
    with configured("INFO") as written:
        deep = raised(depth=200)
        chain: Exception = deep
        for number in range(200):
            chain, cause = RuntimeError(number), chain
            chain.__cause__ = cause
        groups: Exception = deep
        for _ in range(500):
            groups = ExceptionGroup("several", [groups, *[ValueError("x" * 900)] * 30])
        circle = ValueError("one")
        circle.__cause__ = ValueError("two")
        circle.__cause__.__cause__ = circle

        for error in (deep, chain, groups, circle):
            for log in (log_with_structlog, log_as_a_library):
                log(error)
                assert written.line()["exception"]


def test_errors_of_threads_and_destructors_are_logged():
    with configured("INFO") as written:

        class Broken:
            def __del__(self) -> None:
                fail_with_a_secret()

        thread = threading.Thread(target=fail_with_a_secret)
        thread.start()
        thread.join()
        Broken()
        sys.excepthook(ValueError, raised(), None)

        lines = written.lines()
        assert [line["event"] for line in lines] == [
            "thread.failed",
            "destructor.failed",
            "process.failed",
        ]
        assert SECRET not in json.dumps(lines)


def test_messages_are_printed_without_their_secrets():
    with configured("INFO") as written:
        request = account_pb.CreateAccountRequest(username="ann", password=SECRET)
        response = account_pb.CreateAccountResponse(
            session=account_pb.Session(access_token=SECRET, refresh_token=SECRET)
        )
        logs.logger("tested").error(
            "failed",
            request=request,
            several=[{"response": response}],
            exc_info=ValueError(request),
        )

        line = written.line()
        assert line["request"] == {"username": "ann", "password": "[redacted]"}
        assert SECRET not in json.dumps(line)


def test_secrets_in_texts_are_redacted():
    token = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJwaG90b21lc2gifQ.pFQkSzSn3Yb1mHVbnqdF"
    with configured("INFO") as written:
        for text, shown in (
            ("to postgresql://ann:LEAKED@db:5432/x", "to postgresql://ann:[redacted]@db:5432/x"),
            ("rediss://:LEAKED@cache:6379/0", "rediss://:[redacted]@cache:6379/0"),
            (
                "PUT /b?X-Amz-Signature=LEAKED&partNumber=1",
                "PUT /b?X-Amz-Signature=[redacted]&partNumber=1",
            ),
            ('GET "/media/1/?token=LEAKED"', 'GET "/media/1/?token=[redacted]"'),
            (f"Bearer {token}", "Bearer [redacted]"),
            (
                "redis://127.0.0.1:6379/0 for ann@example.org",
                "redis://127.0.0.1:6379/0 for ann@example.org",
            ),
        ):
            logs.logger("tested").error("failed", text=text, exc_info=ValueError(text))
            logging.getLogger("library").error("%s", text)
            ours, library = written.lines()

            assert ours["text"] == ours["exception"][0]["exc_value"] == library["event"] == shown


def test_the_s3_client_does_not_log_what_it_signs():
    with configured("DEBUG") as written:
        s3 = boto3.client(
            "s3",
            aws_access_key_id="access",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )
        url = s3.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"})
        form = s3.generate_presigned_post("bucket", "key")["fields"]
        lines = json.dumps(written.lines())

        for secret in (
            SECRET,
            parse_qs(urlsplit(url).query)["X-Amz-Signature"][0],
            form["x-amz-signature"],
        ):
            assert secret not in lines


def test_a_short_line_is_whole():
    with configured("INFO") as written:
        context.enter(context.CallContext(trace_id="0af7651916cd43dd8448eb211c80319c"))
        logs.logger("tested").warning("post.published", post_id=2**62, ids=[1, 2], text='"\n\\ü')

        line = written.line()
        assert line.pop("time").startswith("20")
        assert line == {
            "level": "warning",
            "event": "post.published",
            "service": "tested",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "post_id": 2**62,
            "ids": [1, 2],
            "text": '"\n\\ü',
        }


def test_a_long_line_keeps_the_start_of_each_field_and_its_original_length():
    with configured("INFO") as written:
        context.enter(context.CallContext(trace_id="0af7651916cd43dd8448eb211c80319c"))
        long = {f"field{number}": f"begin{number} " + "x" * 4000 for number in range(20)}
        logs.logger("tested").error(
            "media.failed", **long, nested=[{"deep": "begin " + "y" * 4000}] * 10, small=7
        )

        line = written.line()
        assert (line["event"], line["level"], line["service"]) == (
            "media.failed",
            "error",
            "tested",
        )
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert line["time"].startswith("20")
        assert line["small"] == 7
        for number in range(20):
            assert line[f"field{number}"].startswith(f"begin{number} xxx")
            assert line[f"field{number}"].endswith("...")
        assert "begin yyy" in line["nested"]
        assert line["line_bytes"] > 80_000


def test_the_number_of_omitted_fields_is_logged():
    with configured("INFO") as written:
        logs.logger("tested").error("many", **{f"field{number}": number for number in range(5000)})

        line = written.line()
        assert line["event"] == "many"
        assert line["field0"] == 0
        assert line["fields"] > 5000
        assert len(line) < 50


def test_large_values_are_not_turned_into_text():
    file = media_pb.UploadMediaRequest(sha256="x" * 2**20)
    large = {
        "file": bytes(64 * 2**20),
        "text": "x" * (64 * 2**20),
        "many": range(10**9),
        "list": ["x" * 1000] * 10**6,
        "number": 1 << 10**7,
        "error": ValueError(bytes(64 * 2**20)),
        "map": dict.fromkeys(range(10**5), file),
    }
    with configured("INFO") as written:
        tracemalloc.start()
        try:
            logs.logger("tested").error("large", **large, exc_info=ValueError(large["file"]))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        line = written.line()
        assert line["file"] == f"<{64 * 2**20} bytes>"
        assert line["text"].startswith("xxxx")
        assert line["list"].startswith('["xxxx')
        # Less than 1 % of the 300 MB was converted to text and then discarded.
        assert most < 3 * 2**20


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.builds(lambda bits: 1 << bits, st.integers(60, 20_000))
    | st.floats()
    | st.text(st.characters(categories=None), max_size=50)
    | st.text(st.sampled_from('"\\\0\x1f\ud800é漢🏔'), max_size=50)
    | st.builds(
        str.__mul__, st.sampled_from(['"', "\0", "\ud800", "🏔", "a\\"]), st.integers(0, 30_000)
    )
    | st.builds(bytes, st.integers(0, 100_000))
    | st.builds(ValueError, st.text(), st.binary())
    | st.builds(media_pb.Variant, name=st.text(st.characters(codec="utf-8")), url=st.just(SECRET))
    | st.builds(object),
    lambda inner: (
        st.lists(inner)
        | st.builds(lambda item, n: [item] * n, inner, st.integers(0, 2000))
        | st.dictionaries(st.text(st.characters(categories=None)) | st.integers(), inner)
        | st.tuples(inner, inner)
        | st.builds(lambda *parts: ExceptionGroup("several", [ValueError(*parts)]), inner)
    ),
    max_leaves=20,
)
names = st.text(st.characters(categories=None), min_size=1, max_size=60).filter(
    lambda name: name not in ("event", "exc_info", "stack_info", "positional_args", "self")
)


@settings(deadline=None)
@given(
    event=st.text(st.characters(categories=None)),
    size=st.integers(0, 100_000),
    fields=st.dictionaries(names, anything, max_size=60),
)
@example(event="\0" * 20_000, size=0, fields={f"{n}\0" * 40: "\0" * 5000 for n in range(100)})
@example(event="x", size=1, fields={"a": '"' * 16_300})
@example(event="x" * 16_200, size=16_100, fields={})
def test_no_line_exceeds_the_limit(event: str, size: int, fields: dict):
    with configured("INFO") as written:
        logs.logger("tested").error(event, **fields)
        logging.getLogger("library").error("%s: %s", "x" * size, event)

        ours, library = written.lines()
        assert {"event", "time", "level", "service", "trace_id"} <= set(ours)
        assert {"event", "time", "level", "service", "trace_id", "logger"} <= set(library)
        assert SECRET not in json.dumps(ours)


def test_a_record_that_cannot_be_formatted_is_reported_without_its_arguments():
    with configured("INFO") as written:
        logging.getLogger("library").error("%d", SECRET)

        line = written.line()
        assert line["event"] == "log.failed"
        assert line["error"] == "TypeError"
        assert line["source"].startswith("library, ")
        assert SECRET not in json.dumps(line)


def test_a_value_that_cannot_be_printed_is_replaced():
    with configured("INFO") as written:

        class Broken:
            def __str__(self) -> str:
                raise RuntimeError(SECRET)

        logs.logger("tested").error("failed", broken=Broken(), within=[Broken()])

        assert written.line()["broken"] == "<a Broken that cannot be printed>"


def test_audit_events_are_written_at_every_level():
    early = logs.audit("early")
    with configured("CRITICAL") as written:
        early.info("operator.called", method="/photomesh.common.v1.DeadLetterService/GetDeadLetter")
        logs.audit("late").warning("operator.refused")
        logs.logger("tested").error("failed")
        lines = written.lines()

    assert [line["event"] for line in lines] == ["operator.called", "operator.refused"]
    assert [line["audit"] for line in lines] == [True, True]
    assert lines[0]["method"].endswith("/GetDeadLetter")
