"""Converts JSON lines, parquet or a TFDS builder such as c4 to documents, through Gopher's filters.

    python -m data_pipelines.run --pipeline=text --input=c4/en --output=data/c4

    row  --text field-->  quality  -->  repetition  -->  Document, with the keys of its URL and text

A builder is named as in `--input=tfds:c4/en:3.0.1 --data_dir=~/tensorflow_datasets`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time
from data_pipelines.filters import quality, repetition
from data_pipelines.formats import jsonl, parquet, tfrecord
from data_pipelines.inputs import InputFiles, input_files
from data_pipelines.keys import text_key, url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.near_duplicates import Fingerprint, fingerprint
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.files import has_suffix
from flamingo_jax.data.schema import Document

TFDS = "tfds:"
# Of a document; a long novel has 3 million. Words and shingles take 20 times the memory of a text.
MAX_CHARACTERS = 8 << 20
DEFAULT_DATA_DIR = "~/tensorflow_datasets"  # the default of TFDS


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """The options that decide a dataset of documents.

    Attributes:
      input: JSON lines (.jsonl, .json.gz, .jsonl.gz, .jsonl.zst) or parquet: a file, a directory or
        a pattern; or tfds:NAME:VERSION for a builder.
      data_dir: where TFDS datasets are prepared; ~/tensorflow_datasets if empty.
      split: of a TFDS dataset.
      text_field: name of the field or column with the text.
      url_field: name of the field or column with the URL. A document does not need one.
      metadata_fields: further fields to store in the metadata of a document.
      quality_filter: apply Gopher's quality filter. It knows English stop words only.
      repetition_filter: apply Gopher's repetition filter.
      near_duplicates: drop also texts that share about 0.8 of their shingles with a text that is
        kept, not only equal ones.
      max_record_seconds: largest CPU time of a document; one that takes more is counted as
        too_slow.
    """

    input: str = ""
    data_dir: str = ""
    split: str = "train"
    text_field: str = "text"
    url_field: str = "url"
    metadata_fields: tuple[str, ...] = ("timestamp",)
    quality_filter: bool = True
    repetition_filter: bool = True
    near_duplicates: bool = False
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        if not self.text_field:
            raise ValueError(
                "text: --text_field is empty; give the name of the field that holds the text."
            )
        check_seconds("text", self.max_record_seconds)


@dataclasses.dataclass(frozen=True)
class ExamplesFile:
    """One file of a TFDS dataset."""

    path: str


Part = jsonl.Lines | parquet.RowGroups | ExamplesFile


def build(request: TextRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the documents as a dataset.

    Args:
      request: what to read and keep.
      output: an empty directory.
      how: runner, workers and limits.

    Returns:
      The counts of the report.

    Raises:
      ValueError: there is no such input, its format is not known, or `collect` found too little in
        it.
    """
    files = _files(request)
    units, of_part = _parts(request, files), functools.partial(read, request)
    passed_over = files.passed_over
    return collect(units, of_part, "document", output, how, passed_over=passed_over).table()


def parts(request: TextRequest) -> list[Part]:
    """Returns the parts of the input for the workers, in order.

    Raises:
      ValueError: there is no input, or its format is not known.
    """
    return _parts(request, _files(request))


def _files(request: TextRequest) -> InputFiles:
    if request.input.startswith(TFDS):
        return InputFiles(_tfds_files(request), {})
    return input_files(request.input, (*jsonl.SUFFIXES, ".parquet"))


def _parts(request: TextRequest, files: InputFiles) -> list[Part]:
    if request.input.startswith(TFDS):
        return [ExamplesFile(path) for path in files]
    found: list[Part] = []
    for path in files:
        if has_suffix(path, jsonl.SUFFIXES):
            found += jsonl.parts(path)
        elif has_suffix(path, (".parquet",)):
            found += parquet.parts(path)
        else:
            raise ValueError(
                f"--input={path}: expected the name of a file to end in "
                f"{', '.join(jsonl.SUFFIXES)} or .parquet. Rename it, or convert it."
            )
    return found


def read(request: TextRequest, part: Part) -> Iterator[Found | Reject]:
    """Yields the documents of one part, and a Reject for each that is left out.

    Bad input raises nothing.
    """
    rows: Iterator[dict[str, Any] | Reject]
    if isinstance(part, jsonl.Lines):
        rows = jsonl.rows(part)
    elif isinstance(part, parquet.RowGroups):
        others = (request.url_field, *request.metadata_fields)
        rows = parquet.rows(part, (request.text_field,), others, missing="no_text_field")
    else:
        rows = tfrecord.rows(part.path)
    yield from each_in_time(
        rows,
        lambda row: [_judge(row, request)],
        seconds=request.max_record_seconds,
        place=part.path,
    )


def _judge(row: dict[str, Any], request: TextRequest) -> Found | Reject:
    text = row.get(request.text_field)
    if not isinstance(text, str | bytes):
        if request.text_field in row:
            kind = "null" if text is None else f"of type {type(text).__name__}"
            detail = f"the field {request.text_field!r} is {kind}, not text"
        else:
            detail = f"fields {', '.join(sorted(row))[:200]}, not {request.text_field!r}"
        return Reject("no_text_field", detail, broken=True)
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()  # JSON can contain half a surrogate pair
    except UnicodeError as error:
        return Reject("broken_text", str(error), broken=True)
    if len(text) > MAX_CHARACTERS:
        return Reject("text_too_long", f"{len(text)} characters")
    text = without_markers(text).strip()
    if not text:
        return Reject("no_text")
    if request.quality_filter and (found := quality(text)):
        return found
    if request.repetition_filter and (found := repetition(text)):
        return found
    url = _plain(row.get(request.url_field))
    fields = {"url": url} | {name: _plain(row.get(name)) for name in request.metadata_fields}
    metadata = {name: value for name, value in fields.items() if value not in (None, "")}
    near = fingerprint(text) if request.near_duplicates else Fingerprint()
    keys = (url_key(url) if isinstance(url, str) else "", text_key(text), *near.keys)
    return Found(
        Document(text, json.dumps(metadata, allow_nan=False)),
        tuple(filter(None, keys)),
        near.sketch,
    )


def _plain(value: Any) -> str | int | float | bool | None:
    """Returns a value that JSON can store, or None: a table has NaN where nothing is known."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str | int | float | bool) else None


def _tfds_files(request: TextRequest) -> list[str]:
    import tensorflow_datasets as tfds

    name, _, version = request.input.removeprefix(TFDS).partition(":")
    place = epath.Path(request.data_dir or DEFAULT_DATA_DIR).expanduser() / name
    directory = place / version
    if not version or not (directory / "dataset_info.json").exists():
        raise ValueError(
            f"--input={request.input}: there is no dataset in {directory} (no dataset_info.json). "
            "Prepare it with TFDS (tfds build), or say with --data_dir where it is and with "
            "NAME:VERSION which it is."
        )
    splits = tfds.builder_from_directory(os.fspath(directory)).info.splits
    if request.split not in splits:
        raise ValueError(f"--split={request.split}: {directory} has {', '.join(splits)}.")
    return [os.fspath(path) for path in splits[request.split].filepaths]
