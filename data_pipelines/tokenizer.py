r"""Trains a SentencePiece model on the texts of one or more datasets.

    python -m data_pipelines.run --pipeline=tokenizer --input=runs/demo/world/text \
        --output=runs/demo/tokenizer --model_type=word

The output contains tokenizer.model. The new tokens of a model (`<EOC>`, `<image>`) are not part of
it. Datasets are separated by commas: --input=runs/emoji/records/text,runs/emoji/records/captions.
SentencePiece keeps its text in memory. So larger datasets are sampled: records are drawn until
they have --max_bytes, every record with the same probability. If some are so long that they would
take the place of all others, a window of each is taken.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np
from etils import epath

from data_pipelines.inputs import named
from flamingo_jax.core.paths import regular
from flamingo_jax.data.schema import CorruptRecord, InterleavedPage
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.base import FILE_NAME
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

MODEL_TYPES = ("unigram", "bpe", "word", "char")


@dataclasses.dataclass(frozen=True)
class TokenizerRequest:
    """The options that decide a tokenizer.

    Attributes:
      input: directories of datasets of any kind, separated by commas; their splits "train" are
        read.
      vocab_size: number of pieces; fewer if the text has not so many.
      model_type: one of MODEL_TYPES; "word" makes each word one piece.
      max_bytes: largest amount of text to train on; training needs about 20 times as much memory.
      seed: of the sample, if there is more text.
      input_files: identifies the content of the input: of each dataset its dataset_info.json, and
        the request that it was made from if that is known.
    """

    input: str = ""
    vocab_size: int = 32_000
    model_type: str = "unigram"
    max_bytes: int = 40_000_000
    seed: int = 0
    input_files: str = dataclasses.field(init=False, default="")

    def __post_init__(self) -> None:
        if self.model_type not in MODEL_TYPES:
            raise ValueError(
                f"tokenizer: got model_type={self.model_type!r}, expected one of "
                f"{', '.join(MODEL_TYPES)}."
            )
        for name in ("vocab_size", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"tokenizer: got --{name}={getattr(self, name)}, expected at least 1."
                )
        if self.seed < 0:
            raise ValueError(f"tokenizer: got --seed={self.seed}, expected 0 or more.")
        known = [part for directory in _directories(self.input) for part in _origin(directory)]
        object.__setattr__(self, "input_files", json.dumps(known, sort_keys=True, allow_nan=False))


class Datasets:
    """The records of several datasets, one dataset after the other.

    Args:
      directories: of the datasets.

    Raises:
      FileNotFoundError: a dataset has no split "train", or lacks a file.
    """

    def __init__(self, directories: Sequence[epath.PathLike]):
        self._sources = [Source(directory) for directory in directories]
        self._ends = np.cumsum([len(source) for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def texts(self, number: int) -> list[str]:
        """Returns the texts of record `number`, in order.

        Raises:
          CorruptRecord: the record cannot be read.
        """
        which = int(np.searchsorted(self._ends, number, side="right"))
        source = self._sources[which]
        record = source[number - int(self._ends[which]) + len(source)]
        return [*record.texts] if isinstance(record, InterleavedPage) else [record.text]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What is read of the datasets.

    Attributes:
      records: int[n] numbers of the records, ascending.
      most: bytes that are read of one record.
      damaged: number of records that cannot be read, of those that were drawn.
    """

    records: np.ndarray
    most: int
    damaged: int


