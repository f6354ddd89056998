"""The fan-out worker's methods for operators, in the order of the contract."""

from photomesh.fanout.v1 import fanout_admin_service_pb2 as pb
from photomesh.fanout.v1.fanout_admin_service_pb2_grpc import FanoutAdminServiceServicer

from services.chassis.errors import FieldInvalid
from services.chassis.events.group import ConsumerGroup
from services.chassis.rpc import Context
from services.chassis.telemetry import logs
from services.chassis.timestamps import to_timestamp
from services.fanout.store import FanoutInFlight, FanoutKind, FanoutStore

_PAGE = 50

_log = logs.logger(__name__)


class FanoutAdminService(FanoutAdminServiceServicer):
    """Reports the lag and progress of fan-out; pauses and resumes topics."""

    def __init__(self, group: ConsumerGroup, store: FanoutStore) -> None:
        self._group = group
        self._store = store

    async def GetLag(self, request: pb.GetLagRequest, context: Context) -> pb.GetLagResponse:
        paused = await self._store.paused_topics()
        return pb.GetLagResponse(
            partitions=[
                pb.PartitionLag(
                    topic=each.topic,
                    partition=each.partition,
                    end_offset=each.end,
                    committed_offset=each.committed,
                    lag=each.lag,
                    paused=each.topic in paused,
                )
                for each in await self._group.lag()
            ]
        )

    async def ListFanouts(
        self, request: pb.ListFanoutsRequest, context: Context
    ) -> pb.ListFanoutsResponse:
        found = await self._store.in_flight(
            after_id=request.after_id, limit=request.page_size or _PAGE
        )
        return pb.ListFanoutsResponse(fanouts=[_to_pb(fanout) for fanout in found])

    async def PauseTopic(
        self, request: pb.PauseTopicRequest, context: Context
    ) -> pb.PauseTopicResponse:
        self._check(request.topic)
        await self._store.pause(request.topic)
        _log.warning("topic.paused", topic=request.topic)
        return pb.PauseTopicResponse()

    async def ResumeTopic(
        self, request: pb.ResumeTopicRequest, context: Context
    ) -> pb.ResumeTopicResponse:
        self._check(request.topic)
        await self._store.resume(request.topic)
        _log.warning("topic.resumed", topic=request.topic)
        return pb.ResumeTopicResponse()

    def _check(self, topic: str) -> None:
        names = [each.name for each in self._group.topics]
        if topic not in names:
            raise FieldInvalid({"topic": f"must be one of {', '.join(names)}"})


def _to_pb(fanout: FanoutInFlight) -> pb.FanoutInFlight:
    message = pb.FanoutInFlight(
        fanout_id=fanout.fanout_id,
        account_id=fanout.account_id,
        begin_time=to_timestamp(fanout.begin_time),
        chunks=fanout.chunks,
        chunks_done=fanout.chunks_done,
        followers=fanout.followers,
        followers_reached=fanout.reached,
    )
    if fanout.kind == FanoutKind.POST:
        message.post_id = fanout.subject_id
    else:
        message.mode_change_id = fanout.subject_id
    return message
