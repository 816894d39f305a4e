r"""Removes duplicates of evaluation images from a training set (paper, A.3.4).

The datasheets of the paper's training sets say "deduplicated against the evaluation sets".

    python -m data_pipelines.run --pipeline=dedup --input=data/pairs \
        --against=coco/val2014,flickr30k/images --output=data/pairs_deduplicated

The paper compares embeddings of ALIGN and LTIP with those of ImageNet, COCO, OK-VQA, VQAv2,
Flickr30k and VisDial, by approximate nearest neighbours, and leaves M3W and VTP as they are. It
does not state its threshold: the defaults of `max_distance` and `min_cosine` are ours. The default
method, phash, compares perceptual hashes and not embeddings. OUTPUT contains the dataset without
the matches, candidates.json with every pair that was found, the closest first, and candidates.html,
which shows them.

    evaluation images --> hashes or embeddings --> index
    training record   --> nearest images in the index --> candidates
                          matched --> dropped, counted as in_evaluation_set
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from data_pipelines.candidate_page import MAX_PAIRS, page
from data_pipelines.collect import Found, collect
from data_pipelines.near_images import BITS, EmbeddingIndex, HashIndex, one_thread, phash
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular
from flamingo_jax.data.embeddings import ARRAY, Embeddings, record_key
from flamingo_jax.data.files import IMAGE_SUFFIXES, image_files
from flamingo_jax.data.schema import CorruptRecord, Document, InterleavedPage, Record, images_of
from flamingo_jax.data.sources import Source

CANDIDATES, CANDIDATES_PAGE = "candidates.json", "candidates.html"
METHODS = ("phash", "embeddings")
DROPS = ("record", "image")
RECORDS_PER_PART = 10_000
_WORK = "work"  # folder in the output, removed at the end
_CHUNK = 4096  # embeddings, or evaluation images, in memory at once


@dataclasses.dataclass(frozen=True)
class DedupRequest:
    """The options that decide a deduplicated dataset.

    Attributes:
      input: directory of the dataset to clean: pairs, interleaved pages, or videos stored as
        frames.
      split: of the dataset.
      against: evaluation sets. For phash, datasets of records or folders of image files; for
        embeddings, directories with embeddings.npy.
      method: phash or embeddings.
      embeddings: directory with the embeddings of all images of the split in order, named
        RECORD/IMAGE HASH, as `evaluate --task=embed` writes them. Keys of version 0.4.0 have no
        hash.
      max_distance: for phash: how many of the 64 bits of a copy may differ.
      min_cosine: for embeddings: smallest similarity at which two images count as the same.
      drop: record: drop a page with a match; image: drop only the image.
    """

    input: str = ""
    split: str = "train"
    against: tuple[str, ...] = ()
    method: str = "phash"
    embeddings: str = ""
    max_distance: int = 6
    min_cosine: float = 0.95
    drop: str = "record"

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("drop", DROPS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"dedup: --{name}={getattr(self, name)}: expected one of {', '.join(known)}."
                )
        if not self.against:
            raise ValueError(
                "dedup: --against is missing: give the evaluation sets to compare with."
            )
        if (self.method == "embeddings") != bool(self.embeddings):
            raise ValueError(
                "dedup: --embeddings, the directory with the input's embeddings, is required with "
                "--method=embeddings and not allowed otherwise."
            )
        if not 0 <= self.max_distance < BITS or not 0 < self.min_cosine <= 1:
            raise ValueError(
                f"dedup: got --max_distance={self.max_distance} and "
                f"--min_cosine={self.min_cosine}, expected 0 to {BITS - 1} bits, and a cosine "
                "above 0, at most 1."
            )


@dataclasses.dataclass(frozen=True)
class Records:
    """Records start..stop-1 of a split."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Match:
    """A pair of nearly equal images.

    Attributes:
      record: number of the training record.
      image: number of the image in that record.
      evaluation: the other image: its set, and its file or record there.
      score: bits that differ, or the cosine.
    """

    record: int
    image: int
    evaluation: str
    score: float

    @property
    def name(self) -> str:
        """RECORD/IMAGE of the training image."""
        return f"{self.record}/{self.image}"


Find = Callable[[int, Record], list[Match]]


