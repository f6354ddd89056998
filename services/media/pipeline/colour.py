"""Conversion from ICC profiles to sRGB, with littleCMS.

Variants contain no profile, and viewers show pictures without a profile as sRGB.
"""

import io

import cv2
import numpy as np
from cv2.typing import MatLike
from PIL import Image, ImageCms

_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(picture: MatLike, profile: bytes | None) -> MatLike:
    """Converts BGR or BGRA pixels (alpha not premultiplied) from a profile to sRGB.

    Ignores a profile that cannot be read or that does not match the picture's colour space, like a
    viewer that does not support profiles.
    """
    found = _opened(profile)
    if found is None:
        return picture
    space = found.profile.xcolor_space.strip()
    if space not in ("RGB", "GRAY"):
        return picture
    if space == "GRAY":
        image, mode = Image.fromarray(np.ascontiguousarray(picture[..., 0])), "L"
    else:
        image, mode = Image.fromarray(cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)), "RGB"
    converted = _converted(image, found, mode)
    if converted is None:
        return picture
    colours = cv2.cvtColor(np.asarray(converted), cv2.COLOR_RGB2BGR)
    if picture.shape[2] == 4:
        return cv2.merge((*cv2.split(colours), picture[..., 3]))
    return colours


def inks_to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts a CMYK or LAB picture to sRGB. Without a usable profile, does so as browsers do."""
    found = ImageCms.ImageCmsProfile(_LAB) if image.mode == "LAB" else _opened(profile)
    wanted = {"CMYK": "CMYK", "LAB": "Lab"}[image.mode]
    if found is not None and found.profile.xcolor_space.strip() == wanted:
        converted = _converted(image, found, image.mode)
        if converted is not None:
            return converted
    return image.convert("RGB")


def _opened(profile: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """Returns the parsed profile; None: it is missing, cannot be read, or is sRGB."""
    if profile is None:
        return None
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(found)
    except (OSError, ImageCms.PyCMSError, ValueError):
        return None
    # Most photos have an sRGB profile, under one of a few names. Converting them from sRGB to sRGB
    # would only add rounding errors.
    return None if description.startswith("sRGB") else found


def _converted(
    image: Image.Image, profile: ImageCms.ImageCmsProfile, mode: str
) -> Image.Image | None:
    try:
        transform = ImageCms.buildTransform(profile, _SRGB, mode, "RGB", _INTENT, _FLAGS)
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        return None
