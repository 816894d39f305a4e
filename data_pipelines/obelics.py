"""OBELICS as interleaved pages.

    python -m data_pipelines.run --pipeline=obelics --input=obelics/ --images=DIR --output=DIR

    images   null          https://..   null          https://..      one of the two in each place is null
    texts    "My pets."    null         "My cat."     null
    page     My pets.      [image]      My cat.       [image]

Read is its parquet, a few rows at a time. It names images by URL: they are looked for in --images,
as page_images.local_image says; a copy of the dataset whose column `images` holds bytes (binary, or
the {bytes, path} of Hugging Face's image type) needs no folder. Images that M3W would leave out are
left out here too.

Texts may hold "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED", where the page was several documents: each
becomes a page of its own, so that no text attends an image of another document.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.inputs import input_files
from data_pipelines.keys import text_key, url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.on_beam import Execution
from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.page_images import local_image, with_images
from flamingo_jax.data.schema import InterleavedPage

SUFFIXES = (".parquet",)
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"

_BATCH = 32  # rows held at once
_COLUMNS = ("images", "texts")


@dataclasses.dataclass(frozen=True)
class ObelicsRequest:
    """What decides the pages.

    Attributes:
      input: files, directories or patterns of .parquet, separated by commas.
      images: folder of the images; "": they are in the parquet.
    """

    input: str = ""
    images: str = ""


def build(request: ObelicsRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the pages as an interleaved_page dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    files = input_files(request.input, SUFFIXES)
    return collect(
        files, functools.partial(read_file, request), "interleaved_page", output, how
    ).table()


def read_file(request: ObelicsRequest, path: str) -> Iterator[Found | Reject]:
    """Yields the pages of a parquet, and a reject for each page and image that is left out."""
    import pyarrow.parquet

    started = False
    try:
        with epath.Path(path).open("rb") as raw:
            file = pyarrow.parquet.ParquetFile(raw)
            names = [
                name for name in (*_COLUMNS, "general_metadata") if name in file.schema_arrow.names
            ]
            if not set(_COLUMNS) <= set(names):
                yield Reject(
                    "not_obelics",
                    f"{path}: the columns are {', '.join(file.schema_arrow.names)}",
                    broken=True,
                )
                return
            started = True
            for batch in file.iter_batches(_BATCH, columns=names):
                for row in batch.to_pylist():
                    yield from read_row(row, request)
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        yield Reject(
            "truncated_file" if started else "unreadable_file", f"{path}: {error}", broken=True
        )


def read_row(row: dict[str, Any], request: ObelicsRequest) -> Iterator[Found | Reject]:
    """Yields the rejected images of a row, then its page, or pages, or why there is none.

    Args:
      row: of OBELICS, by column.
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
    documents: list[list[str | Picture]] = [[]]
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        if text is None:
            documents[-1].append(_picture(image, f"image {number}"))
            continue
        for following, piece in enumerate(str(text).split(END_OF_DOCUMENT)):
            if following:
                documents.append([])
            if clean := without_markers(piece.strip()):
                documents[-1].append(clean)
    url = _url(row.get("general_metadata"))
    documents = [parts for parts in documents if parts]
    if not documents:
        yield Reject("no_text", url)
    for number, parts in enumerate(documents):
        yield from _page(Page(url, tuple(parts)), number, request)


def _page(page: Page, number: int, request: ObelicsRequest) -> Iterator[Found | Reject]:
    """The rejected images of one document of a row, and the document."""
    folder = epath.Path(request.images) if request.images else None
    found, rejects = with_images(page, lambda url: local_image(folder, url) if folder else None)
    yield from rejects
    if isinstance(found, Reject):
        yield found
    elif not found.text:
        yield Reject("no_text", page.url)
    else:
        parts = tuple(part if isinstance(part, str) else part.data for part in found.parts)
        metadata = json.dumps({"url": page.url} if page.url else {})
        # The documents of one row share their address.
        address = url_key(page.url) + (f" {number}" if number else "") if page.url else ""
        yield Found(
            InterleavedPage(parts, metadata), tuple(filter(None, (address, text_key(found.text))))
        )


def _picture(image: Any, name: str) -> Picture:
    """A picture by its URL or, under a made-up name, with its bytes."""
    data = image.get("bytes") or image.get("path") if isinstance(image, dict) else image
    return Picture(name, data) if isinstance(data, bytes) else Picture(str(data))


def _url(general_metadata: Any) -> str:
    try:
        fields = json.loads(general_metadata)
    except (TypeError, ValueError, RecursionError):
        return ""
    return str(fields.get("url") or "") if isinstance(fields, dict) else ""