def build(request: DedupRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the dataset without the matches, OUTPUT/candidates.json and OUTPUT/candidates.html.

    Args:
      request: what to compare with what.
      output: an empty directory.
      how: runner, workers and limits. With --method=embeddings the search runs here, on all cores.

    Returns:
      The counts of the report, with "candidates" (pairs) and the numbers of evaluation images.

    Raises:
      ValueError: an input is missing, has the wrong kind, or nothing can be read in it.
    """
    try:
        source = Source(request.input, request.split)
    except FileNotFoundError as error:
        raise ValueError(f"--input={request.input}: {error}") from error
    if source.kind == Document.kind:
        raise ValueError(
            f"--input={request.input} holds documents, which have no images. --pipeline=text drops "
            "equal ones."
        )
    work = output / _WORK
    work.mkdir()
    if request.method == "phash":
        counts = _save_hashes(request, work)
    else:
        counts = _save_matches(request, source, work)
    parts = [
        Records(start, min(start + RECORDS_PER_PART, len(source)))
        for start in range(0, len(source), RECORDS_PER_PART)
    ]
    read_part = functools.partial(read, request, os.fspath(work))
    table = collect(parts, read_part, source.kind, output, how).table()
    saved = (json.loads(regular(_candidates(work, part)).read_text()) for part in parts)
    found = [Match(**match) for matches in saved for match in matches]
    _write_candidates(request, source, output, found)
    work.rmtree()
    return table | {"candidates": len(found)} | counts


def _write_candidates(
    request: DedupRequest, source: Source, output: epath.Path, found: list[Match]
) -> None:
    """Writes the pairs, the closest first, to candidates.json and candidates.html."""
    is_distance = request.method == "phash"
    measure = "bits that differ" if is_distance else "cosine"

    def by_closeness(match: Match) -> tuple[float, int, int]:
        return match.score if is_distance else -match.score, match.record, match.image

    def shown(match: Match) -> tuple[float, str, bytes, str, bytes]:
        training = images_of(source[match.record])[match.image]
        evaluation = _evaluation_image(request, match)
        return match.score, match.name, training, match.evaluation, evaluation

    found = sorted(found, key=by_closeness)
    pairs = [
        {"training": match.name, "evaluation": match.evaluation, "score": match.score}
        for match in found
    ]
    text = json.dumps({"score": measure, "pairs": pairs}, indent=1, allow_nan=False) + "\n"
    (output / CANDIDATES).write_text(text)
    html = page(map(shown, found[:MAX_PAIRS]), len(pairs), measure)
    (output / CANDIDATES_PAGE).write_text(html)


def read(request: DedupRequest, work: str, part: Records) -> Iterator[Found | Reject]:
    """Yields the records of a part that have no match.

    At the end, writes the matches of the part into the directory `work`.
    """
    one_thread()
    source, find = Source(request.input, request.split), _finder(request, epath.Path(work))
    matches: list[Match] = []
    for number in range(part.start, part.stop):
        try:
            record = source[number]
            found = find(number, record)
        except CorruptRecord as error:
            yield Reject(error.reason, f"record {number}: {error}", broken=True)
            continue
        matches += found
        yield from _without(record, found, request.drop)
    _candidates(epath.Path(work), part).write_text(
        json.dumps([dataclasses.asdict(match) for match in matches], allow_nan=False)
    )


def _without(record: Record, found: list[Match], drop: str) -> Iterator[Found | Reject]:
    """Yields the record without what matches, and a Reject for what is left out."""
    if not found:
        yield Found(record)
        return
    details = {match.image: f"{match.name} is {match.evaluation}" for match in found}
    if drop == "record" or not isinstance(record, InterleavedPage):
        yield Reject("in_evaluation_set", next(iter(details.values())))
        return
    for detail in details.values():
        yield Reject("in_evaluation_set", detail, unit="image")
    numbers = itertools.count()
    kept = tuple(
        part for part in record.parts if isinstance(part, str) or next(numbers) not in details
    )
    if any(isinstance(part, bytes) for part in kept):
        yield Found(dataclasses.replace(record, parts=kept))
    else:
        yield Reject("no_image_left")


def _finder(request: DedupRequest, work: epath.Path) -> Find:
    """Returns the function that finds the matches of a record, given its number."""
    if request.method == "embeddings":
        matches: dict[int, list[Match]] = {}
        for saved in json.loads(regular(work / "matches.json").read_text()):
            match = Match(**saved)
            matches.setdefault(match.record, []).append(match)
        return lambda number, record: matches.get(number, [])
    with regular(work / "hashes.npy").open("rb") as file:
        index = HashIndex(np.load(file, allow_pickle=False))
    keys = json.loads(regular(work / "keys.json").read_text())

    def find(number: int, record: Record) -> list[Match]:
        images, hashes = [], []
        for image, data in enumerate(images_of(record)):
            if (found := phash(data)) is not None:
                images.append(image)
                hashes.append(found)
        pairs = index.search(np.asarray(hashes, np.uint8), request.max_distance)
        return [Match(number, images[query], keys[row], bits) for query, row, bits in pairs]

    return find


def _candidates(work: epath.Path, part: Records) -> epath.Path:
    return work / f"candidates-{part.start}.json"


def _save_hashes(request: DedupRequest, work: epath.Path) -> dict[str, int]:
    """Hashes the evaluation images on all cores: decoding releases Python's lock."""
    hashes: list[np.ndarray] = []
    keys: list[str] = []
    unreadable = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        evaluation = (image for place in request.against for image in _evaluation_images(place))
        while chunk := list(itertools.islice(evaluation, _CHUNK)):
            found_in_order = pool.map(_try_phash, (get for _, get in chunk))
            for (key, _), found in zip(chunk, found_in_order, strict=True):
                if isinstance(found, np.ndarray):
                    hashes.append(found)
                    keys.append(key)
                else:
                    unreadable += 1
    if not hashes:
        raise ValueError(
            f"--against={','.join(request.against)}: none of the {unreadable} images there can be "
            "compared. Check the path."
        )
    with (work / "hashes.npy").open("wb") as file:
        np.save(file, np.stack(hashes))
    (work / "keys.json").write_text(json.dumps(keys, allow_nan=False))
    return {"evaluation images": len(keys), "evaluation images left out": unreadable}


def _try_phash(get: Callable[[], bytes]) -> np.ndarray | None:
    """Returns None for an image that is damaged or has no hash, which is counted."""
    try:
        return phash(get())
    except (CorruptRecord, OSError):
        return None


def _evaluation_images(place: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields (name, function that reads its bytes) of each image of an evaluation set."""
    directory = epath.Path(place)
    if (directory / "dataset_info.json").exists():
        import tensorflow_datasets as tfds

        for split in tfds.builder_from_directory(os.fspath(directory)).info.splits:
            source = Source(directory, split)
            for number in range(len(source)):
                try:
                    found = images_of(source[number])
                except CorruptRecord:
                    found = (b"",)
                for image, data in enumerate(found):
                    yield f"{place}:{split}/{number}/{image}", functools.partial(bytes, data)
        return
    files = image_files(directory)
    first = next(files, None)
    if first is None:
        raise ValueError(
            f"--against={place}: there is no dataset (dataset_info.json) and no image file ending "
            f"in {', '.join(IMAGE_SUFFIXES)} there. Check the path."
        )
    for file in itertools.chain([first], files):
        yield f"{place}:{os.path.relpath(file, directory)}", file.read_bytes


def _evaluation_image(request: DedupRequest, match: Match) -> bytes:
    """Returns the evaluation image of a match; b"" if only its embedding is known."""
    if request.method == "embeddings":
        return b""
    places = [place for place in request.against if match.evaluation.startswith(f"{place}:")]
    place = max(places, key=len)
    name = match.evaluation.removeprefix(f"{place}:")
    if not (epath.Path(place) / "dataset_info.json").exists():
        return regular(epath.Path(place) / name).read_bytes()
    split, record, image = name.split("/")
    return images_of(Source(place, split)[int(record)])[int(image)]


def _save_matches(request: DedupRequest, source: Source, work: epath.Path) -> dict[str, int]:
    """Searches all images of the input, chunk by chunk, and saves the matches for the workers."""
    images = _opened(request.embeddings, "--embeddings")
    sets = [_opened(place, "--against") for place in request.against]
    index, keys = EmbeddingIndex(images.width), list[str]()
    for place, evaluation in zip(request.against, sets, strict=True):
        if evaluation.width != images.width:
            raise ValueError(
                f"--against={place}: its embeddings have {evaluation.width} numbers, those in "
                f"{request.embeddings} {images.width}. Make both with the same checkpoint."
            )
        for names, rows in evaluation.chunks(_CHUNK):
            index.add(rows)
            keys += [f"{place}:{name}" for name in names]
    matches = []
    for names, rows in images.chunks(_CHUNK):
        _check_images(names, request, source)
        for query, row, cosine in index.search(rows, request.min_cosine):
            record, image = _parse_key(names[query], request.embeddings, len(source))
            matches.append(dataclasses.asdict(Match(record, image, keys[row], round(cosine, 6))))
    (work / "matches.json").write_text(json.dumps(matches, allow_nan=False))
    return {"evaluation images": len(keys), "training images": len(images)}


def _opened(place: str, flag: str) -> Embeddings:
    try:
        return Embeddings(place)
    except FileNotFoundError as error:
        raise ValueError(f"{flag}={place}: {error}") from error


def _check_images(keys: Sequence[str], request: DedupRequest, source: Source) -> None:
    """Raises ValueError if the rows are those of other images than the input has now."""
    place, size = request.embeddings, len(source)
    numbered = ((_parse_key(key, place, size), key) for key in keys if " " in key)
    for record, of_record in itertools.groupby(numbered, key=lambda each: each[0][0]):
        try:
            images = images_of(source[record])
        except CorruptRecord:
            images = ()
        for (_, image), key in of_record:
            if image >= len(images) or record_key(record, image, images[image]) != key:
                raise ValueError(
                    f"{place}: the row {key!r} was made from another image than "
                    f"{record}/{image} of {request.input} is now. Write the embeddings again, with "
                    "evaluate --task=embed."
                )


def _parse_key(key: str, place: str, num_records: int) -> tuple[int, int]:
    record, _, image = key.partition(" ")[0].partition("/")
    if not (record.isdecimal() and image.isdecimal() and int(record) < num_records):
        raise ValueError(
            f"{place} names a row {key!r}, expected RECORD/IMAGE with a record below "
            f"{num_records}, the number in the input. Was {ARRAY} made from another dataset?"
        )
    return int(record), int(image)
