"""Pictures as rows hold them, and their pixels as people see them."""

import base64
import binascii
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from raysearch.data.bad_rows import BadRow
from raysearch.errors import first_line
from raysearch.files import is_storage_problem

Picture = Image.Image | Path | bytes
"""An image, decoded, or its file's path or bytes."""

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA",
    "TIFF", "WEBP",
)  # fmt: skip
"""Formats that are read, by Pillow's names: none of those that start a program (EPS) or need other packages."""
MAX_PIXELS = 89_478_485
"""Most pixels of a picture: Pillow's own bound, above which it warns."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such pictures are refused by name
_SOURCE_KEYS = ("bytes", "path", "url", "image", "image_url", "source", "base64", "data")
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AKg", "AAAA")
_SHORTEST_BASE64 = 40
"""Characters; those of the smallest picture, a GIF of one pixel."""
_NUM_CHARACTERS_SHOWN = 120


def picture_from(given: Any, folders: Sequence[Path] = ()) -> Picture:
    """A picture as a row holds it: decoded, bytes, `{bytes, path}`, a path, a `data:` URI or base64 text.

    Args:
        folders: where relative paths are looked up, in this order; none for the current folder.

    Raises:
        BadRow: it is none of these, a URL, or a file that is not there.
    """
    if isinstance(given, Mapping):
        given = next((given[key] for key in _SOURCE_KEYS if given.get(key)), None)
        if isinstance(given, Mapping):
            return picture_from(given, folders)
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, Image.Image | Path):
        return given if isinstance(given, Image.Image) else _found(given, folders)
    if not isinstance(given, str) or not given.strip():
        raise BadRow(f"an image that is {type(given).__name__}, not a path or a picture")
    decoded = _from_base64(given)
    if decoded is not None:
        return decoded
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", given)
    if scheme and scheme[1].lower() != "file":
        raise BadRow(f"image {_shown(given)}: is a URL, and pictures are not downloaded; give the path of a file")
    return _found(Path(unquote(urlsplit(given).path) if scheme else given), folders)


def open_image(image: Picture) -> Image.Image:
    """The pixels that a viewer shows, in RGB: turned as EXIF says, transparency on white, 16 bits and floats scaled.

    For pictures of 8 bits they are those of `load_image` and `convert_to_rgb` of transformers.

    Raises:
        BadRow: the file is missing, in none of `FORMATS`, damaged, or larger than `MAX_PIXELS`.
        OSError: the storage is lost.
    """
    named = f"{len(image)} bytes" if isinstance(image, bytes) else _shown(image) if isinstance(image, Path) else "given"
    try:
        if isinstance(image, Image.Image):
            return _as_seen(image)
        if isinstance(image, Path) and not image.is_file():  # a pipe would be waited for
            raise BadRow("no such file")
        source = io.BytesIO(image) if isinstance(image, bytes) else image
        Image.init()
        with Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
            return _as_seen(opened)
    except UnidentifiedImageError:
        raise BadRow(f"image {named}: can't be read (not {', '.join(FORMATS[:-1])} or {FORMATS[-1]})") from None
    except Exception as error:  # decoders raise whatever they like
        if is_storage_problem(error):
            raise
        raise BadRow(f"image {named}: can't be read ({first_line(error)})") from None


def _as_seen(image: Image.Image) -> Image.Image:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise BadRow(f"{width} x {height} pixels; at most {MAX_PIXELS:,} are read")
    image.load()
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scaled(np.asarray(image).astype(np.float64), 65_535 if image.mode.startswith("I;") else None)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say; as it is where they are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of the parser, whatever it meets
        return image


def _scaled(values: np.ndarray, most: float | None) -> Image.Image:
    """Grey levels of one channel, from 0 to `most`; None for 1, 255 or 65,535, the first that holds all, else scaled
    from the least to the largest."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise BadRow("pixels that are not numbers")
    if most is None and (low < 0 or high > 65_535):
        values, most = values - low, max(high - low, 1e-12)
    most = most or next(top for top in (1, 255, 65_535) if high <= top)
    return Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8)).convert("RGB")


def is_base64(text: str) -> bool:
    """Whether a text looks like a picture in base64, with or without `data:` in front."""
    begins = text.lstrip()[:16]
    return begins[:5].lower() == "data:" or (len(text) >= _SHORTEST_BASE64 and begins.startswith(_BASE64_STARTS))


def _from_base64(text: str) -> bytes | None:
    """The bytes of a `data:` URI or of base64 text that begins as a picture; None for any other text."""
    text = text.strip()
    if text[:5].lower() == "data:":
        header, comma, body = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadRow(f"image {_shown(text)}: not a base64 data URI")
    elif is_base64(text):
        body = text
    else:
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        if body is text:
            return None
        raise BadRow(f"image {_shown(text)}: its base64 is damaged") from None


def _found(path: Path, folders: Sequence[Path]) -> Path:
    paths = [folder / path for folder in folders] or [path]
    for candidate in paths:
        try:
            if candidate.is_file():
                return candidate
        except (OSError, ValueError) as error:  # a name that no file can have
            if is_storage_problem(error):
                raise
    if "\\" in str(path):
        return _found(Path(str(path).replace("\\", "/")), folders)
    raise BadRow(f"image {_shown(path)} not found under {' or '.join(map(str, folders)) or '.'}")


def _shown(value: str | Path) -> str:
    text = str(value)
    return text if len(text) <= _NUM_CHARACTERS_SHOWN else f"{text[:_NUM_CHARACTERS_SHOWN]}... ({len(text)} characters)"
