"""Generates all code and descriptors from the contracts: `python protos/generate.py [OUTPUT]`.

OUTPUT (default `gen/`) receives the messages and gRPC stubs with their types, and
`photomesh.binpb`: all contracts with their imports and comments as one FileDescriptorSet. Envoy
transcodes with it, the reflection service serves it, and `buf` lints and compares it.
"""

import argparse
import importlib
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from google.protobuf import descriptor_pb2

PROTOS = Path(__file__).resolve().parent
ROOT = PROTOS.parent
DESCRIPTORS = "photomesh.binpb"


def generate(output: Path) -> None:
    """Writes all generated files to `output`, replacing its content."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        validate = Path(scratch) / "validate.binpb"
        validate.write_bytes(_validate_descriptors().SerializeToString())
        scripts = Path(sys.executable).parent
        # error_details is needed to convert a google.rpc.Status to JSON.
        _protoc(
            validate,
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={output / DESCRIPTORS}",
            "google/rpc/error_details.proto",
            *sources,
        )
        _mark_imports(output / DESCRIPTORS, set(sources))
        _protoc(
            validate,
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={output}",
            f"--grpc_python_out={output}",
            f"--mypy_out=quiet:{output}",
            f"--mypy_grpc_out=quiet,only_async:{output}",
            "buf/validate/validate.proto",
            *sources,
        )
    for stubs in output.rglob("*_pb2_grpc.py*"):
        contract = PROTOS / stubs.relative_to(output).with_name(
            stubs.name.split("_pb2_grpc")[0] + ".proto"
        )
        # protoc writes an empty module for a contract without a service.
        if not contract.exists() or "\nservice " not in contract.read_text():
            stubs.unlink()


def _mark_imports(path: Path, ours: set[str]) -> None:
    """Makes a FileDescriptorSet a buf image: marks the files that are not ours as imports.

    buf neither lints nor compares imports. The mark is field 8042 of each file,
    buf.alpha.image.v1.ImageFileExtension {is_import: true}; other readers ignore it.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    for file in files.file:
        if file.name not in ours:
            file.MergeFromString(bytes([0xD2, 0xF6, 0x03, 0x02, 0x08, 0x01]))
    path.write_bytes(files.SerializeToString(deterministic=True))


def _protoc(validate: Path, *arguments: str) -> None:
    googleapis = _folder_of("google/api/annotations.proto", "googleapis-common-protos")
    well_known = _folder_of("grpc_tools/_proto/google/protobuf/any.proto", "grpcio-tools")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        f"--proto_path={PROTOS}",
        f"--proto_path={googleapis}",
        f"--proto_path={well_known / 'grpc_tools' / '_proto'}",
        f"--descriptor_set_in={validate}",
        *arguments,
    ]
    subprocess.run(command, check=True)


def _folder_of(file: str, distribution: str) -> Path:
    """Returns the import root of a file in an installed distribution."""
    root = Path(str(metadata.distribution(distribution).locate_file("")))
    if not (root / file).exists():
        raise FileNotFoundError(f"{distribution} does not contain {file}")
    return root


def _validate_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Returns buf/validate/validate.proto and its imports as descriptors.

    The protovalidate distribution contains the compiled contract, not its text.
    """
    generated = importlib.import_module("protovalidate._gen.buf.validate.validate_pb")
    files = descriptor_pb2.FileDescriptorSet()
    for name in ("descriptor", "duration", "timestamp", "field_mask"):
        well_known = importlib.import_module(f"google.protobuf.{name}_pb2")
        files.file.add().ParseFromString(well_known.DESCRIPTOR.serialized_pb)
    files.file.add().ParseFromString(generated.desc().proto.to_binary())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", nargs="?", type=Path, default=ROOT / "gen", help="default: gen/")
    generate(parser.parse_args().output)


if __name__ == "__main__":
    main()
