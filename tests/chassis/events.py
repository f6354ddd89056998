"""Types of events, each with a topic of its own."""

import itertools

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from kafka.admin import KafkaAdminClient, NewTopic
from photomesh.common.v1 import options_pb2

from services.chassis.config import KafkaSettings
from services.chassis.events.topics import dead_letters, topic_of

_numbers = itertools.count(1)


def make_event_type(kafka: KafkaSettings, *, partitions: int = 1) -> type[Message]:
    """Returns a new type with the int64 fields `owner_id`, its key, and `number`.

    The broker has its topic and the topic of its dead letters.
    """
    name = f"test_event_{next(_numbers)}"
    file = FileDescriptorProto(
        name=f"tests/{name}.proto",
        package="photomesh.tests",
        syntax="proto3",
        dependency=[options_pb2.DESCRIPTOR.name],
    )
    described = file.message_type.add(name=name)
    for number, field in enumerate(("owner_id", "number"), start=1):
        described.field.add(
            name=field,
            number=number,
            type=FieldDescriptorProto.TYPE_INT64,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
        )
    described.options.Extensions[options_pb2.topic].MergeFrom(
        options_pb2.Topic(name=name, key="owner_id", partitions=partitions)
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    event_type = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"photomesh.tests.{name}")
    )
    topic = topic_of(event_type)
    admin = KafkaAdminClient(bootstrap_servers=kafka.kafka_bootstrap)
    admin.create_topics(
        [
            NewTopic(each.name, num_partitions=each.partitions, replication_factor=-1)
            for each in (topic, dead_letters(topic))
        ]
    )
    admin.close()
    return event_type
