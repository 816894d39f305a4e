"""One way from a picture to pixels: a file, its bytes and the PIL image of it look the same.

The expected colours are stated by hand, not computed by the code under test.
"""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from flamingo_jax.data.images import colours, read
from flamingo_jax.data.images.colours import MEAN_COLOUR
from flamingo_jax.data.images.read import as_png, decode, encoded_of
from flamingo_jax.data.schema import CorruptRecord
from flamingo_jax.inference.visuals import Image, load_frames

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# EXIF data with the orientation 6: the picture lies on its side.
EXIF = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
# Four colours, and wider than high: every turn gives another picture.
PICTURE = np.array([[(250, 20, 20), (20, 200, 20), (20, 20, 250)], [(90, 90, 90)] * 3], np.uint8)
PICTURE = PICTURE.repeat(16, axis=0).repeat(16, axis=1)
TURNED = np.rot90(PICTURE, -1)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width, depth, colour_type, row, *extra):
    """A PNG of one row of packed pixels, with extra chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def pixels(encoded, background="mean"):
    """The pixels of one row at their own size, in all forms of the picture."""
    image = PIL.Image.open(io.BytesIO(encoded))
    size = max(image.size)
    found = read.decode_inner(encoded, size, background=background)
    np.testing.assert_array_equal(
        read.decode_inner(as_png(encoded), size, background=background), found
    )
    for form in (encoded, image):
        frames = load_frames(form, size, background=background)
        np.testing.assert_array_equal(frames[0], decode(encoded, size, background=background))
    return [tuple(each) for each in found[0].tolist()]


BLUISH = (7, 8, 9)
CLEAR_BLUISH = (b"tRNS", bytes([0, 7, 0, 8, 0, 9]))
HALF_CLEAR = np.array([[[1, 2, 3, 255], [*BLUISH, 0]]], np.uint8)
PALETTE = (b"PLTE", bytes([250, 20, 20, 20, 20, 250, 0, 0, 0, 9, 9, 9]))


@pytest.mark.parametrize(
    ("encoded", "seen", "hidden"),
    [
        (png(2, 1, 0, b"\x40", (b"tRNS", b"\0\1")), BLACK, WHITE),
        (png(2, 2, 0, b"\x30", (b"tRNS", b"\0\3")), BLACK, WHITE),
        (png(2, 4, 0, b"\x0f", (b"tRNS", b"\0\x0f")), BLACK, WHITE),
        (png(2, 8, 0, b"\0\xff", (b"tRNS", b"\0\xff")), BLACK, WHITE),
        (png(2, 16, 0, b"\0\0\xff\xff", (b"tRNS", b"\xff\xff")), BLACK, WHITE),
        (png(2, 8, 2, bytes([1, 2, 3, *BLUISH]), CLEAR_BLUISH), (1, 2, 3), BLUISH),
        (png(2, 16, 2, bytes(6) + bytes([9] * 6), (b"tRNS", bytes([9] * 6))), BLACK, (9, 9, 9)),
        (png(2, 2, 3, b"\x10", PALETTE, (b"tRNS", b"\xff\0")), (250, 20, 20), (20, 20, 250)),
        (png(2, 8, 3, b"\0\1", PALETTE, (b"tRNS", b"\xff\0")), (250, 20, 20), (20, 20, 250)),
        (png(2, 8, 4, bytes([0, 255, 70, 0])), BLACK, (70, 70, 70)),
        (png(2, 16, 4, bytes([0, 0, 255, 255, 70, 70, 0, 0])), BLACK, (70, 70, 70)),
        (png(2, 8, 6, bytes([1, 2, 3, 255, *BLUISH, 0])), (1, 2, 3), BLUISH),
        (png(2, 16, 6, bytes([5] * 6) + b"\xff\xff" + bytes(8)), (5, 5, 5), BLACK),
        (saved(PIL.Image.fromarray(HALF_CLEAR), "TIFF"), (1, 2, 3), BLUISH),
    ],
    ids="1 2 4 8 16 RGB RGB16 P2 P8 LA LA16 RGBA RGBA16 TIFF".split(),
)  # fmt: skip
def test_every_kind_of_transparency(encoded, seen, hidden):
    """PIL leaves the transparent value of 2, 4 and 16 bits as it is in the file."""
    assert pixels(encoded) == [seen, MEAN_COLOUR]
    assert pixels(encoded, "white") == [seen, WHITE]
    assert pixels(encoded, "none") == [seen, hidden]


def test_half_transparent_is_half_of_the_background():
    half = png(1, 8, 6, bytes([200, 0, 0, 128]))
    assert pixels(half, "white") == [(227, 127, 127)]
    assert pixels(half, "none") == [(200, 0, 0)]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LA"])
def test_modes_that_only_pil_images_have(mode):
    image = PIL.Image.new("RGBA", (4, 4), (60, 60, 60, 0)).convert("LA" if "L" in mode else "RGBA")
    image = image.convert(mode) if mode != "PA" else PIL.Image.new("PA", (4, 4), (0, 0))
    assert (load_frames(image, 4) == MEAN_COLOUR).all()


def test_a_black_drawing_without_a_background_can_be_seen():
    """Also as a palette, in grey, and as the first frame of an animation."""
    drawing = np.zeros((32, 32, 4), np.uint8)
    drawing[8:24, 8:24, 3] = 255
    image = PIL.Image.fromarray(drawing)
    grey = image.convert("LA")
    animation = {"save_all": True, "append_images": [PIL.Image.new("RGBA", (32, 32), "red")]}
    files = [saved(image), saved(grey), saved(image, "WEBP", lossless=True), saved(image, "AVIF")]
    files += [saved(image, kind, **animation) for kind in ("GIF", "PNG", "WEBP")]
    for encoded in (*files, saved(image, "GIF"), saved(image.quantize(4), "PNG")):
        square = decode(encoded, 32).astype(int)
        np.testing.assert_allclose(square[16, 16], BLACK, atol=4)
        np.testing.assert_allclose(square[1, 1], MEAN_COLOUR, atol=4)


def test_a_gif_is_transparent_around_its_first_frame():
    """As in browsers; PIL has the first colour of the palette there."""
    black = bytearray(saved(PIL.Image.new("P", (4, 4), 0), "GIF"))
    black[6:10] = struct.pack("<HH", 8, 8)  # the canvas
    frame = black.index(b",\0\0\0\0\4\0\4\0")
    black[frame + 1 : frame + 5] = struct.pack("<HH", 2, 2)
    for form in (bytes(black), as_png(bytes(black)), PIL.Image.open(io.BytesIO(bytes(black)))):
        square = load_frames(form, 8)[0]
        assert (square[2:6, 2:6] == BLACK).all() and (square[1] == MEAN_COLOUR).all()
    assert (read.probe(bytes(black)).width, read.probe(bytes(black)).format) == (8, "GIF")
    with pytest.raises(CorruptRecord) as found:
        read.probe(bytes(black[:-8]))
    assert found.value.reason == "truncated_image"


RAMP = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.uint16) * 257, "PPM"),
        ((RAMP.astype(">u2") * 257).astype(">u2"), "TIFF"),
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),
        (RAMP.astype(np.int32) * 10_000 - 1000, "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP / 255).astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 257, "TIFF"),
        (RAMP.astype(np.float32) - 128, "TIFF"),
        (RAMP.astype(np.float32) * 1e9, "TIFF"),
    ],
    ids="PNG TIFF PPM big-endian I I-255 I-wide F-255 F-1 F-16 F-signed F-wide".split(),
)
def test_more_than_8_bits(values, kind):
    """16 bits are 0..65535; numbers without a stated range fill the range of their values."""
    encoded = saved(PIL.Image.fromarray(values), kind)
    expected = np.repeat(RAMP[..., None], 3, axis=-1).astype(int)
    np.testing.assert_allclose(decode(encoded, 8).astype(int), expected, atol=1)
    np.testing.assert_array_equal(decode(as_png(encoded), 8), decode(encoded, 8))
    np.testing.assert_array_equal(
        load_frames(PIL.Image.fromarray(values), 8)[0], decode(encoded, 8)
    )


def test_dark_16_bits_stay_dark():
    dark = PIL.Image.fromarray(np.full((8, 8), 200, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert decode(saved(dark, kind), 8).max() == 0


def test_numbers_that_are_not_finite_are_dark():
    values = (RAMP / 255).astype(np.float32)
    values[0, 0], values[7, 7], values[3, 3] = np.nan, np.inf, -np.inf
    square = decode(saved(PIL.Image.fromarray(values), "TIFF"), 8)
    assert square[0, 0].max() == square[7, 7].max() == square[3, 3].max() == 0
    assert square[7, 6, 0] == RAMP[7, 6]
    nothing = PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32))
    assert decode(saved(nothing, "TIFF"), 8).max() == 0


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "CMYK", "RGBX", "1", "L", "P"])
def test_every_mode_of_pil_is_its_rgb(mode):
    image = PIL.Image.fromarray(PICTURE).convert("RGB")
    image = (
        image.convert("YCbCr").convert("RGB").convert(mode)
        if mode != "LAB"
        else PIL.Image.new("LAB", (48, 32), (150, 128, 128))
    )
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_frames(image, 48)[0, 8:40], expected)


def test_a_cmyk_jpeg_of_adobe_is_not_inverted():
    red = saved(PIL.Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(decode(red, 16)[8, 8].astype(int), (255, 0, 0), atol=4)


def test_a_large_image_is_converted_in_strips(monkeypatch):
    values = [
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.uint16) * 257,
        np.dstack([RAMP, RAMP, RAMP, RAMP[::-1]]),
    ]
    whole = [load_frames(PIL.Image.fromarray(each), 8) for each in values]
    monkeypatch.setattr(colours, "_STRIP", 24)  # three rows
    for each, expected in zip(values, whole, strict=True):
        np.testing.assert_array_equal(load_frames(PIL.Image.fromarray(each), 8), expected)


def on_its_side(kind):
    """(file, what it is): the orientation at every place where a writer puts one."""
    image = PIL.Image.fromarray(PICTURE)
    if kind == "TIFF":
        return saved(image, "TIFF", tiffinfo={0x0112: 6})
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    return saved(image, kind, exif=EXIF, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("image_fit", ["pad", "crop", "squash"])
def test_every_writer_of_an_orientation(kind, image_fit, tmp_path):
    encoded = on_its_side(kind)
    (tmp_path / "file").write_bytes(encoded)
    found = decode(encoded, 48, image_fit)
    expected = read.fit(np.ascontiguousarray(TURNED), 48, image_fit)
    assert np.abs(found.astype(int) - expected).mean() < 5, "coded colours differ by a few levels"
    info = read.probe(encoded)
    assert (info.width, info.height) == (32, 48)
    with PIL.Image.open(tmp_path / "file") as opened:
        for form in (Image(tmp_path / "file"), encoded, opened):
            np.testing.assert_array_equal(load_frames(form, 48, image_fit=image_fit)[0], found)
        opened.load()
        exact = load_frames(opened, 48, image_fit=image_fit)[0].astype(int)
    assert np.abs(exact - found).mean() < (2 if kind in ("JPEG", "MPO") else 1e-9)
    if kind not in ("JPEG", "MPO"):
        np.testing.assert_array_equal(decode(as_png(encoded), 48, image_fit), found)


JPEG, PNG = (saved(PIL.Image.fromarray(PICTURE), kind) for kind in ("JPEG", "PNG"))
OTHER_EXIF = PIL.Image.Exif()
OTHER_EXIF[0x010F] = "a maker"
NO_ORIENTATION = {
    "eXIf behind the pixels": PNG[:-12] + chunk(b"eXIf", EXIF[6:]) + PNG[-12:],
    "XMP in a JPEG": saved(PIL.Image.fromarray(PICTURE), "JPEG", xmp=XMP),
    "XMP in a WebP": saved(PIL.Image.fromarray(PICTURE), "WEBP", xmp=XMP, lossless=True),
    "XMP in a TIFF": saved(PIL.Image.fromarray(PICTURE), "TIFF", tiffinfo={700: XMP}),
    "XMP beside EXIF": saved(PIL.Image.fromarray(PICTURE), "JPEG", xmp=XMP, exif=OTHER_EXIF),
    "XMP in a PNG": PNG[:33]
    + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    + PNG[33:],
    "EXIF as text": PNG[:33]
    + chunk(b"tEXt", b"Raw profile type exif\0\n\nexif\n 26\n" + EXIF.hex().encode())
    + PNG[33:],
    "an orientation of 9": saved(
        PIL.Image.fromarray(PICTURE), "JPEG", exif=EXIF.replace(b"\6", b"\x09")
    ),
    "damaged EXIF": saved(PIL.Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0no header"),
}  # fmt: skip


@pytest.mark.parametrize("place", NO_ORIENTATION)
def test_other_places_turn_nothing_as_in_browsers(place):
    """Browsers read the EXIF data before the pixels alone; PIL's exif_transpose reads all."""
    encoded = NO_ORIENTATION[place]
    expected = read.fit(PICTURE, 48)
    for form in (encoded, PIL.Image.open(io.BytesIO(encoded))):
        assert np.abs(load_frames(form, 48)[0].astype(int) - expected).mean() < 4
    assert np.abs(decode(as_png(encoded), 48).astype(int) - expected).mean() < 4


