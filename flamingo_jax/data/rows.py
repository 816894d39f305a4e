"""From a record to a row, and from rows to a batch.

    record --prepare--> Example --draw(rng)--> Row --collate--> Batch
           once per record      once per visit     once per batch

`prepare` does what is the same at each visit (tokenising); `draw` takes what is random (window, direction, space, start
of a clip) from the generator of that visit, which is made only if it is needed. No loop here runs over tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from flamingo_jax.data import interleave, text
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.data.pairs import tokenise_caption, tokenise_pair
from flamingo_jax.data.schema import Batch, Document, ImageText, InterleavedPage, Record, VideoText
from flamingo_jax.data.sources import Images, Room
from flamingo_jax.data.tokenizer import IMAGE_TAG, Tokenizer
from flamingo_jax.data.video import choose_frames

RECORD_KINDS = {
    "interleaved": ("interleaved_page",),
    "pairs": ("image_text", "video_text"),
    "captions": ("image_text", "video_text"),
    "text": ("document",),
}

Rng = Callable[[], np.random.Generator]  # makes the generator of one visit

_OVERHEAD = 1000  # bytes of the Python objects of an example, roughly


@dataclasses.dataclass(frozen=True)
class Example:
    """A record, tokenised.

    Attributes:
        tokens: one int32[T] per way to write it: pairs have one without and one with the space prefix, others only one.
        phi: int32[T] for pages, else None.
        images: its images, or the frames of its video.
        fps: frames per second of a video, None for images.
    """

    tokens: tuple[np.ndarray, ...]
    phi: np.ndarray | None = None
    images: Images | None = None
    fps: float | None = None

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        phi = 0 if self.phi is None else self.phi.nbytes
        media = 0 if self.images is None else self.images.num_bytes
        return sum(tokens.nbytes for tokens in self.tokens) + phi + media + _OVERHEAD

    def keep_in(self, room: Room) -> None:
        """Lets its images stay decoded while there is room."""
        if self.images is not None:
            self.images.keep_in(room)


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence: int32[l] tokens, segment and media_index, l <= L, and its visual inputs, uint8[f, S, S, 3] each."""

    tokens: np.ndarray
    segment: np.ndarray
    media_index: np.ndarray
    media: tuple[np.ndarray, ...] = ()


