"""Pictures in all the ways that rows hold them, with the pixels that a viewer shows."""

import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from raysearch.data.bad_rows import BadRow
from raysearch.data.pictures import MAX_PIXELS, open_image, picture_from


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def red_over_blue() -> Image.Image:
    """40 wide, 80 high."""
    image = Image.new("RGB", (40, 80), "blue")
    image.paste("red", (0, 0, 40, 40))
    return image


UNDO = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}


@pytest.mark.parametrize("orientation", [1, *UNDO])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_pictures_are_upright(orientation: int, form: str) -> None:
    """Also as `transformers.image_utils.load_image` and the datasets library show them."""
    shown = red_over_blue()
    stored = shown.transpose(Image.Transpose[UNDO[orientation]]) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(saved(stored, form, exif=exif))
    assert opened.size == (40, 80)
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(shown)).mean() < 3


def test_opaque_pictures_are_those_of_the_loaders_of_transformers_and_datasets() -> None:
    import datasets
    from transformers.image_utils import load_image

    noise = Image.effect_noise((37, 29), 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [saved(noise.convert(mode)) for mode in ("1", "L", "P", "RGB")]
    files += [saved(noise.convert("RGB"), "JPEG", exif=exif), saved(noise.convert("CMYK"), "JPEG"), saved(noise, "GIF")]
    for content in files:
        ours = np.asarray(open_image(content))
        assert np.array_equal(ours, np.asarray(load_image(Image.open(io.BytesIO(content))).convert("RGB")))
        decoded = datasets.Image().decode_example({"bytes": content, "path": None})
        assert np.array_equal(ours, np.asarray(decoded.convert("RGB")))


def test_transparency_is_white() -> None:
    """As transformers makes RGB of pictures with an alpha channel."""
    from transformers.image_transforms import convert_to_rgb

    black = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    black.paste((0, 0, 0, 255), (20, 28, 44, 36))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert len(np.unique(np.asarray(open_image(saved(black))))) == 2
    assert open_image(saved(half)).getpixel((0, 0)) == (255, 127, 127)
    for image in (black, half):
        assert np.array_equal(np.asarray(open_image(saved(image))), convert_to_rgb(image, return_numpy=True))
    grey = Image.merge("LA", [Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)])
    assert open_image(saved(grey)).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert open_image(saved(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(saved(Image.new("RGB", (4, 4)), transparency=(0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_and_floats_are_scaled() -> None:
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64)
    wanted = np.rint(ramp / 257)
    for form in ("PNG", "TIFF"):
        opened = np.asarray(open_image(saved(Image.fromarray(ramp.astype(np.uint16)), form)))
        assert len(np.unique(opened)) == 256
        assert np.abs(opened[:, :, 0] - wanted).max() <= 1
    dark = np.full((4, 4), 100, np.uint16)
    assert open_image(saved(Image.fromarray(dark))).getpixel((0, 0)) == (0, 0, 0), "as a viewer shows it"
    for scale in (1.0, 255.0, 65535.0, 1e9):
        floats = Image.fromarray((ramp / 65535 * scale).astype(np.float32))
        assert np.abs(np.asarray(open_image(saved(floats, "TIFF")))[:, :, 0] - wanted).max() <= 1
    signed = Image.fromarray(np.array([[-10.0, 0.0], [10.0, 0.0]], np.float32))
    assert np.asarray(open_image(saved(signed, "TIFF")))[:, :, 0].tolist() == [[0, 128], [255, 128]]
    with pytest.raises(BadRow, match="not numbers"):
        open_image(saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


HOSTILE = {
    "too many pixels": _png(60_000, 60_000),
    "a few too many": _png(13_300, 13_300),
    "none": _png(0, 0),
    "a text that unpacks to 200 MB": _png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(b"a" * 200_000_000))),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\nshowpage\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.4\n",
    "empty": b"",
    "cut short": saved(Image.effect_noise((64, 64), 50).convert("RGB"))[:600],
    "text": "no picture \ud83d".encode("utf-8", "surrogatepass"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_bad_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(HOSTILE[name])
    for picture in (HOSTILE[name], tmp_path / "a.png"):
        with pytest.raises(BadRow, match="can't be read") as error:
            open_image(picture)
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= 300


def test_a_picture_of_the_most_pixels_is_read() -> None:
    side = int(MAX_PIXELS**0.5)
    assert open_image(saved(Image.new("1", (side, side)))).size == (side, side)


def test_rows_hold_pictures_in_these_ways(tmp_path: Path) -> None:
    image = red_over_blue()
    content = saved(image)
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a b.png"
    path.write_bytes(content)
    text = base64.b64encode(content).decode()
    folders = (tmp_path, tmp_path / "images")
    ways: list[Any] = [
        "a b.png", "images/a b.png", str(path), path, f"file://{path}", f"file://{str(path).replace(' ', '%20')}",
        content, bytearray(content), image, text, f"data:image/png;base64,{text}",
        f"DATA:image/png;BASE64,{text}",
        "\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        {"bytes": content, "path": "a b.png"}, {"bytes": None, "path": "a b.png"}, {"path": "a b.png"},
        {"url": "a b.png"},
        {"image": "a b.png"}, {"image_url": {"url": f"data:image/png;base64,{text}"}}, {"base64": text},
    ]  # fmt: skip
    for way in ways:
        assert open_image(picture_from(way, folders)).getpixel((0, 0)) == (255, 0, 0), str(way)[:60]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://a.b/c.png", "https://a.b/c.png: is a URL"),
        ("s3://a/c.png", "is a URL"),
        ({"url": "http://a/c.png"}, "is a URL"),
        ("c.png", "not found under /no or /where"),
        ("a\0b.png", "not found"),
        ("a" * 5000, r"\.\.\. \(5000 characters\) not found"),
        ("\ud83d.png", r"\\ud83d\.png not found"),
        (".", "not found"),
        ("", "that is str"),
        (7, "that is int"),
        (["c.png"], "that is list"),
        ({"x": 1}, "that is NoneType"),
        ("data:image/png;base64,%%%", "its base64 is damaged"),
        ("data:text/plain,hello", "not a base64 data URI"),
    ],
)
def test_what_is_no_picture_is_said(given: Any, said: str) -> None:
    with pytest.raises(BadRow, match=said) as error:
        picture_from(given, (Path("/no"), Path("/where")))
    assert json.dumps(str(error.value)).isascii() or str(error.value).isprintable()
    assert len(str(error.value)) <= 300


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadRow, match="not found"):
        picture_from("a.png", (tmp_path,))
    with pytest.raises(BadRow, match="no such file"):
        open_image(tmp_path / "a.png")


def _seeds() -> list[bytes]:
    base = Image.effect_noise((37, 29), 50).convert("RGB")
    forms = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "QOI"]
    forms += ["WEBP"] if features.check("webp") else []
    return [saved(base, form) for form in forms]


SEEDS = _seeds()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_pictures_are_opened_or_bad_rows(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        kind = data.draw(st.sampled_from(["byte", "number", "cut", "insert"]))
        if kind == "byte" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "number":
            content[at : at + 4] = struct.pack("<I", data.draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 100_000])))
        elif kind == "cut":
            del content[at:]
        else:
            content[at:at] = data.draw(st.binary(max_size=8))
    try:
        assert open_image(bytes(content)).mode == "RGB"
    except BadRow as error:
        said = str(error)
        assert said.isprintable()
