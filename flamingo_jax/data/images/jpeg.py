r"""The segments of a JPEG file (ITU T.81, annex B): what must be known before it is decoded.

    FFD8 | FFE0 length ... | FFE1 length "Exif\0\0" ... | FFC0 length ... | FFDA length ... pixels
    start  segments, each of a stated length              frame             scan

The bytes FFDA inside a segment are no scan: a preview in the EXIF data, or a comment, has them too.
So the segments are followed one by one, as a decoder does, up to the end of the first image. What
comes behind it, such as the film of a moving photo, does not count.
"""

import re
from typing import NamedTuple

_START = b"\xff\xd8\xff"
_EXIF = b"Exif\0\0"
_SCAN, _END = 0xDA, 0xD9
_ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a length
# Frames in which each scan refines the whole image. C4, C8 and CC are no frames.
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# In the coded pixels FF is followed by 00, or by a restart marker.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class JpegHeader(NamedTuple):
    """The segments in front of the pixels.

    Attributes:
        has_exif: there is EXIF data, which may say that the image is on its side.
        has_one_scan: all pixels are in the first scan. Otherwise there may be any number of scans.
    """

    has_exif: bool
    has_one_scan: bool


def read_header(encoded: bytes) -> JpegHeader | None:
    """Reads the segments up to the first scan; None if they are not as the standard says."""
    if not encoded.startswith(_START):
        return None
    at, has_exif, frame, components = 2, False, 0, 0
    try:
        while encoded[at] == 0xFF:
            marker = encoded[at + 1]
            if marker == 0xFF:  # fills up
                at += 1
                continue
            if marker == _SCAN:
                is_one = frame not in _PROGRESSIVE and 0 < components <= encoded[at + 4]
                return JpegHeader(has_exif, is_one)
            if marker in _FRAMES:
                frame, components = marker, encoded[at + 9]
            elif marker == 0xE1 and encoded.startswith(_EXIF, at + 4):
                has_exif = True
            elif marker in _ALONE or marker == _END:
                return None
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    except IndexError:  # cut off
        pass
    return None


def count_scans(encoded: bytes, most: int) -> int:
    """Counts the scans of the first image of a file; ends at `most` + 1."""
    at, count = 2, 0
    while (found := _NEXT_MARKER.search(encoded, at)) and count <= most:
        at, marker = found.end(), encoded[found.end() - 1]
        if marker == _END:
            break
        count += marker == _SCAN
        if marker not in _ALONE:
            at += int.from_bytes(encoded[at : at + 2], "big")
    return count
