"""Converts MMC4 to interleaved pages: each image comes before the sentence that it belongs to.

    python -m data_pipelines.run --pipeline=mmc4 --input=docs/ --images=DIR --output=DIR

    text_list    "My pets."    "My cat."     "My puppy."
    image_info   dog -> sentence 2, cat -> sentence 1
    page          My pets. [cat] My cat. [dog] My puppy.

image_info is not sorted by sentence, so the images are sorted here. OpenFlamingo's reader does not
sort them: the text follows one order and the images another, so images are paired with the wrong
text. Two inputs are read: the published JSON lines (plain, .zip as published, .gz or .zst), with
images in a folder under their image_name or found by their raw_url; and tars of .json with images
in image_base64, as OpenFlamingo's converter writes them.

An image is left out if its similarity to its sentence is below --min_similarity (by default 0.24 of
CLIP ViT-L/14, as in OpenFlamingo's training command), or if M3W would leave it out (page_images).
--assignment=matched takes the sentence that MMC4 states. It is the best assignment of all images
together, with a different sentence for each. Images get lost when a dataset is downloaded, so
--assignment=optimal computes the assignment again for the remaining images, from the similarity
matrix.
"""

from __future__ import annotations

import base64
import binascii
import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeGuard, TypeVar

import numpy as np
from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time
from data_pipelines.formats import jsonl, tars
from data_pipelines.formats.local_files import MAX_IMAGE_BYTES, local_image, read_inside
from data_pipelines.inputs import input_files
from data_pipelines.keys import text_key, url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from data_pipelines.web.page_images import ImageLimits, as_stored, keep_image
from flamingo_jax.data.files import IMAGE_SUFFIXES, has_suffix
from flamingo_jax.data.schema import CorruptRecord, InterleavedPage

ASSIGNMENTS = ("matched", "optimal")
T = TypeVar("T")

_TAR_LIMITS = {"json": jsonl.MAX_LINE}  # with the images in it
_PART = 1 << 24  # bytes of JSON lines for one worker and one shard: some 3,000 documents


class PlacedImage(NamedTuple):
    """An image, and the sentence that it is placed before.

    Attributes:
      image: its number in image_info.
      sentence: the number of the sentence.
      similarity: between the two.
    """

    image: int
    sentence: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class MMC4Request:
    """The options that decide the pages.

    Attributes:
      input: files, directories or patterns of .jsonl (.gz, .zst) or .tar, separated by commas.
      images: folder of the images, for JSON lines.
      assignment: matched (as the dataset states) | optimal (computed again for the images that are
        left).
      min_similarity: an image that is less similar to its sentence is left out.
      max_record_seconds: largest CPU time of a document; one that takes more is counted as
        too_slow.
    """

    input: str = ""
    images: str = ""
    assignment: str = "matched"
    min_similarity: float = 0.24
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.assignment not in ASSIGNMENTS:
            raise ValueError(
                f"mmc4: got --assignment={self.assignment!r}, expected one of "
                f"{', '.join(ASSIGNMENTS)}."
            )
        check_seconds("mmc4", self.max_record_seconds)

    def keeps(self, match: PlacedImage) -> bool:
        return match.similarity >= self.min_similarity