class RowMaker:
    """Makes examples and rows of one dataset.

    Args:
        config: the dataset's.
        tokenizer: for its texts.
        image_size: side of the square images, in pixels.
    """

    def __init__(self, config: DatasetConfig, tokenizer: Tokenizer, image_size: int):
        self._config, self._tokenizer, self._image_size = config, tokenizer, image_size
        self._tag_length = len(tokenizer.encode(IMAGE_TAG))

    def prepare(self, record: Record) -> Example:
        """Tokenises a record.

        Raises:
            CorruptRecord: it cannot be used (a page with more tags than images).
            ValueError: it is a video that was not cut into frames, or of a kind that does not suit the dataset.
        """
        tokenizer, kind = self._tokenizer, self._config.kind
        if kind == "text" and isinstance(record, Document):
            return Example((text.tokenise_document(record.text, tokenizer),))
        if kind == "interleaved" and isinstance(record, InterleavedPage):
            tokens, phi = interleave.tokenise_page(record, tokenizer)
            return Example((tokens,), phi, Images(record.images, self._image_size))
        if not isinstance(record, ImageText | VideoText) or kind not in ("pairs", "captions"):
            raise ValueError(f"A dataset of kind {kind!r} got a {record.kind}, expected {RECORD_KINDS[kind]}.")
        if kind == "captions":
            ways = [tokenise_caption(record.text, tokenizer)]
        else:
            ways = [tokenise_pair(record.text, tokenizer, space_prefix=space) for space in (False, True)]
        if isinstance(record, ImageText):
            return Example(tuple(ways), images=Images([record.image], self._image_size))
        if not record.frames:
            raise ValueError("A video has no frames: encoded video files are not read yet. Store its frames as images.")
        return Example(tuple(ways), images=Images(record.frames, self._image_size), fps=record.fps)

    def draw(self, example: Example, rng: Rng) -> Row:
        """Draws the row of one visit to a page, a pair or a caption.

        Raises:
            CorruptRecord: one of the images that the row needs cannot be decoded.
        """
        config, tokens = self._config, example.tokens[0]
        if example.phi is not None and example.images is not None:
            piece = interleave.window(
                tokens,
                example.phi,
                length=config.length,
                max_images=config.max_images,
                p_next=config.p_next,
                tag_length=self._tag_length,
                rng=rng(),
            )
            chosen = range(piece.first_image, piece.first_image + piece.num_images)
            media = tuple(example.images[i][None] for i in chosen)
            return Row(piece.tokens, np.ones_like(piece.tokens), piece.phi, media)
        if config.kind == "pairs":
            tokens = example.tokens[int(rng().random() < config.space_prefix)]
        tokens = tokens[: config.length]
        attends = np.full_like(tokens, 1 if config.kind == "pairs" else 0)
        return Row(tokens, np.ones_like(tokens), attends, (self._clip(example, rng),))

    def window(self, example: Example, rng: Rng) -> np.ndarray:
        """Draws the tokens of one visit to a document: int32[t], t <= L."""
        return text.window(example.tokens[0], self._config.length, rng())

    def _clip(self, example: Example, rng: Rng) -> np.ndarray:
        assert example.images is not None
        if example.fps is None:
            return example.images[0][None]
        config = self._config
        frames = choose_frames(
            len(example.images), example.fps, num_frames=config.num_frames, rate=config.frame_rate, rng=rng()
        )
        return np.stack([example.images[int(i)] for i in frames])


def collate(
    rows: Sequence[Row], config: DatasetConfig, *, image_size: int, num_shards: int, tokenizer: Tokenizer, where: str
) -> Batch:
    """Puts rows into a batch: pads them, and puts their visual inputs into the pools of their data shards, in order.

    Args:
        rows: those of `num_shards` data shards, one after the other.
        config: the dataset's.
        image_size: side of the square images, in pixels.
        num_shards: data shards that the rows belong to.
        tokenizer: tells <pad> and <BOS>.
        where: names the batch in the error.

    Raises:
        ValueError: the visual inputs of a shard are more than its pool holds.
    """
    per_shard = len(rows) // num_shards
    capacity = per_shard * config.num_media if config.pool is None or not config.num_media else config.pool
    tokens = np.full((len(rows), config.length), tokenizer.pad_id, np.int32)
    segment, media_index = np.zeros_like(tokens), np.zeros_like(tokens)
    media_slot = np.full((len(rows), config.num_media), -1, np.int32)
    frames = np.zeros((num_shards * capacity, config.num_frames, image_size, image_size, 3), np.uint8)
    frame_mask = np.zeros(frames.shape[:2], bool)
    used = 0
    for b, row in enumerate(rows):
        shard, in_shard = divmod(b, per_shard)
        used = used if in_shard else 0
        if used + len(row.media) > capacity:
            raise ValueError(
                f"{where}: rows {shard * per_shard} to {b} need {used + len(row.media)} visual inputs, more than the "
                f"{capacity} that the pool of data shard {shard} (of those here) holds. Raise `pool` of the dataset."
            )
        tokens[b, : len(row.tokens)] = row.tokens
        segment[b, : len(row.tokens)] = row.segment
        media_index[b, : len(row.tokens)] = row.media_index
        media_slot[b, : len(row.media)] = np.arange(used, used + len(row.media))
        for slot, clip in enumerate(row.media, start=shard * capacity + used):
            frames[slot, : len(clip)] = clip
            frame_mask[slot, : len(clip)] = True
        used += len(row.media)
    loss_weights = ((segment > 0) & (tokens != tokenizer.bos_id)).astype(np.float32)
    return Batch(tokens, segment, loss_weights, media_index, media_slot, frames, frame_mask)
