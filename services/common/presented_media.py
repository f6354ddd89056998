"""Media as people see them, wherever they see them: alone, or in a post."""

from photomesh.media.v1.media_internal_service_pb2 import StoredMedia
from photomesh.media.v1.media_service_pb2 import Media

from services.common.cdn import UrlSigner


def present_media(item: StoredMedia, signer: UrlSigner) -> Media:
    """Returns a media item with URLs that the CDN accepts in place of object names."""
    media = Media()
    write_media(media, item, signer)
    return media


def write_media(media: Media, item: StoredMedia, signer: UrlSigner) -> None:
    """Writes a media item into an empty message, which may be a part of an answer.

    A message that is made first and then put into another is copied, with all of its variants.
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
