"""The contracts, as one compiled set of descriptors."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

DESCRIPTORS = Path(__file__).parents[2] / "gen/photomesh.binpb"
"""A FileDescriptorSet of all contracts, with their imports and comments. Written by `make gen`."""


def files() -> FileDescriptorSet:
    """Returns the contracts. Unlike the generated modules, they have JSON names and comments."""
    return FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


def contracts() -> DescriptorPool:
    """Returns what gRPC reflection serves: all contracts, and those of health and reflection.

    The generated modules lack JSON names: from those, grpcurl would print `user_id` where REST uses
    `userId`.
    """
    pool = DescriptorPool()
    for file in files().file:
        pool.AddSerializedFile(file.SerializeToString())
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
