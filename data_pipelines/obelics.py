"""Converts OBELICS to interleaved pages.

    python -m data_pipelines.run --pipeline=obelics --input=obelics/ --images=DIR --output=DIR

    images   null        https://..   null        https://..    at each place one of the two is null
    texts    "My pets."  null         "My cat."   null
    page     My pets.    [image]      My cat.     [image]

The input is the published parquet, read a few rows at a time. It names images by URL, which are
looked up in --images (see local_files.local_image). A copy of the dataset with bytes in the column
`images` (binary, or the {bytes, path} of Hugging Face's image type) needs no folder. Images that
M3W would leave out are left out here too.

Texts can contain "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED", where a page was several documents. Each
of them becomes a separate page, so that no text attends an image of another document.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time
from data_pipelines.formats import parquet
from data_pipelines.formats.local_files import local_image
from data_pipelines.inputs import input_files
from data_pipelines.keys import text_key, url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.on_beam import Execution
from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.page_images import ImageLimits, with_images
from flamingo_jax.data.schema import InterleavedPage

SUFFIXES = (".parquet",)
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"

_COLUMNS = ("images", "texts")


@dataclasses.dataclass(frozen=True)
class ObelicsRequest:
    """The options that decide the pages.

    Attributes:
      input: files, directories or patterns of .parquet, separated by commas.
      images: folder of the images; "": they are in the parquet.
      max_record_seconds: largest CPU time of a row; one that takes more is counted as too_slow.
    """

    input: str = ""
    images: str = ""
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        check_seconds("obelics", self.max_record_seconds)


def build(request: ObelicsRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the pages as an interleaved_page dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    files = input_files(request.input, SUFFIXES)
    read, kind = functools.partial(read_file, request), "interleaved_page"
    return collect(files, read, kind, output, how, passed_over=files.passed_over).table()


def read_file(request: ObelicsRequest, path: str) -> Iterator[Found | Reject]:
    """Yields the pages of a parquet file, and a Reject for each page and image that is left out."""
    whole_file = parquet.RowGroups(path)
    yield from each_in_time(
        parquet.rows(whole_file, _COLUMNS, ("general_metadata",), missing="not_obelics"),
        lambda row: read_row(row, request),
        seconds=request.max_record_seconds,
        place=path,
    )


def read_row(row: dict[str, Any], request: ObelicsRequest) -> Iterator[Found | Reject]:
    """Yields a Reject for each image left out of a row, then its pages, or why there is no page.

    Args:
      row: one row of OBELICS, by column.
      request: where its images are.
    """
    images, texts = row["images"], row["texts"]
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        yield Reject("not_obelics", "images and texts are not two lists of one length", broken=True)
        return
    if any((image is None) == (text is None) for image, text in zip(images, texts, strict=True)):
        yield Reject(
            "not_obelics", "in some place not just one of image and text is null", broken=True
        )
        return
    url = _url(row.get("general_metadata"))
    try:  # some writers store texts as bytes
        texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
    except UnicodeDecodeError:
        yield Reject("broken_text", f"{url}: a text is not UTF-8", broken=True)
        return
    if other := [type(text).__name__ for text in texts if not isinstance(text, str | None)]:
        yield Reject("not_obelics", f"{url}: a text is of type {other[0]}", broken=True)
        return
    documents: list[list[str | Picture]] = [[]]
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text is None:
            documents[-1].append(_picture(image, f"image {number}"))
            continue
        for following, piece in enumerate(text.split(END_OF_DOCUMENT)):
            if following:
                documents.append([])
            if clean := without_markers(piece.strip()):
                documents[-1].append(clean)
    documents = [parts for parts in documents if parts]
    if not documents:
        yield Reject("no_text", url)
    for number, parts in enumerate(documents):
        yield from _page(Page(url, tuple(parts)), number, request)


def _page(page: Page, number: int, request: ObelicsRequest) -> Iterator[Found | Reject]:
    """Yields a Reject for each image left out of one document of a row, then the document."""
    folder = epath.Path(request.images) if request.images else None

    def find(url: str) -> bytes | None:
        return local_image(folder, url, ImageLimits.max_bytes) if folder else None

    found, rejects = with_images(page, find)
    yield from rejects
    if isinstance(found, Reject):
        yield found
    elif not found.text:
        yield Reject("no_text", page.url)
    else:
        parts = tuple(part if isinstance(part, str) else part.data for part in found.parts)
        metadata = json.dumps({"url": page.url} if page.url else {}, allow_nan=False)
        # All documents of one row have the same URL, so later ones add their number.
        address = url_key(page.url) + (f" {number}" if number else "") if page.url else ""
        keys = tuple(filter(None, (address, text_key(found.text))))
        yield Found(InterleavedPage(parts, metadata), keys)


def _picture(image: Any, name: str) -> Picture:
    """Returns a picture named by its URL, or a picture with its bytes, under the name `name`."""
    data = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
    return Picture(name, data) if isinstance(data, bytes) else Picture(str(data))


def _url(general_metadata: Any) -> str:
    try:
        fields = json.loads(general_metadata)
    except (TypeError, ValueError, RecursionError):
        return ""
    return str(fields.get("url") or "") if isinstance(fields, dict) else ""
