"""The internal methods of the media service, and media items as other services store them."""

from photomesh.media.v1 import media_internal_service_pb2 as pb
from photomesh.media.v1.media_internal_service_pb2_grpc import MediaInternalServiceServicer
from photomesh.media.v1.media_service_pb2 import MediaFailure, MediaState

from services.chassis.database.ids import created_at
from services.chassis.rpc import Context
from services.media.pipeline.outputs import Fact
from services.media.store import Media, MediaStore


class MediaInternalService(MediaInternalServiceServicer):
    """The internal methods, for other services."""

    def __init__(self, store: MediaStore) -> None:
        self._store = store

    async def BatchGetMedia(
        self, request: pb.BatchGetMediaRequest, context: Context
    ) -> pb.BatchGetMediaResponse:
        found = await self._store.many(request.media_ids)
        return pb.BatchGetMediaResponse(
            media=(
                stored_media(media) if (media := found.get(media_id)) else pb.StoredMedia()
                for media_id in request.media_ids
            )
        )


def stored_media(media: Media) -> pb.StoredMedia:
    """Returns a media item without URLs, which are signed when it is presented."""
    message = pb.StoredMedia(
        media_id=media.media_id,
        owner_id=media.owner_id,
        state=MediaState.Value(f"MEDIA_STATE_{media.state}"),
        failure=MediaFailure.Value(f"MEDIA_FAILURE_{media.failure or 'UNSPECIFIED'}"),
        width=media.width,
        height=media.height,
        key_prefix=media.key_prefix,
        blurhash=media.facts.get(Fact.BLURHASH, ""),
        dominant_colour=media.facts.get(Fact.DOMINANT_COLOUR, ""),
        perceptual_hash=media.facts.get(Fact.PERCEPTUAL_HASH, ""),
        # The fields have the same names.
        variants=(pb.StoredVariant(**vars(variant)) for variant in media.variants),
    )
    message.create_time.FromDatetime(created_at(media.media_id))
    return message