def build(request: MMC4Request, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the pages as an interleaved_page dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    units: list[str | jsonl.Lines] = []
    files = input_files(request.input, jsonl.SUFFIXES + tars.SUFFIXES, IMAGE_SUFFIXES)
    for path in files:
        if has_suffix(path, tars.SUFFIXES):
            units.append(path)
        else:
            units += jsonl.parts(path, _PART)
    read, kind = functools.partial(read_unit, request), "interleaved_page"
    return collect(units, read, kind, output, how, passed_over=files.passed_over).table()


def read_unit(request: MMC4Request, unit: str | jsonl.Lines) -> Iterator[Found | Reject]:
    """Yields the pages of one unit, and a Reject for each page and image that is left out.

    Args:
      request: what to keep.
      unit: the path of a tar, or a part of a file of JSON lines.
    """
    yield from each_in_time(
        _documents(unit),
        lambda document: read_document(document, request),
        seconds=request.max_record_seconds,
        place=unit if isinstance(unit, str) else unit.path,
    )


def read_document(document: dict[str, Any], request: MMC4Request) -> Iterator[Found | Reject]:
    """Yields a Reject for each image left out of a document, then its page or why there is none.

    Args:
      document: one line of MMC4.
      request: where its images are, and which of them to keep.
    """
    sentences, infos = document.get("text_list"), document.get("image_info")
    if not _is_list_of(sentences, str) or not _is_list_of(infos, dict):
        detail = f"text_list or image_info is no list of its kind; there are {sorted(document)}"
        yield Reject("not_mmc4", detail, broken=True)
        return
    try:
        "".join(sentences).encode()  # JSON can contain half a surrogate pair
    except UnicodeEncodeError as error:
        yield Reject("broken_text", str(error), broken=True)
        return
    images = {}
    for number, info in enumerate(infos):
        data = _image(info, request)
        if isinstance(data, Reject):
            yield dataclasses.replace(data, unit="image")
        else:
            images[number] = data
    assign = _optimal if request.assignment == "optimal" else _matched
    try:
        matches = assign(list(images), document)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        detail = f"similarity_matrix or matched_text_index does not fit: {error!r}"
        yield Reject("not_mmc4", detail, broken=True)
        return
    yield from (Reject("no_sentence", unit="image") for _ in range(len(images) - len(matches)))
    placed = []
    for match in matches:
        if request.keeps(match):
            placed.append((match.sentence, images[match.image]))
        else:
            yield Reject("low_similarity", f"{match.similarity:.3f}", unit="image")
    parts = interleaved(sentences, placed)
    text = "\n".join(part for part in parts if isinstance(part, str))
    if not text:
        yield Reject("no_text")
    elif not any(isinstance(part, bytes) for part in parts):
        yield Reject("no_image_left")
    else:
        url = str(document.get("url") or "")
        metadata = json.dumps({"url": url} if url else {}, allow_nan=False)
        keys = tuple(filter(None, (url_key(url), text_key(text))))
        yield Found(InterleavedPage(parts, metadata), keys)


def interleaved(
    sentences: Sequence[str], images: Iterable[tuple[int, bytes]]
) -> tuple[str | bytes, ...]:
    """Puts each image before its sentence, and joins the sentences between two images to one text.

    Args:
      sentences: sentences of the page, in order.
      images: (number of its sentence, encoded image), in any order. Images of one sentence keep the
        order given.

    Returns:
      The parts of the page.
    """
    parts: list[str | bytes] = []
    waiting: list[str] = []
    by_sentence = collections.defaultdict(list)
    for number, data in images:
        by_sentence[number].append(data)
    for number, sentence in enumerate(sentences):
        here = by_sentence.get(number, [])
        if here and waiting:
            parts.append(" ".join(waiting))
            waiting = []
        parts += here
        waiting += [clean] if (clean := without_markers(" ".join(sentence.split()))) else []
    return (*parts, " ".join(waiting)) if waiting else tuple(parts)


def _documents(unit: str | jsonl.Lines) -> Iterator[dict[str, Any] | Reject]:
    if isinstance(unit, jsonl.Lines):
        yield from jsonl.rows(unit)
        return
    for sample in tars.samples(unit, _TAR_LIMITS):
        if isinstance(sample, Reject):
            yield sample
        elif (content := sample.first("json")) is not None:
            yield jsonl.parse(content, sample.key)
        else:
            yield Reject("not_mmc4", sample.described(), broken=True)


def _image(info: dict[str, Any], request: MMC4Request) -> bytes | Reject:
    """Returns the bytes of an image if it exists and is fit for a page."""
    data: bytes | Reject | None
    name, url, encoded = (info.get(key) for key in ("image_name", "raw_url", "image_base64"))
    if isinstance(encoded, str):
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            return Reject("not_an_image", f"{name}: image_base64: {error}", broken=True)
    elif not request.images:
        data = None
    else:
        folder = epath.Path(request.images)
        data = read_inside(
            folder, str(name or url), max_bytes=MAX_IMAGE_BYTES, missing="missing_image"
        )
        if isinstance(data, Reject) and data.reason == "missing_image" and isinstance(url, str):
            data = local_image(folder, url, ImageLimits.max_bytes)
    if data is None:
        return Reject("missing_image", f"{name or url!r:.200}", broken=True)
    if isinstance(data, Reject):
        return data
    try:
        return keep_image(data) or as_stored(data)
    except CorruptRecord as error:
        return Reject(error.reason, f"{name}: {error}", broken=True)


def _matched(images: Sequence[int], document: dict[str, Any]) -> list[PlacedImage]:
    """Returns the sentences that the dataset states."""
    found = []
    for number in images:
        info = document["image_info"][number]
        sentence = info["matched_text_index"]
        if not isinstance(sentence, int) or not 0 <= sentence < len(document["text_list"]):
            raise ValueError(
                f"matched_text_index {sentence!r} of {len(document['text_list'])} sentences"
            )
        similarity = info.get("matched_sim")
        if similarity is None:
            similarity = document["similarity_matrix"][number][sentence]
        found.append(PlacedImage(number, sentence, float(similarity)))
    return found


def _optimal(images: Sequence[int], document: dict[str, Any]) -> list[PlacedImage]:
    """Returns the assignment with the largest sum of similarities, each sentence taken once.

    If there are fewer sentences than images, some images get no sentence.
    """
    if not images:
        return []
    similarity = np.asarray(
        [document["similarity_matrix"][number] for number in images], np.float64
    )
    expected = (len(images), len(document["text_list"]))
    if similarity.shape != expected or not np.isfinite(similarity).all():
        raise ValueError(
            f"shape {similarity.shape}, expected {expected[0]} x {expected[1]} finite numbers"
        )
    import scipy.optimize  # takes a third of a second

    rows, columns = scipy.optimize.linear_sum_assignment(-similarity)
    return [
        PlacedImage(images[row], int(column), similarity[row, column])
        for row, column in zip(rows, columns, strict=True)
    ]


def _is_list_of(value: Any, kind: type[T]) -> TypeGuard[list[T]]:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
