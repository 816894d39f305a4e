"""Converts images with one text each to image_text records.

They are used in place of ALIGN and LTIP (paper, A.3.3).

    --format=webdataset --input=laion/    tars of img2dataset (LAION, COYO)
    --format=table --input=cc3m.csv       CSV or TSV with the path of an image and its caption

    python -m data_pipelines.run --pipeline=pairs --format=table --input=cc3m.csv --output=DIR

The paper states image filters only for web pages (64 pixels, shape, colour). Here an image is left
out only if it cannot be decoded, or is smaller than --min_size. The paper removes dates and places
from captions by "automatic text formatting". Its rules are not published, so this is not done.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time
from data_pipelines.formats import jsonl, tables, tars
from data_pipelines.formats.local_files import MAX_IMAGE_BYTES, read_inside
from data_pipelines.inputs import input_files
from data_pipelines.keys import url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from data_pipelines.web.page_images import as_stored
from flamingo_jax.data.files import IMAGE_SUFFIXES
from flamingo_jax.data.images import read as images
from flamingo_jax.data.schema import CorruptRecord, ImageText

FORMATS = ("webdataset", "table")
IMAGE_COLUMNS = ("filepath", "image_path", "image", "path", "filename", "file")
TEXT_COLUMNS = ("caption", "title", "text")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TAR_IMAGES = tuple(suffix.strip(".") for suffix in IMAGE_SUFFIXES)
_TAR_LIMITS = {
    **dict.fromkeys(_TAR_IMAGES, MAX_IMAGE_BYTES),
    "txt": tars.MAX_TEXT,
    "json": tars.MAX_FIELDS,
}

_PART = 1 << 18  # bytes of a table for one worker and one shard: some 2,000 pairs
_DECODED_SIZE = 32  # pixels. So small is fast, and a JPEG is still read to its end.


@dataclasses.dataclass(frozen=True)
class PairsRequest:
    """The options that decide the pairs.

    Attributes:
      input: files, directories or patterns, separated by commas: tars of img2dataset, or tables.
      format: webdataset | table.
      images: table: folder that the paths of the images are relative to; "": the folder of the
        table.
      image_column: table: column with the path of the image; "": the first of filepath, image_path,
        image, path, filename, file.
      text_column: table: column with the caption; "": the first of caption, title, text.
      tsv_quotes: table: fields of a tab-separated table can be in quotes, as pandas writes them; by
        default a quote in one is a letter like any other.
      min_size: an image with a shorter side of fewer pixels is left out.
      max_characters: a longer caption is left out.
      max_record_seconds: largest CPU time of a pair; one that takes more is counted as too_slow.
    """

    input: str = ""
    format: str = "webdataset"
    images: str = ""
    image_column: str = ""
    text_column: str = ""
    tsv_quotes: bool = False
    min_size: int = 0
    max_characters: int = 2000
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"pairs: got --format={self.format!r}, expected one of {', '.join(FORMATS)}."
            )
        if self.input.endswith(".parquet"):
            raise ValueError(
                f"pairs: --input={self.input} is a table of addresses, as LAION and COYO publish "
                "them, without images. Download them first: img2dataset with "
                "output_format=webdataset writes the tars that are read here."
            )
        check_seconds("pairs", self.max_record_seconds)

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that are read from the folder of the input."""
        return IMAGE_SUFFIXES if self.format == "table" and not self.images else ()


