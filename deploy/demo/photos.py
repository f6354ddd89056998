"""The photos of the demo: those of a folder, or generated ones that resemble a phone's."""

import colorsys
import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageDraw, ImageFilter

MAX_BYTES = 32 * 2**20
"""The maximum size of one upload."""

_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
)

# The name, latitude, longitude, and hour of a generated photo.
_PLACES = (
    ("Dawn over the Tempelhof field", 52.473, 13.401, 6),
    ("Harbour lights, Lisbon", 38.708, -9.136, 21),
    ("First snow on the Zugspitze", 47.421, 10.985, 9),
    ("Rice terraces near Ubud", -8.368, 115.267, 11),
    ("Night bus, Valparaíso", -33.047, -71.612, 23),
    ("Fog on the Golden Gate", 37.820, -122.478, 8),
    ("Evening at Lake Bled", 46.363, 14.094, 19),
    ("Low tide, Whitby", 54.489, -0.614, 16),
)


@dataclass(frozen=True)
class Photo:
    """A file to upload."""

    name: str
    """The caption of its post."""
    content_type: str
    content: bytes


class NoPhotos(Exception):
    """The folder contains nothing that can be uploaded; the text is for users."""


def from_folder(folder: Path) -> tuple[list[Photo], list[str]]:
    """Returns the folder's photos, and one line for each skipped file with the reason.

    Raises:
        NoPhotos: the folder has no photos.
    """
    if not folder.is_dir():
        raise NoPhotos(f"{folder} is not a folder")
    photos: list[Photo] = []
    skipped: list[str] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content_type = _content_type(file.read(16))
        if content_type is None:
            skipped.append(f"{path.name}: not a JPEG, PNG or WebP file")
        elif path.stat().st_size > MAX_BYTES:
            skipped.append(f"{path.name}: larger than 32 MiB")
        else:
            name = path.stem.replace("_", " ").replace("-", " ")
            photos.append(Photo(name, content_type, path.read_bytes()))
    if not photos:
        raise NoPhotos(f"{folder} contains no JPEG, PNG or WebP file of up to 32 MiB")
    return photos, skipped


def _content_type(beginning: bytes) -> str | None:
    for magic, content_type in _MAGIC:
        if beginning.startswith(magic):
            return content_type
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "image/webp"
    return None


def generated() -> list[Photo]:
    """Generates landscapes of up to 12 megapixels, with EXIF, GPS, and every orientation."""
    photos = []
    for number, (name, latitude, longitude, hour) in enumerate(_PLACES):
        orientation = number % 8 + 1
        upright = _landscape(random.Random(number), hour, wide=number % 3 != 1)
        image = _as_stored(upright, orientation)
        content = io.BytesIO()
        image.save(
            content,
            "JPEG",
            quality=90,
            exif=_exif(latitude, longitude, hour, orientation, number),
        )
        photos.append(Photo(name, "image/jpeg", content.getvalue()))
    return photos


def _landscape(rng: random.Random, hour: int, *, wide: bool) -> Image.Image:
    """Paints a sky with a sun or moon above ridges that fade with distance."""
    width, height = (1000, 750) if wide else (750, 1000)
    hue = rng.random()
    day = math.sin(math.pi * (hour - 5) / 17) if 5 < hour < 22 else 0.05
    image = Image.new("RGB", (width, height))
    paint = ImageDraw.Draw(image)
    for row in range(height):
        depth = row / height
        paint.line(
            [(0, row), (width, row)],
            fill=_rgb(0.58 + 0.45 * depth * (1 - day), 0.6 - 0.4 * depth, 0.15 + 0.8 * day),
        )
    x, y = rng.uniform(0.2, 0.8) * width, (0.75 - 0.6 * day) * height * 0.6
    radius = width * 0.05
    paint.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(255, 244, 214))
    image = image.filter(ImageFilter.GaussianBlur(3))
    paint = ImageDraw.Draw(image)
    for distance in range(5, 0, -1):
        ridge = list(_ridge(rng, width, height * (1 - 0.13 * distance), height * 0.09))
        shade = _rgb(hue, 0.35 + 0.08 * (5 - distance), (0.12 + 0.13 * distance) * (0.35 + day))
        paint.polygon([(0, height), *ridge, (width, height)], fill=shade)
    grain = Image.effect_noise((width, height), 14).convert("RGB")
    image = Image.blend(image, grain, 0.06)
    return image.resize((width * 4, height * 4), Image.Resampling.BICUBIC)


def _ridge(rng: random.Random, width: int, top: float, scale: float) -> Iterator[tuple[int, float]]:
    phases = [(rng.uniform(0, 6.3), rng.uniform(0.5, 1.5) * 2**octave) for octave in range(5)]
    for x in range(0, width + 5, 5):
        bends = sum(
            math.sin(phase + 6.3 * waves * x / width) / 1.9**octave
            for octave, (phase, waves) in enumerate(phases)
        )
        yield x, top + scale * bends


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(
        hue % 1, max(0, min(1, saturation)), max(0, min(1, value))
    )
    return round(red * 255), round(green * 255), round(blue * 255)


# The inverse of the transformation that a viewer applies for each EXIF orientation.
_STORED: Sequence[Image.Transpose | None] = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_270,
)


def _as_stored(upright: Image.Image, orientation: int) -> Image.Image:
    """Returns the pixels as a camera with this orientation would store them."""
    transpose = _STORED[orientation - 1]
    return upright if transpose is None else upright.transpose(transpose)


def _exif(latitude: float, longitude: float, hour: int, orientation: int, day: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Photomesh"
    exif[ExifTags.Base.Model] = "Demo"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.DateTime] = f"2026:05:{day + 1:02} {hour:02}:15:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: "N" if latitude >= 0 else "S",
            ExifTags.GPS.GPSLatitude: _degrees(abs(latitude)),
            ExifTags.GPS.GPSLongitudeRef: "E" if longitude >= 0 else "W",
            ExifTags.GPS.GPSLongitude: _degrees(abs(longitude)),
        }
    )
    return exif


def _degrees(angle: float) -> tuple[float, float, float]:
    whole_minutes, seconds = divmod(angle * 3600, 60)
    degrees, minutes = divmod(whole_minutes, 60)
    return degrees, minutes, round(seconds, 2)
