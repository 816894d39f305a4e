"""The segments of a JPEG: what FFDA means depends on where it is."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.data.images import read
from flamingo_jax.data.images.jpeg import JpegHeader, count_scans, read_header
from flamingo_jax.data.schema import CorruptRecord

SCAN = b"\xff\xda"
EXIF = PIL.Image.Exif()
EXIF[0x0112] = 6


def saved(mode="RGB", **options):
    buffer = io.BytesIO()
    picture = np.arange(48 * 32 * 3).reshape(32, 48, 3).astype(np.uint8)
    PIL.Image.fromarray(picture).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


PLAIN, PROGRESSIVE = saved(), saved(progressive=True)
# Each is a segment that contains what looks like a scan, as previews and comments do.
DECOYS = [segment(marker, b"x" + SCAN + b"y") for marker in (0xFE, 0xE1, 0xE2, 0xED)]


@pytest.mark.parametrize("decoy", DECOYS)
def test_a_scan_inside_a_segment_is_none(decoy):
    assert read_header(PLAIN[:2] + decoy + PLAIN[2:]) == JpegHeader(
        has_exif=False, has_one_scan=True
    )
    assert count_scans(PLAIN[:2] + decoy * 200 + PLAIN[2:], 100) == 1
    turned = saved(exif=EXIF)
    behind = turned[:2] + decoy + turned[2:]
    assert read_header(behind) == JpegHeader(has_exif=True, has_one_scan=True)
    np.testing.assert_array_equal(read.decode(behind, 48), read.decode(turned, 48))
    assert (read.probe(behind).width, read.probe(behind).height) == (32, 48)


def test_scans_are_counted_up_to_the_end_of_the_first_image():
    assert read_header(PROGRESSIVE) == JpegHeader(has_exif=False, has_one_scan=False)
    count = count_scans(PROGRESSIVE, 100)
    assert 5 < count < 15
    film = np.random.default_rng(0).bytes(1000) + SCAN * 500
    assert count_scans(PROGRESSIVE + film, 100) == count
    assert read.decode(PROGRESSIVE + film, 48).shape == (48, 48, 3), "a moving photo"
    assert read.decode(saved(exif=EXIF) + film, 48).shape == (48, 48, 3)


def test_hidden_scans_are_found():
    """Each scan of these decodes the whole image: 1,500 of them would take minutes."""
    last = PROGRESSIVE[PROGRESSIVE.rindex(SCAN) : -2]
    many = PROGRESSIVE[:-2] + last * 1500 + PROGRESSIVE[-2:]
    for hidden in (many, *(many[:2] + decoy + many[2:] for decoy in DECOYS)):
        assert count_scans(hidden, 100) == 101
        with pytest.raises(CorruptRecord, match="more than 100 scans"):
            read.decode(hidden, 48)


def test_scans_of_a_single_colour_are_several():
    """Without being progressive, a JPEG may have a scan for each colour, and then any number."""
    frame = PLAIN.index(b"\xff\xc0")
    scan = PLAIN.index(SCAN)
    one = PLAIN[:scan] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + PLAIN[scan + 14 :]
    assert frame < scan and read_header(PLAIN).has_one_scan
    assert not read_header(one).has_one_scan


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff", PLAIN[:30], b"\xff\xd8\xff\xe0\0\2ab" + PLAIN]
)
def test_what_is_no_header(content):
    assert read_header(content) is None
    assert count_scans(content, 100) <= 1


def test_cmyk_and_grey():
    assert (
        read_header(saved("L"))
        == read_header(saved("CMYK"))
        == JpegHeader(has_exif=False, has_one_scan=True)
    )