def build(request: PairsRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the pairs as an image_text dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    units: list[str | tables.Part] = []
    if request.format == "webdataset":
        files = input_files(request.input, tars.SUFFIXES)
        units += files
    else:
        files = input_files(request.input, tables.SUFFIXES, IMAGE_SUFFIXES)
        for path in files:
            units += tables.parts(path, _PART, quoted=request.tsv_quotes)
    read = functools.partial(read_unit, request)
    return collect(units, read, "image_text", output, how, passed_over=files.passed_over).table()


def read_unit(request: PairsRequest, unit: str | tables.Part) -> Iterator[Found | Reject]:
    """Yields the pairs of one unit, and a Reject for each pair that is left out.

    Args:
      request: what to keep.
      unit: the path of a tar, or a part of a table.
    """
    seconds = request.max_record_seconds
    if isinstance(unit, str):
        yield from each_in_time(
            tars.samples(unit, _TAR_LIMITS),
            lambda sample: [_from_sample(sample, request)],
            seconds=seconds,
            place=unit,
        )
        return
    folder = epath.Path(request.images) if request.images else epath.Path(unit.path).parent
    yield from each_in_time(
        tables.rows(unit),
        lambda row: [_from_row(row, request, folder)],
        seconds=seconds,
        place=unit.path,
    )


def caption(text: str | bytes, max_characters: int) -> str | Reject:
    """Normalises white space in a caption, and removes the model's markers.

    Args:
      text: as found; bytes are decoded as UTF-8, or as UTF-16 if they begin with its mark.
      max_characters: the longest caption to keep.

    Returns:
      The caption; or a Reject for broken_text, no_text or text_too_long.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-16" if text.startswith(_UTF16) else "utf-8-sig")
        text.encode()  # JSON can contain half a surrogate pair
    except UnicodeError as error:
        return Reject("broken_text", str(error), broken=True)
    text = without_markers(" ".join(text.split()))
    if not text:
        return Reject("no_text")
    if len(text) > max_characters:
        return Reject("text_too_long", f"{len(text)} characters")
    return text


def sample_metadata(sample: tars.TarSample) -> dict[str, Any] | Reject:
    """Returns the fields of a sample's .json, as img2dataset writes it; {} if there is no .json.

    Returns:
      The fields; or a Reject for not_downloaded if they report a failure, or if the JSON cannot be
      read.
    """
    content = sample.first("json")
    fields = {} if content is None else jsonl.parse(content, sample.key)
    if not isinstance(fields, Reject) and str(fields.get("status")).startswith("failed"):
        return Reject("not_downloaded", f"{sample.key}: {fields['status']!r:.100}")
    return fields


def sample_text(sample: tars.TarSample, fields: dict[str, Any]) -> object:
    """Returns the caption of a sample: its .txt, or the field "caption" if that is empty."""
    text = sample.first("txt")
    return fields.get("caption", text) if text is None or not text.strip() else text


def _from_sample(sample: tars.TarSample, request: PairsRequest) -> Found | Reject:
    fields = sample_metadata(sample)
    if isinstance(fields, Reject):
        return fields
    image = sample.first(*_TAR_IMAGES)
    if image is None:
        return Reject("missing_image", sample.described(), broken=True)
    text = sample_text(sample, fields)
    return _pair(image, text, str(fields.get("url") or ""), sample.key, request)


def _from_row(row: dict[str, str], request: PairsRequest, folder: epath.Path) -> Found | Reject:
    name = tables.column(row, request.image_column, IMAGE_COLUMNS, flag="--image_column")
    if isinstance(name, Reject):
        return name
    text = tables.column(row, request.text_column, TEXT_COLUMNS, flag="--text_column")
    if isinstance(text, Reject):
        return text
    image = read_inside(folder, name, max_bytes=MAX_IMAGE_BYTES, missing="missing_image")
    if isinstance(image, Reject):
        return image
    return _pair(image, text, row.get("url", ""), os.path.basename(name), request)


def _pair(
    image: bytes, text: object, url: str, source: str, request: PairsRequest
) -> Found | Reject:
    if not isinstance(text, str | bytes):
        return Reject("no_text", source)
    clean = caption(text, request.max_characters)
    if isinstance(clean, Reject):
        return clean
    stored = stored_image(image, source, min_size=request.min_size)
    if isinstance(stored, Reject):
        return stored
    metadata = {"source": source} | ({"url": url} if url else {})
    keys = (url_key(url),) if url else ()
    return Found(ImageText(stored, clean, json.dumps(metadata, allow_nan=False)), keys)


def stored_image(image: bytes, source: str, *, min_size: int = 0) -> bytes | Reject:
    """Checks that an image can be decoded, and returns it in the form that records store.

    Args:
      image: as found.
      source: its name, for the report.
      min_size: the fewest pixels of its shorter side.
    """
    try:
        size = images.probe(image)
        if min(size.width, size.height) < min_size:
            return Reject("image_too_small", f"{size.width} x {size.height} pixels")
        images.decode(image, _DECODED_SIZE)
        return as_stored(image)
    except CorruptRecord as error:
        return Reject(error.reason, f"{source}: {error}", broken=True)
