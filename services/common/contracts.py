"""The contracts as reflection tells them."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

_DESCRIPTORS = Path(__file__).parents[2] / "gen/photomesh.binpb"


def contracts() -> DescriptorPool:
    """Returns all contracts, ours and those of health and reflection.

    They are read from the compiled contracts: the descriptors inside generated modules lack the
    JSON names, and grpcurl would print `account_id` where REST says `accountId`.
    """
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
