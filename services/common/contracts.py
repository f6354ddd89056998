"""The contracts that gRPC reflection serves."""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

_DESCRIPTORS = Path(__file__).parents[2] / "gen/photomesh.binpb"


def contracts() -> DescriptorPool:
    """Returns all contracts of this project, and those of health and reflection.

    Reads them from the compiled descriptor set, because the descriptors in the generated modules
    lack JSON names: grpcurl would print `account_id` where REST uses `accountId`.
    """
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