def build(request: TokenizerRequest, output: epath.Path) -> dict[str, int]:
    """Trains the tokenizer and writes OUTPUT/tokenizer.model.

    Returns:
      The numbers of records, of those not drawn, damaged, and read in part; of the texts and bytes
      that were read; and of the pieces of the vocabulary.

    Raises:
      ValueError: the datasets have no text, or the vocabulary is too small for it.
    """
    try:
        datasets = Datasets(_directories(request.input))
    except FileNotFoundError as error:
        raise ValueError(f"tokenizer: --input={request.input}: {error}") from error
    drawn = sample(datasets, request.max_bytes, request.seed)
    counts = {
        "records": len(datasets),
        "records not drawn": len(datasets) - len(drawn.records) - drawn.damaged,
        "damaged records": drawn.damaged,
        "records read in part": 0,
        "texts": 0,
        "bytes": 0,
    }

    def lines() -> Iterator[str]:
        for number in drawn.records.tolist():
            texts = datasets.texts(number)
            if _size(texts) > drawn.most:
                counts["records read in part"] += 1
                texts = [window("\n".join(texts), drawn.most, (request.seed, number))]
            for text in texts:
                counts["texts"] += 1
                counts["bytes"] += _size([text])
                yield text

    model_type = cast(Literal["unigram", "bpe", "word", "char"], request.model_type)
    try:
        train_sentencepiece(lines(), output / FILE_NAME, request.vocab_size, model_type)
    except ValueError as error:
        raise ValueError(f"tokenizer: --input={request.input}: {error}") from error
    return counts | {"pieces": SentencePieceTokenizer.load(output).vocab_size}


def sample(datasets: Datasets, max_bytes: int, seed: int) -> Drawn:
    """Draws records, every one with the same probability, until they have `max_bytes`."""
    numbers, sizes, damaged = list[int](), list[int](), 0
    # So that one long record does not end the draw.
    share = max(max_bytes // 100, 1)
    total = 0
    for number in np.random.default_rng(seed).permutation(len(datasets)).tolist():
        try:
            size = _size(datasets.texts(number))
        except CorruptRecord:
            damaged += 1
            continue
        numbers.append(number)
        sizes.append(size)
        total += min(size, share)
        if total >= max_bytes:
            break
    return Drawn(np.sort(np.asarray(numbers, np.int64)), _level(sizes, max_bytes), damaged)


def window(text: str, most: int, seed: tuple[int, int]) -> str:
    """Returns about `most` bytes of a text from a random place, in whole words where possible."""
    data = text.encode()
    start = int(np.random.default_rng(seed).integers(len(data) - most + 1))
    cut = data[start : start + most].decode(errors="ignore")
    head, space, tail = cut.partition(" ")
    if start and space:
        cut = tail
    head, space, tail = cut.rpartition(" ")
    return head if start + most < len(data) and space else cut


def _level(sizes: list[int], total: int) -> int:
    """Returns the largest number of bytes of one record with which all have at most `total`."""
    left = total
    for place, size in enumerate(sorted(sizes)):
        if size * (len(sizes) - place) > left:
            return max(left // (len(sizes) - place), 1)
        left -= size
    return total


def _size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _directories(wanted: str) -> list[epath.Path]:
    """Returns the directories of the datasets that --input names.

    Raises:
      ValueError: a dataset is missing, or named twice.
    """
    found = list[epath.Path]()
    for name, places in named(wanted):
        for place in places or [epath.Path(name)]:
            if not (place / "dataset_info.json").exists():
                raise ValueError(
                    f"tokenizer: there is no dataset at {str(place)!r} (no dataset_info.json); "
                    "--input takes the directory of one, such as runs/demo/world/text, or several, "
                    "separated by commas. --pipeline=text makes one of JSON lines or parquet."
                )
            if place in found:
                raise ValueError(f"tokenizer: --input={wanted} has {str(place)!r} twice.")
            found.append(place)
    if not found:
        raise ValueError(
            "tokenizer: --input is missing: give the directory of a dataset, such as "
            "runs/demo/world/text."
        )
    return found


def _origin(directory: epath.Path) -> tuple[object, object]:
    """Returns the dataset_info.json of a dataset, and the request that it was made from or None."""
    made_by = [place / "pipeline.json" for place in (directory, directory.parent)]
    request = next(
        (json.loads(regular(file).read_text())["request"] for file in made_by if file.exists()),
        None,
    )
    return json.loads(regular(directory / "dataset_info.json").read_text()), request
