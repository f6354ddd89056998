"""Photos like those of phones, made by Pillow."""

import io
import random
import tempfile
from typing import Any, BinaryIO

from PIL import ExifTags, Image

BERLIN = {
    ExifTags.GPS.GPSLatitudeRef: "N",
    ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.0),
    ExifTags.GPS.GPSLongitudeRef: "E",
    ExifTags.GPS.GPSLongitude: (13.0, 24.0, 18.0),
}


def on_disk(content: bytes) -> BinaryIO:
    """Returns a file that is deleted when it is closed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- The caller closes it.
    file.write(content)
    file.flush()
    return file


def photo(
    width: int = 1600,
    height: int = 1200,
    *,
    orientation: int = 1,
    image_format: str = "JPEG",
    seed: int = 0,
    **options: Any,
) -> bytes:
    """Returns an encoded photo with EXIF: camera, GPS and orientation.

    The stored pixels are a smooth random picture of `width` by `height`, which compresses like a
    photo and differs for each seed.
    """
    rng = random.Random(seed)
    small = Image.new("RGB", (8, 6))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(48)])
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Photomesh"
    exif[ExifTags.Base.Model] = "Test camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(BERLIN)
    encoded = io.BytesIO()
    image.save(encoded, image_format, exif=exif, **options)
    return encoded.getvalue()
