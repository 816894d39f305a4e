r"""Computes how much space a batch needs, from the statistics of a dataset.

For pages, the result is the size of a data shard's pool of images. For documents, it is the number
of documents for a row of text.

    python -m data_pipelines.run --pipeline=pool --dataset=/data/records/m3w \
        --tokenizer=/data/tokenizer --output=/data/pool --rows_per_shard=32 --batches=48000000

    pages  --windows as in training, no image decoded-->  images per row: p
           --sum of R rows: p * p * .. * p-->             smallest pool

The number of images in the R rows of a shard is a sum of R independent draws. Its distribution is
the R-fold convolution of the histogram, which is computed exactly. The pool is the smallest one
that overflows in a whole run with less than the given probability. One row with the largest number
of images is added to the histogram, so that what is not in the sample does not count as impossible.

For documents, the result says how much of a row `documents_per_row` documents fill, and how much of
their text an epoch reads. Text that does not fit in the row is skipped until another epoch shows it
in another order.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
from etils import epath

from data_pipelines.on_beam import Execution
from flamingo_jax.core import seeds
from flamingo_jax.data import interleave
from flamingo_jax.data.schema import CorruptRecord, InterleavedPage, Record
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.markers import EOC

FILE_NAME = "pool.json"
_FULL = 0.95  # share of a row of text that documents_per_row must fill
_MOST_DOCUMENTS = 128
_ROWS = 4096  # simulated rows of text


@dataclasses.dataclass(frozen=True)
class PoolRequest:
    """The options that decide the size of a pool.

    Attributes:
      dataset: directory of a dataset of pages or of documents.
      tokenizer: directory or file of the tokenizer.
      split: of the dataset.
      length: L, tokens per row.
      max_images: N, images per row of interleaved pages.
      new_tokens: those of the model, in its order.
      rows_per_group: for text: rows that share their documents.
      rows_per_shard: rows of a batch on one data shard: batch_size / (replica * data). With
        `chunks` k of the dataset, a k-th of that; its `pool` is then k times the result.
      batches: batches of all shards in the whole run: steps * data shards (* k).
      overflow_probability: of the whole run.
      num_sampled: largest number of records to draw.
      seed: of the sample.
    """

    dataset: str = ""
    tokenizer: str = ""
    split: str = "train"
    length: int = 256
    max_images: int = 5
    new_tokens: tuple[str, ...] = (EOC,)
    rows_per_group: int = 1
    rows_per_shard: int = 32
    batches: int = 1_000_000
    overflow_probability: float = 1e-6
    num_sampled: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dataset", "tokenizer"):
            if not getattr(self, name):
                raise ValueError(f"pool: --{name} is missing: give the directory of a {name}.")
        for name in (
            "length",
            "max_images",
            "rows_per_group",
            "rows_per_shard",
            "batches",
            "num_sampled",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"pool: got --{name}={getattr(self, name)}, expected at least 1.")
        seeds.check(self.seed, "pool: --seed")
        if not 0 < self.overflow_probability < 1:
            raise ValueError(
                f"pool: got --overflow_probability={self.overflow_probability}, expected one "
                "between 0 and 1."
            )


def build(request: PoolRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes OUTPUT/pool.json.

    Returns:
      The numbers to print, shares in percent: for pages {"pool", "without_pool",
      "percent_pool_empty", "percent_empty_without_pool", "percent_padded_tokens"}, for documents
      {"documents_per_row", "percent_padded_tokens", "percent_text_seen"}; and "sampled", "corrupt".

    Raises:
      ValueError: the dataset contains neither pages nor documents, or no record can be read.
    """
    del how  # one core draws a sample within minutes
    source = Source(request.dataset, request.split)
    tokenizer = load_tokenizer(request.tokenizer, request.new_tokens)
    if source.kind == "interleaved_page":
        result, numbers = _of_pages(request, source, tokenizer)
    elif source.kind == "document":
        result, numbers = _of_documents(request, source, tokenizer)
    else:
        raise ValueError(
            f"pool: {request.dataset} holds {source.kind}, each with one visual input: its batches "
            "need no pool. Expected pages or documents."
        )
    (output / FILE_NAME).write_text(
        json.dumps(dataclasses.asdict(request) | result, indent=2, allow_nan=False) + "\n"
    )
    return numbers


def capacity(histogram: np.ndarray, rows: int, probability: float) -> int:
    """Returns the smallest pool that `rows` rows overflow with at most `probability`.

    Args:
      histogram: float64[N + 1] share of the rows with 0, 1, ... N images.
      rows: R, rows of a shard.
      probability: of an overflow in one batch of the shard.
    """
    total = distribution(histogram, rows)
    # Summed from the small end of the tail, so that no small term is rounded away.
    beyond = np.append(np.cumsum(total[:0:-1])[::-1], 0.0)
    return int(np.flatnonzero(beyond <= probability)[0])


