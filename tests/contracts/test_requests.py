"""All requests: their allowed callers, their size, and the meaning of absent fields."""

import re

import protovalidate
import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from deploy.processes import MESH, Kind
from services.chassis import contracts
from services.chassis.rpc.requests import MAX_REQUEST_BYTES
from tests.requests import Method, all_methods, fields_of, valid_request

# Google's HttpBody: its bytes are the file of an upload, which the service counts.
_OF_A_FILE = {"file"}


@pytest.fixture(params=all_methods(), ids=str)
def method(request) -> Method:
    return request.param


def test_every_method_names_its_callers(method):
    callers = method.contract.callers

    if method.is_public:
        assert callers == {"gateway"}
    elif method.is_for_operators:
        assert callers == {"operator"}
    else:
        assert callers
        assert callers <= {process.name for process in MESH if process.kind is not Kind.GATEWAY}


def test_every_text_and_every_list_is_bounded(method):
    for path, _, field in fields_of(valid_request(method.request)):
        if path in _OF_A_FILE:
            continue
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.is_repeated:
            assert rules.repeated.max_items, path
        elif field.type == FieldDescriptor.TYPE_STRING:
            assert rules.string.max_len or rules.string.pattern, path
        else:
            assert field.type != FieldDescriptor.TYPE_BYTES, path


def test_the_largest_list_of_numbers_fits_into_a_request(method):
    request = valid_request(method.request)
    for path, holder, field in fields_of(request):
        if field.is_repeated and field.message_type is None and path not in _OF_A_FILE:
            most = field.GetOptions().Extensions[validate_pb2.field].repeated.max_items
            # Ids have up to 63 bits.
            first = 2**62 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 2**30
            getattr(holder, field.name)[:] = range(first, first + most)
    assert request.ByteSize() <= MAX_REQUEST_BYTES


@pytest.mark.parametrize("method", [m for m in all_methods() if m.writes], ids=str)
def test_an_absent_field_of_a_write_is_refused_or_documented(method):
    """A write must not mean something by a field that was forgotten, misspelt or null."""
    violations = protovalidate.collect_violations(method.request())
    refused = {violation.proto.field.elements[0].field_name for violation in violations}
    comments = _comments()

    for field in method.request.DESCRIPTOR.fields:
        if field.name in refused or field.name in _OF_A_FILE:
            continue
        comment = comments[field.full_name]
        assert field.cpp_type != FieldDescriptor.CPPTYPE_BOOL, field.full_name
        assert re.search(r"\b([Ee]mpty|0): |or empty|First message: as in", comment), (
            f"{field.full_name}: refuse a request without it, or say what it means: "
            '"Empty: no caption."'
        )


def _comments() -> dict[str, str]:
    """Returns the comment above each field, by the field's full name."""
    files = contracts.files()
    comments = {}
    for file in files.file:
        for location in file.source_code_info.location:
            # 4: message_type, 2: field.
            match list(location.path):
                case [4, message, 2, field]:
                    holder = file.message_type[message]
                    name = f"{file.package}.{holder.name}.{holder.field[field].name}"
                    comments[name] = " ".join(location.leading_comments.split())
    return comments