def test_a_pil_image_that_was_turned_or_changed_is_shown_as_it_is():
    opened = PIL.Image.open(io.BytesIO(on_its_side("PNG")))
    turned = PIL.ImageOps.exif_transpose(opened)
    np.testing.assert_array_equal(load_frames(turned, 48)[0], decode(on_its_side("PNG"), 48))
    changed = PIL.Image.open(io.BytesIO(PNG))
    changed.info["transparency"] = (250, 20, 20)
    assert encoded_of(changed) is None and tuple(load_frames(changed, 48)[0, 9, 1]) == MEAN_COLOUR
    frames = [PIL.Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    film = PIL.Image.open(
        io.BytesIO(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    )
    film.seek(1)
    assert tuple(load_frames(film, 8)[0, 0, 0]) == (0, 0, 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 1), (2, 999)])
@pytest.mark.parametrize("image_fit", ["pad", "crop", "squash"])
def test_a_side_of_one_pixel(size, image_fit):
    image = PIL.Image.new("RGB", size, (9, 9, 9))
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        square = decode(saved(image, kind), 16, image_fit)
        assert square.shape == (16, 16, 3) and (square < 13).all(axis=-1).any()
    assert load_frames(image, 16, image_fit=image_fit).shape == (1, 16, 16, 3)
