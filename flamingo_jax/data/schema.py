"""The kinds of records that the data pipelines write, and the batch that the model reads.

    page, pair, video, answers, document --to_example--> TFDS example (ArrayRecord)
        --from_example--> page, pair, video, answers, document --mixture--> Batch

Images stay encoded (JPEG, PNG or WebP bytes) until the loader decodes them. A video is stored as
its sampled frames, each an encoded image, or as one encoded file. The contents of a page, a pair
and a video follow section 2.4 and appendix A.3 of the paper, which does not publish a file format.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic

import jax.tree_util
import numpy as np

from flamingo_jax.core.trees import T
from flamingo_jax.data.answers import Conversation, ImageAnswers, VideoAnswers


class CorruptRecord(ValueError):
    """A stored record that cannot be used. The loader counts it and takes the next one instead.

    Attributes:
        reason: the name under which the loader and data_pipelines count it: lower case words joined
            by "_".
    """

    def __init__(self, message: str, *, reason: str = "corrupt_record"):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class InterleavedPage:
    """A web page: its texts (str) and encoded images (bytes) in order (M3W; paper, A.3.1)."""

    kind: ClassVar[str] = "interleaved_page"
    parts: tuple[str | bytes, ...]
    metadata: str = ""  # JSON, free form (source, licence, ...)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the page, in order."""
        return tuple(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[bytes, ...]:
        """The encoded images of the page, in order."""
        return tuple(part for part in self.parts if isinstance(part, bytes))


@dataclasses.dataclass(frozen=True)
class ImageText:
    """An encoded image and its text (paper: ALIGN, LTIP)."""

    kind: ClassVar[str] = "image_text"
    image: bytes
    text: str
    metadata: str = ""


@dataclasses.dataclass(frozen=True)
class VideoText:
    """A short video and its text (paper: VTP).

    The video is stored either as sampled `frames` (encoded images, `fps` of them per second) or as
    one encoded file, `video`.
    """

    kind: ClassVar[str] = "video_text"
    frames: tuple[bytes, ...]
    text: str
    fps: float = 1.0
    video: bytes = b""
    metadata: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A text without images, for the language model."""

    kind: ClassVar[str] = "document"
    text: str
    metadata: str = ""


Record = (
    InterleavedPage | ImageText | VideoText | ImageAnswers | VideoAnswers | Conversation | Document
)
RECORDS: dict[str, type[Record]] = {
    r.kind: r
    for r in (
        *(InterleavedPage, ImageText, VideoText, ImageAnswers, VideoAnswers, Conversation),
        Document,
    )
}


def images_of(record: Record) -> tuple[bytes, ...]:
    """Returns the encoded images of a record of any kind, in order.

    For a video these are its stored frames; a video that is stored as a file has none.
    """
    if isinstance(record, InterleavedPage | Conversation):
        return record.images
    if isinstance(record, ImageText | ImageAnswers):
        return (record.image,)
    return () if isinstance(record, Document) else record.frames


_TEXT, _IMAGE = 0, 1  # the values of "order" in a stored page


# The stored fields of each kind. A field is a text, or what `features` says.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "interleaved_page": ("texts", "images", "order", "metadata"),
    "image_text": ("image", "text", "metadata"),
    "video_text": ("frames", "fps", "video", "text", "metadata"),
    "image_answers": ("image", "prompts", "answers", "metadata"),
    "video_answers": ("frames", "fps", "video", "prompts", "answers", "metadata"),
    "conversation": ("turns", "images", "order", "metadata"),
    "document": ("text", "metadata"),
}
_LISTS = ("texts", "images", "frames", "prompts", "answers", "turns")


def features(kind: str) -> Any:
    """Returns the `tfds.features.FeaturesDict` of stored records of `kind`, a key of RECORDS."""
    import tensorflow_datasets as tfds

    text, several = tfds.features.Text, tfds.features.Sequence  # Text stores bytes as they are
    types: dict[str, Any] = {
        **{name: several(text()) for name in _LISTS},
        # For each part of a page: 0 = the next text, 1 = the next image; see Conversation.parts.
        "order": several(np.int64),
        "fps": np.float32,
    }
    return tfds.features.FeaturesDict(
        {name: types.get(name, text()) for name in _FIELDS[_known(kind)]}
    )


def kind_of(names: Any) -> str:
    """Returns the kind of record that has exactly these fields.

    Raises:
        ValueError: no kind has these fields.
    """
    for kind, expected in _FIELDS.items():
        if set(names) == set(expected):
            return kind
    raise ValueError(
        f"These stored fields belong to no known kind of record: {sorted(names)}. Expected one of "
        f"{ {kind: sorted(fields) for kind, fields in _FIELDS.items()} }: write the dataset with "
        "data_pipelines."
    )


def text_of(record: Record) -> str:
    """Returns all text of a record; of a page, its parts one after the other."""
    return "".join(record.texts) if isinstance(record, InterleavedPage) else record.text


def to_example(record: Record) -> dict[str, Any]:
    """Returns the fields of `record`, in the form that `features(record.kind)` encodes."""
    if isinstance(record, InterleavedPage):
        order = [_TEXT if isinstance(part, str) else _IMAGE for part in record.parts]
        return {
            "texts": list(record.texts),
            "images": list(record.images),
            "order": np.asarray(order, np.int64),
            "metadata": record.metadata,
        }
    if isinstance(record, Conversation):
        return record.parts()
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


def from_example(kind: str, example: Mapping[str, Any]) -> Record:
    """Makes a record from a stored example: the inverse of `to_example`.

    Args:
        kind: of the record.
        example: from a TFDS data source of `features(kind)`; texts are bytes or str.

    Raises:
        CorruptRecord: a field is missing, a text is not UTF-8, the order of a page or conversation
            does not fit its texts and images, or a record of answers has none.
    """
    record = RECORDS[_known(kind)]
    try:
        metadata = _as_text(example["metadata"])
        if record is InterleavedPage:
            return InterleavedPage(_parts(example), metadata)
        if record is ImageText:
            return ImageText(bytes(example["image"]), _as_text(example["text"]), metadata)
        if record is Document:
            return Document(_as_text(example["text"]), metadata)
        if record is Conversation:
            return _conversation(example, metadata)
        if record is ImageAnswers:
            return ImageAnswers(bytes(example["image"]), *_asked(example), metadata)
        frames = tuple(bytes(frame) for frame in example["frames"])
        if record is VideoAnswers:
            return VideoAnswers(
                frames,
                *_asked(example),
                float(example["fps"]),
                bytes(example["video"]),
                metadata,
            )
        return VideoText(
            frames,
            _as_text(example["text"]),
            float(example["fps"]),
            bytes(example["video"]),
            metadata,
        )
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        reason = "broken_text" if isinstance(error, UnicodeDecodeError) else "corrupt_record"
        raise CorruptRecord(f"A stored {kind} cannot be read: {error!r}.", reason=reason) from error


def _known(kind: str) -> str:
    if kind not in RECORDS:
        raise ValueError(f"Unknown kind of record {kind!r}. Expected one of {sorted(RECORDS)}.")
    return kind


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else bytes(value).decode("utf-8")


def _asked(example: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    prompts, answers = (
        tuple(_as_text(text) for text in example[name]) for name in ("prompts", "answers")
    )
    if len(prompts) % 2 != 1 or not answers:
        raise CorruptRecord(
            f"A stored record has {len(prompts)} prompts with the answers between them, and "
            f"{len(answers)} answers to the last one; expected an odd number, and at least one "
            "answer.",
            reason="no_answer",
        )
    return prompts, answers


def _conversation(example: Mapping[str, Any], metadata: str) -> Conversation:
    order, images = list(map(int, example["order"])), list(map(bytes, example["images"]))
    turns = list(map(_as_text, example["turns"]))
    try:
        return Conversation.of_parts(order, turns, images, metadata)
    except ValueError as error:
        raise CorruptRecord(f"A stored conversation is inconsistent: {error}") from error


def _parts(example: Mapping[str, Any]) -> tuple[str | bytes, ...]:
    order = [int(entry) for entry in example["order"]]
    texts, images = list(example["texts"]), list(example["images"])
    if (
        order.count(_IMAGE) != len(images)
        or order.count(_TEXT) != len(texts)
        or len(order) != len(texts) + len(images)
    ):
        raise CorruptRecord(
            f"A stored page is inconsistent: its order has {order.count(_IMAGE)} images and "
            f"{order.count(_TEXT)} texts among {len(order)} parts, but {len(images)} images and "
            f"{len(texts)} texts are stored."
        )
    next_text, next_image = iter(texts), iter(images)
    return tuple(
        _as_text(next(next_text)) if entry == _TEXT else bytes(next(next_image)) for entry in order
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch(Generic[T]):
    """B sequences and the pool of the M visual inputs that they attend.

    A batch is a pytree: numpy arrays on the host, jax arrays on the devices. `media_index` is the
    index phi of the paper (section 2.3, Figure 7: masking). It is computed when the data is read
    and never from token ids, so that p_next, other tokenizers and text before the first image need
    no code in the model.

    Each data shard has a pool: with S shards, rows [s*B/S, (s+1)*B/S) of the batch use rows
    [s*M/S, (s+1)*M/S) of `frames`, and their `media_slot` counts from the first of these rows.
    Each of its k chunks has a pool of its own: rows, pool and slots are as with S*k data shards,
    the chunks of a shard one after the other.

    Attributes:
        tokens: int32[B, L] token ids; ids from the tokenizer's vocab_size on are the new tokens.
        segment: int32[B, L] number of the packed document, from 1; 0 = padding.
        loss_weights: float32[B, L] weight of token l as a target: 0 on padding and on <BOS>, else
            1. The loss at position l predicts token l + 1 and has the weight
            loss_weights[:, l + 1].
        media_index: int32[B, L] phi: the number (1..N) of the visual input of its sequence that a
            token attends; 0 = no visual input.
        media_slot: int32[B, N] row of the shard's pool that contains the n-th visual input of the
            sequence; -1 = the sequence has no n-th visual input.
        frames: uint8[M, F, H, W, 3] the pool.
        frame_mask: bool[M, F] False after the end of a shorter video, and on unused rows of the
            pool. For a model that sees tiles it is int8[M, F]: 0 where an image has no tile, and on
            its tiles the number of their arrangement (`data.images.tiles.arrangements`).
        media_key: uint32[M, 2] key of each visual input for flip and colours in training: a hash of
            (seed, dataset, position, number of the visual input in its row). Zeros on unused rows.
            None in prompts, which are never augmented.
        chunks: k, the parts in which an update takes the batch (training/chunks.py). No array.
    """

    tokens: T
    segment: T
    loss_weights: T
    media_index: T
    media_slot: T
    frames: T
    frame_mask: T
    media_key: T | None = None
    chunks: int = dataclasses.field(default=1, metadata={"static": True})

    @classmethod
    def of_text(cls, tokens: T, segment: T) -> "Batch[T]":
        """Returns packed text for a language model, without loss weights: other fields are None."""
        return cls(tokens, segment, *[None] * 5)  # type: ignore[arg-type]


_DTYPES = {
    "tokens": np.int32,
    "segment": np.int32,
    "loss_weights": np.float32,
    "media_index": np.int32,
    "media_slot": np.int32,
    "frames": np.uint8,
    "frame_mask": np.bool_,
    "media_key": np.uint32,
}
_SHAPES = {
    "tokens": "[B, L]",
    "segment": "[B, L]",
    "loss_weights": "[B, L]",
    "media_index": "[B, L]",
    "media_slot": "[B, N]",
    "frames": "[M, F, H, W, 3]",
    "frame_mask": "[M, F]",
    "media_key": "[M, 2]",
}


def check(batch: Batch[np.ndarray], *, num_shards: int = 1, where: str = "batch") -> None:
    """Checks that a batch on the host is consistent, as the attributes of Batch say.

    Args:
        batch: the batch, in numpy arrays.
        num_shards: data shards of the batch, one after the other.
        where: names the batch in the error.

    Raises:
        ValueError: names the first error, with its row and position.
    """
    _check_shapes(batch, where)
    num_rows, pool, max_images = len(batch.tokens), len(batch.frames), batch.media_slot.shape[1]
    num_pools = num_shards * batch.chunks
    if num_rows % num_pools or pool % num_pools:
        in_chunks = f" in {batch.chunks} chunks each" if batch.chunks > 1 else ""
        raise ValueError(
            f"{where}: {num_rows} rows and a pool of {pool} do not split evenly over "
            f"{num_shards} shards{in_chunks}."
        )
    capacity = pool // num_pools
    slot, index, weights = batch.media_slot, batch.media_index, batch.loss_weights

    if bad := _first((slot < -1) | (slot >= capacity)):
        raise ValueError(
            f"{where}: row {bad[0]} has its visual input {bad[1] + 1} in slot {slot[bad]}, "
            f"expected -1 (none) or less than {capacity}, the size of its shard's pool. Raise "
            "`pool` of the dataset."
        )
    if bad := _first((index < 0) | (index > max_images)):
        raise ValueError(
            f"{where}: row {bad[0]}, token {bad[1]} attends visual input {index[bad]}, expected 0 "
            f"(none) to {max_images}, the number of visual inputs per row. Raise `max_images`, or "
            "drop the text."
        )
    # Column 0 is "no image", which is always allowed.
    present = np.concatenate([np.ones((num_rows, 1), bool), slot >= 0], axis=1)
    if bad := _first(~np.take_along_axis(present, index, axis=1)):
        raise ValueError(
            f"{where}: row {bad[0]} has more <image> tags than images: its token {bad[1]} attends "
            f"visual input {index[bad]}, but the row has {int((slot[bad[0]] >= 0).sum())}. Give "
            "each <image> tag its image."
        )
    padding = batch.segment == 0
    if bad := _first((batch.segment < 0) | (padding & ((weights != 0) | (index != 0)))):
        raise ValueError(
            f"{where}: row {bad[0]}, token {bad[1]} has segment {batch.segment[bad]}, loss weight "
            f"{weights[bad]} and media index {index[bad]}; expected segment >= 0, and on padding "
            "(segment 0) zeros in all three."
        )
    if bad := _first(~(np.isfinite(weights) & (weights >= 0))):
        raise ValueError(
            f"{where}: row {bad[0]}, token {bad[1]} has loss weight {weights[bad]}, expected >= 0."
        )
    first_slot = (np.arange(num_rows) // max(num_rows // num_pools, 1) * capacity)[:, None]
    # The last entry is for "no visual input".
    has_frame = np.append(batch.frame_mask.any(axis=1), np.True_)
    if bad := _first(~has_frame[np.where(slot >= 0, slot + first_slot, pool)]):
        raise ValueError(
            f"{where}: row {bad[0]}, visual input {bad[1] + 1} has no frame: its "
            "frame_mask is all False."
        )


def _first(bad: np.ndarray) -> tuple[int, int] | None:
    """Returns (row, column) of the first True of a matrix."""
    if not bad.any():
        return None
    row, column = np.unravel_index(int(bad.argmax()), bad.shape)
    return int(row), int(column)


def _check_shapes(batch: Batch[np.ndarray], where: str) -> None:
    letters: dict[str, int] = {"2": 2, "3": 3}
    for name, letter_list in _SHAPES.items():
        array, names = getattr(batch, name), letter_list[1:-1].split(", ")
        is_tiles = name == "frame_mask" and getattr(array, "dtype", None) == np.int8
        if not isinstance(array, np.ndarray) or (array.dtype != _DTYPES[name] and not is_tiles):
            got = f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}"
            raise ValueError(
                f"{where}: {name} is a {got}, expected a numpy array of {np.dtype(_DTYPES[name])}."
            )
        sizes = {
            letter: letters.setdefault(letter, size)
            for letter, size in zip(names, array.shape, strict=False)
        }
        if array.ndim != len(names) or tuple(sizes.values()) != array.shape:
            known = {
                letter: size
                for letter, size in letters.items()
                if letter in names and not letter.isdigit()
            }
            raise ValueError(
                f"{where}: {name} has shape {array.shape}, expected {letter_list} with {known}."
            )
