"""Pictures as arrays: decoded from a fixed list of formats, without transparency, resized."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

import numpy as np

from jaxgen.errors import UserError

# Pillow recognizes a file by its content. Without a list of formats, an EPS file named .png reaches Ghostscript, which
# runs it as a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MOST_PIXELS = 2**30 // 12  # 89 million, Pillow's own limit: a small file can decompress to any size


class Picture(NamedTuple):
    """A decoded picture.

    pixels: uint8 [H, W, C], C = 1 (grey) or 3 (RGB).
    digest: hash of the pixels before resizing, equal for all lossless encodings of one picture.
    animated: the file holds more frames than this first one.
    deep: it was scaled from 16 bits per channel to 8.
    """

    pixels: np.ndarray
    digest: bytes
    animated: bool
    deep: bool


@contextmanager
def opened(file: IO[bytes]) -> Iterator[Any]:
    """Open a file as a PIL image of one of `FORMATS`, for decoding within the context.

    Raises:
      ValueError: another format, or more than `MOST_PIXELS` pixels. A damaged file makes Pillow raise other types, too.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"expected {', '.join(FORMATS)}") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise ValueError(f"expected at most {MOST_PIXELS:,} pixels") from None
        with image:
            if image.width * image.height > MOST_PIXELS:  # the process may have lifted Pillow's limit
                raise ValueError(f"expected at most {MOST_PIXELS:,} pixels")
            yield image


def read(file: IO[bytes], *, image_size: int | None, background: tuple[int, int, int]) -> Picture:
    """Decode a picture as a person sees it: upright, its transparent parts in the color of the background.

    Raises:
      Exception: the file is not a readable picture of `FORMATS`; the type depends on the damage.
    """
    from PIL import ImageOps

    with opened(file) as image:
        animated = getattr(image, "is_animated", False) and image.format != "MPO"  # a JPEG with its own thumbnail
        deep = image.mode[0] in "IF"
        image.load()
        flat = image
        with suppress(Exception):  # damaged EXIF data
            flat = ImageOps.exif_transpose(image)
        flat = _opaque(_eight_bits(flat) if deep else flat, background)
        digest = hashlib.sha256(repr(flat.size).encode() + flat.convert("RGB").tobytes()).digest()
        return Picture(pixels(flat, flat.mode, image_size), digest, animated, deep)


def _eight_bits(image: Any) -> Any:
    """Return a grey image of 16 bits as one of 8."""
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65_535:
        raise ValueError("expected 8 or 16 bits per channel")
    return Image.fromarray(((values.astype(np.int64) * 255 + 32_767) // 65_535).astype(np.uint8))


def _opaque(image: Any, background: tuple[int, int, int]) -> Any:
    """Return an image as "L" or "RGB", composed on the background where it is transparent."""
    from PIL import Image

    grey = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return image.convert("L" if grey else "RGB")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("L" if grey and len(set(background)) == 1 else "RGB")


def pixels(image: Any, mode: str, image_size: int | None) -> np.ndarray:
    """Return a PIL image as uint8 [H, W, C], converted to `mode`; with `image_size`, its center square resized."""
    from PIL import ImageOps

    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size))
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def color(text: str) -> tuple[int, int, int]:
    """Return the RGB values, 0 to 255, of a color name or #rrggbb.

    Raises:
      UserError: it is neither.
    """
    from PIL import ImageColor

    if not re.fullmatch(r"[A-Za-z]+|#[0-9A-Fa-f]{6}", text) or (
        text[0] != "#" and text.lower() not in ImageColor.colormap
    ):
        raise UserError(f"--data.background {text!r}: expected a color name such as white, or #rrggbb")
    return ImageColor.getrgb(text)