def distribution(histogram: np.ndarray, rows: int) -> np.ndarray:
    """Returns the distribution of the sum of `rows` draws from `histogram`, float64[R N + 1].

    It is the R-fold convolution. All terms are positive, so small probabilities keep their relative
    precision.
    """
    result, power = np.ones(1), np.asarray(histogram, np.float64)
    while rows:
        if rows % 2:
            result = np.convolve(result, power)
        power = np.convolve(power, power) if rows > 1 else power
        rows //= 2
    return result


def fill(lengths: np.ndarray, length: int, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes how well d documents per group of rows fill it, for each d.

    Args:
      lengths: int[n] tokens of the documents. A document longer than a group counts as a group,
        since only a window of it is read.
      length: tokens of a group, L for each of its rows.
      documents: int[n, d] the documents of each group.

    Returns:
      (share of a group that is filled, share of the text that is read), float[d] each.
    """
    total = np.minimum(np.asarray(lengths), length)[documents].cumsum(axis=1)
    seen = np.minimum(total, length)
    return seen.mean(axis=0) / length, seen.sum(axis=0) / total.sum(axis=0)


def _of_pages(
    request: PoolRequest, source: Source, tokenizer: Tokenizer
) -> tuple[dict[str, object], dict[str, int]]:
    rng = np.random.default_rng(request.seed)
    tag_length = len(interleave.tag_of(tokenizer).own)
    size = {"length": request.length, "max_images": request.max_images, "tag_length": tag_length}

    def measure(record: Record) -> tuple[int, int]:
        assert isinstance(record, InterleavedPage)
        tokens, phi = interleave.tokenise_page(record, tokenizer)
        window = interleave.window(tokens, phi, p_next=0.0, rng=rng, **size)
        return window.num_images, len(window.tokens)

    measured, corrupt = _sample(request, source, measure)
    images, tokens = measured[:, 0], measured[:, 1]
    counts = np.bincount(images, minlength=request.max_images + 1)
    counts[-1] += 1
    histogram = counts / counts.sum()
    probability = request.overflow_probability / request.batches
    pool = max(capacity(histogram, request.rows_per_shard, probability), 1)
    without = request.rows_per_shard * request.max_images
    mean = images.mean() * request.rows_per_shard
    padded = 1 - tokens.mean() / request.length
    result = {
        "pool": pool,
        "without_pool": without,
        "images_per_row": {"mean": float(images.mean()), "histogram": histogram.tolist()},
        "share_of_pool_empty": float(1 - mean / pool),
        "share_empty_without_pool": float(1 - mean / without),
        "share_of_padded_tokens": float(padded),
        "sampled": len(measured),
        "corrupt": corrupt,
    }
    return result, {
        "pool": pool,
        "without_pool": without,
        "percent_pool_empty": round(100 * (1 - mean / pool)),
        "percent_empty_without_pool": round(100 * (1 - mean / without)),
        "percent_padded_tokens": round(100 * padded),
        "sampled": len(measured),
        "corrupt": corrupt,
    }


def _of_documents(
    request: PoolRequest, source: Source, tokenizer: Tokenizer
) -> tuple[dict[str, object], dict[str, int]]:
    measure = lambda record: (len(interleave.tokenise_text(record.text, tokenizer)),)
    lengths, corrupt = _sample(request, source, measure)
    lengths = lengths[:, 0]
    rng = np.random.default_rng(request.seed)
    rows = request.rows_per_group
    drawn = rng.integers(len(lengths), size=(max(_ROWS // rows, 1), _MOST_DOCUMENTS * rows))
    shares = fill(lengths, request.length * rows, drawn)
    filled, seen = (share[rows - 1 :: rows] for share in shares)
    documents = int(np.argmax(filled >= min(_FULL, filled[-1])))
    shown = (1, 2, 4, 8, 16, 32, 64, 128)
    result = {
        "documents_per_row": documents + 1,
        "tokens_per_document": float(lengths.mean()),
        "share_filled": {str(d): float(filled[d - 1]) for d in shown},
        "share_of_text_seen": {str(d): float(seen[d - 1]) for d in shown},
        "sampled": len(lengths),
        "corrupt": corrupt,
    }
    return result, {
        "documents_per_row": documents + 1,
        "percent_padded_tokens": round(100 * (1 - filled[documents])),
        "percent_text_seen": round(100 * seen[documents]),
        "sampled": len(lengths),
        "corrupt": corrupt,
    }


def _sample(
    request: PoolRequest, source: Source, measure: Callable[[Record], tuple[int, ...]]
) -> tuple[np.ndarray, int]:
    """Measures a sample of records, drawn without repetition.

    Returns:
      (what `measure` returns of each record, int64[n, k]; the number of corrupt records).
    """
    number = min(request.num_sampled, len(source))
    chosen = np.random.default_rng([request.seed, 1]).choice(len(source), number, replace=False)
    measured, corrupt = [], 0
    for index in chosen:
        try:
            measured.append(measure(source[int(index)]))
        except CorruptRecord:
            corrupt += 1
    if not measured:
        raise ValueError(
            f"pool: all {corrupt} records drawn from {request.dataset} are corrupt. Write the "
            "dataset again."
        )
    return np.asarray(measured, np.int64), corrupt
