"""Converts stored media to the public message, for the methods of media and for posts."""

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import Media

from services.domain.cdn import UrlSigner


def present_media(item: StoredMedia, signer: UrlSigner) -> Media:
    """Returns a media item with signed CDN URLs in place of object names."""
    media = Media()
    write_media(media, item, signer)
    return media


def write_media(media: Media, item: StoredMedia, signer: UrlSigner) -> None:
    """Writes a media item into an empty message, such as a field of a response.

    This avoids a copy: protobuf copies a message, with all its variants, when it is assigned to
    another one.
    """
    media.media_id = item.media_id
    media.owner_id = item.owner_id
    media.state = item.state
    media.failure = item.failure
    media.width = item.width
    media.height = item.height
    media.create_time.CopyFrom(item.create_time)
    media.blurhash = item.blurhash
    media.dominant_colour = item.dominant_colour
    media.perceptual_hash = item.perceptual_hash
    if item.variants:
        # One signature covers all variants.
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
