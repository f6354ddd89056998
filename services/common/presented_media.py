"""Media as people see them, wherever they see them: alone, or in a post."""

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import Media

from services.common.cdn import UrlSigner


def present_media(item: StoredMedia, signer: UrlSigner) -> Media:
    """Returns a media item with URLs that the CDN accepts in place of object names."""
    media = Media(
        media_id=item.media_id,
        owner_id=item.owner_id,
        state=item.state,
        failure=item.failure,
        width=item.width,
        height=item.height,
        create_time=item.create_time,
        blurhash=item.blurhash,
        dominant_colour=item.dominant_colour,
        perceptual_hash=item.perceptual_hash,
    )
    if item.variants:
        # One signature is good for all of them.
        signed = signer.sign(item.key_prefix)
        for variant in item.variants:
            media.variants.add(
                name=variant.name,
                content_type=variant.content_type,
                width=variant.width,
                height=variant.height,
                size_bytes=variant.size_bytes,
                url=signed.url(variant.object_name),
            )
    return media
