"""The facts of a photo (blurhash, dominant colour, perceptual hash), from a small version of it."""

import cv2
import numpy as np
from cv2.typing import MatLike

_COMPONENTS_X, _COMPONENTS_Y = 4, 3

_BASE83 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz#$%*+,-.:;=?@[]^_{|}~"


def _linear() -> np.ndarray:
    values = np.arange(256) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


_LINEAR = _linear()
"""The linear light of each sRGB value, 0 to 1."""


def blurhash(picture: MatLike) -> str:
    """Returns a BlurHash (blurha.sh) of 4 by 3 components, a placeholder while a photo loads.

    Args:
        picture: BGR pixels.
    """
    # More pixels would not change the result: the finest component has three half waves.
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
    light = _LINEAR[small[..., ::-1]]
    x = np.cos(np.pi * np.outer(np.arange(_COMPONENTS_X), np.arange(64)) / 64)
    y = np.cos(np.pi * np.outer(np.arange(_COMPONENTS_Y), np.arange(64)) / 64)
    components = np.einsum("jy,ix,yxc->jic", y, x, light).reshape(-1, 3) / (64 * 64)
    average, waves = components[0], 2 * components[1:]

    most = float(np.abs(waves).max())
    step = min(82, max(0, int(most * 166 - 0.5)))
    scale = (step + 1) / 166
    levels = np.sign(waves) * np.sqrt(np.abs(waves) / scale)
    digits = np.clip(np.floor(levels * 9 + 9.5), 0, 18).astype(int)
    red, green, blue = (_srgb(float(value)) for value in average)
    return "".join(
        (
            _base83((_COMPONENTS_X - 1) + (_COMPONENTS_Y - 1) * 9, 1),
            _base83(step, 1),
            _base83(red << 16 | green << 8 | blue, 4),
            *(_base83(int(r) * 361 + int(g) * 19 + int(b), 2) for r, g, b in digits),
        )
    )


def _srgb(light: float) -> int:
    value = min(1.0, max(0.0, light))
    if value <= 0.0031308:
        return int(value * 12.92 * 255 + 0.5)
    return int((1.055 * value ** (1 / 2.4) - 0.055) * 255 + 0.5)


def _base83(value: int, length: int) -> str:
    return "".join(_BASE83[value // 83**place % 83] for place in reversed(range(length)))


def dominant_colour(picture: MatLike) -> str:
    """Returns the most frequent colour of a picture, as #rrggbb.

    Not the mean: the mean of a blue sea under a red sky is a colour that the picture lacks.
    """
    small = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).reshape(-1, 3)
    # Counts colours in bins of eight levels per channel, and averages the fullest bin.
    blue, green, red = small.T.astype(int) >> 5
    bins = red << 6 | green << 3 | blue
    fullest = np.bincount(bins).argmax()
    blue, green, red = small[bins == fullest].mean(axis=0).round().astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def perceptual_hash(picture: MatLike) -> str:
    """Returns 64 bits as 16 hex digits. The hashes of copies of a photo differ in few bits.

    This is pHash: each bit says whether one of the DCT's 8 by 8 lowest frequencies is above their
    median.
    """
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    lowest = cv2.dct(grey.astype(np.float32))[:8, :8].flatten()
    # The median excludes the first value, which is the brightness and not a feature.
    bits = lowest > np.median(lowest[1:])
    return np.packbits(bits).tobytes().hex()
