"""Makes rows from records, and batches from rows.

    record --prepare--> Example --draw(rng)--> TrainingRow --collate--> Batch
           once per record      once per visit             once per batch

`prepare` does what is the same at each visit: it tokenises. `draw` does what is random: the window,
the direction, the space, the start of a clip. The generator of a visit is made only if it is
needed. No loop here runs over tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt32

from flamingo_jax.core.config import ConfigError
from flamingo_jax.data import interleave, pack
from flamingo_jax.data.captions import tokenise_pair, tokenise_turns
from flamingo_jax.data.config import Background, DatasetConfig, ImageFit
from flamingo_jax.data.conversations import tokenise_conversation
from flamingo_jax.data.images import tiles, video
from flamingo_jax.data.images.read import place
from flamingo_jax.data.schema import (
    Batch,
    Conversation,
    CorruptRecord,
    Document,
    ImageAnswers,
    ImageText,
    InterleavedPage,
    Record,
    VideoAnswers,
    VideoText,
)
from flamingo_jax.data.sources import EncodedImages, Room
from flamingo_jax.tokenizers.base import Tokenizer

RECORD_KINDS = {
    "interleaved": ("interleaved_page",),
    "pairs": ("image_text", "video_text", "image_answers", "video_answers"),
    "conversations": ("conversation",),
    "captions": ("image_text", "video_text"),
    "text": ("document",),
}

Rng = Callable[[], np.random.Generator]  # makes the generator of one visit

_OVERHEAD = 1000  # bytes of the Python objects of an example, roughly


@dataclasses.dataclass(frozen=True)
class Example:
    """A tokenised record.

    Attributes:
        tokens: one int32[T] for each way to write the text. Pairs have two: without and with the
            space prefix. Answers have two for each different answer.
        targets: bool[T] for each of `tokens`, the tokens that count in the loss; () = all.
        answers: for each right answer the number of the different answer that it is; () = there is
            one.
        phi: int32[T] for pages and conversations, else None.
        images: the images, or the stored frames of the video.
        fps: frames per second of a video, None for images.
        video: the video, if it is stored as a file.
    """

    tokens: tuple[np.ndarray, ...]
    phi: np.ndarray | None = None
    images: EncodedImages | None = None
    fps: float | None = None
    video: bytes = b""
    targets: tuple[np.ndarray, ...] = ()
    answers: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Memory that the example takes, roughly."""
        phi = 0 if self.phi is None else self.phi.nbytes
        images = 0 if self.images is None else self.images.num_bytes
        tokens = sum(array.nbytes for array in (*self.tokens, *self.targets))
        return tokens + phi + images + len(self.video) + _OVERHEAD

    def keep_in(self, room: Room) -> None:
        """Keeps decoded images in memory from now on, while there is room."""
        if self.images is not None:
            self.images.keep_in(room)


@dataclasses.dataclass(frozen=True)
class TrainingRow:
    """One sequence and its visual inputs, before padding.

    Attributes:
        tokens, segment, media_index: int32[l], l <= L, as in Batch.
        visuals: the frames of each visual input, uint8[h, w, 3] with a longer side of S pixels; or
            one frame, the canvas of an image's tiles.
        targets: bool[l], the tokens that count in the loss; None = all.
    """

    tokens: np.ndarray
    segment: np.ndarray
    media_index: np.ndarray
    visuals: tuple[Sequence[np.ndarray], ...] = ()
    targets: np.ndarray | None = None


class RowMaker:
    """Makes the examples, rows and batches of one dataset.

    Args:
        config: of the dataset.
        tokenizer: for its texts.
        image_size: side of the square images, in pixels.
        image_fit: how an image becomes a square.
        background: what is behind transparent pixels.
        max_tiles: the most tiles that an image is cut into; 0 = it is one square.
    """

    def __init__(
        self,
        config: DatasetConfig,
        tokenizer: Tokenizer,
        image_size: int,
        image_fit: ImageFit = "pad",
        background: Background = "mean",
        max_tiles: int = 0,
    ):
        self._config, self._tokenizer, self._image_size = config, tokenizer, image_size
        self._image_fit, self._background = image_fit, background
        self._max_tiles = max_tiles
        self._tag = interleave.tag_of(tokenizer)
        self._tag_length = len(self._tag.own)

    @property
    def num_marker_tokens(self) -> int:
        """Tokens at the start of a row that are no words: <BOS>, and the tag of its image."""
        begin = len(self._tokenizer.start_ids)
        if self._config.kind in ("text", "captions", "conversations"):
            return begin
        return begin + len(self._tag.opening) + len(self._tag.own)

    def prepare(self, record: Record) -> Example:
        """Tokenises a record.

        Raises:
            CorruptRecord: the record cannot be used (a page with more tags than images, a video
                without frames, an answer behind the end of the row).
            ValueError: the kind of the record does not suit the dataset.
        """
        tokenizer, kind = self._tokenizer, self._config.kind
        if kind == "text" and isinstance(record, Document):
            return Example((interleave.tokenise_text(record.text, tokenizer),))
        if kind == "interleaved" and isinstance(record, InterleavedPage):
            tokens, phi = interleave.tokenise_page(record, tokenizer)
            return Example((tokens,), phi, self._images(record.images))
        if kind == "conversations" and isinstance(record, Conversation):
            return self._conversation(record)
        if record.kind not in RECORD_KINDS[kind] or isinstance(
            record, InterleavedPage | Document | Conversation
        ):
            raise ValueError(
                f"A dataset of kind {kind!r} got a {record.kind}, expected {RECORD_KINDS[kind]}."
            )
        if isinstance(record, ImageAnswers | VideoAnswers):
            return self._answers(record)
        if kind == "captions":
            ways = [interleave.tokenise_text(record.text, tokenizer)]
        else:
            ways = [
                tokenise_pair(record.text, tokenizer, space_prefix=space) for space in (False, True)
            ]
        return self._shown(record, Example(tuple(ways)))

    def _conversation(self, record: Conversation) -> Example:
        """Tokenises a conversation, up to the end of the row and its last image."""
        config = self._config
        try:
            found = tokenise_conversation(record, self._tokenizer)
        except interleave.TagInText as error:
            raise CorruptRecord(str(error)) from error
        end = min(config.length, int(np.searchsorted(found.phi, config.max_images, side="right")))
        tokens, phi, targets = (each[:end] for each in found)
        only_answers = config.loss_on == "answers"
        if only_answers and not targets.any():
            raise CorruptRecord(
                f"The first question of a conversation leaves no room for its answer in a row of "
                f"{config.length} tokens and {config.max_images} images.",
                reason="answer_cut_off",
            )
        images = self._images(record.images[: int(phi[-1]) if end else 0])
        return Example((tokens,), phi, images, targets=(targets,) if only_answers else ())

    def _answers(self, record: ImageAnswers | VideoAnswers) -> Example:
        numbers = {answer: number for number, answer in enumerate(dict.fromkeys(record.answers))}
        tokens, targets = zip(
            *(
                tokenise_turns((*record.prompts, answer), self._tokenizer, space_prefix=space)
                for answer in numbers
                for space in (False, True)
            ),
            strict=True,
        )
        only_answers = self._config.loss_on == "answers"
        if only_answers and not all(each[: self._config.length].any() for each in targets):
            raise CorruptRecord(
                f"A prompt of {len(tokens[0])} tokens leaves no room for its answer in a row of "
                f"{self._config.length}.",
                reason="answer_cut_off",
            )
        answers = tuple(map(numbers.__getitem__, record.answers)) if len(numbers) > 1 else ()
        example = Example(tokens, targets=targets if only_answers else (), answers=answers)
        return self._shown(record, example)

    def _shown(
        self, record: ImageText | VideoText | ImageAnswers | VideoAnswers, example: Example
    ) -> Example:
        """Adds the image or video of a record to its example."""
        if isinstance(record, ImageText | ImageAnswers):
            return dataclasses.replace(example, images=self._images([record.image]))
        if not record.frames:
            if not record.video:
                raise CorruptRecord(
                    "A video has neither frames nor a file.", reason="missing_video"
                )
            return dataclasses.replace(example, video=record.video)
        fps = 1.0 if len(record.frames) == 1 else record.fps  # a still image has no rate
        if not 0 < fps < math.inf:
            raise CorruptRecord(
                f"A video has {len(record.frames)} frames at {fps} per second, expected a rate "
                "above 0.",
                reason="broken_video",
            )
        return dataclasses.replace(example, images=self._images(record.frames), fps=fps)

    def _images(self, encoded: Sequence[bytes]) -> EncodedImages:
        how = (self._image_size, self._image_fit, self._background, self._max_tiles)
        return EncodedImages(encoded, *how)

    def draw(self, example: Example, rng: Rng) -> TrainingRow:
        """Draws the row of one visit to a page, a pair, a conversation or a caption.

        Raises:
            CorruptRecord: an image that the row needs, or its video, cannot be decoded.
        """
        config, tokens = self._config, example.tokens[0]
        if example.phi is not None and example.images is not None:
            if config.kind == "conversations":
                # Whole, from its start: an answer follows from what was said before.
                visuals = tuple((example.images[i],) for i in range(len(example.images)))
                targets = example.targets[0] if example.targets else None
                return TrainingRow(tokens, np.ones_like(tokens), example.phi, visuals, targets)
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
            visuals = tuple((example.images[i],) for i in chosen)
            return TrainingRow(piece.tokens, np.ones_like(piece.tokens), piece.phi, visuals)
        targets = None
        if config.kind == "pairs":
            way = int(rng().random() < config.space_prefix)
            if example.answers:
                way += 2 * example.answers[int(rng().integers(len(example.answers)))]
            tokens = example.tokens[way]
            targets = example.targets[way][: config.length] if example.targets else None
        tokens = tokens[: config.length]
        attends = np.full_like(tokens, 1 if config.kind == "pairs" else 0)
        clip = self._clip(example, rng)
        return TrainingRow(tokens, np.ones_like(tokens), attends, (clip,), targets)

    def window(self, example: Example, rng: Rng) -> np.ndarray:
        """Draws the tokens of one visit to a document: at most L times the rows of a group."""
        most = self._config.length * self._config.rows_per_group
        return pack.window(example.tokens[0], most, rng())

    def _clip(self, example: Example, rng: Rng) -> Sequence[np.ndarray]:
        config = self._config
        if example.images is None:
            clip = video.decode_clip(
                example.video,
                self._image_size,
                num_frames=config.num_frames,
                rate=config.frame_rate,
                rng=rng(),
                image_fit=self._image_fit,
            )
            return list(clip)
        if example.fps is None:
            return (example.images[0],)
        frames = video.choose_frames(
            len(example.images),
            example.fps,
            num_frames=config.num_frames,
            rate=config.frame_rate,
            rng=rng(),
        )
        return [example.images[int(i)] for i in frames]

    def collate(
        self,
        rows: Sequence[TrainingRow],
        *,
        num_shards: int,
        stream: tuple[int, int],
        first: int,
        where: str,
    ) -> Batch[np.ndarray]:
        """Puts rows into a batch.

        Pads them, and puts their visual inputs into the pools of their data shards, in order. Each
        chunk of a data shard has its own part of the shard's pool.

        Args:
            rows: rows of `num_shards` data shards, one shard after the other.
            num_shards: data shards that the rows belong to.
            stream: the seed, and the number that identifies the dataset; for the keys of
                augmentation.
            first: position of the first row in the dataset. The others follow it.
            where: names the batch in the error.

        Raises:
            ConfigError: the visual inputs of a shard, or of a chunk, do not fit into its pool.
        """
        config, tokenizer, size = self._config, self._tokenizer, self._image_size
        num_pools = num_shards * config.chunks
        per_pool = len(rows) // num_pools
        capacity = per_pool * config.num_visuals
        if config.pool is not None and config.num_visuals:
            capacity = config.pool // config.chunks
        tokens = np.full((len(rows), config.length), tokenizer.pad_id, np.int32)
        segment, media_index = np.zeros_like(tokens), np.zeros_like(tokens)
        media_slot = np.full((len(rows), config.num_visuals), -1, np.int32)
        frames = np.empty((num_pools * capacity, config.num_frames, size, size, 3), np.uint8)
        frame_mask = np.zeros(frames.shape[:2], np.int8 if self._max_tiles else bool)
        used = 0
        for b, row in enumerate(rows):
            number, in_pool = divmod(b, per_pool)
            used = used if in_pool else 0
            if used + len(row.visuals) > capacity:
                need = sum(len(each.visuals) for each in rows[number * per_pool :][:per_pool])
                shard, chunk = divmod(number, config.chunks)
                part = f"chunk {chunk} of data shard" if config.chunks > 1 else "data shard"
                raise ConfigError(
                    f"{where}: its {per_pool} rows of {part} {shard} (of those here) have "
                    f"{need} visual inputs, more than the {capacity} that the pool holds. Raise "
                    f"`pool` of the dataset to {need * config.chunks} or more, or to None for "
                    f"{per_pool * config.chunks * config.num_visuals}, the most that its rows can "
                    "have."
                )
            tokens[b, : len(row.tokens)] = row.tokens
            segment[b, : len(row.tokens)] = row.segment
            media_index[b, : len(row.tokens)] = row.media_index
            media_slot[b, : len(row.visuals)] = np.arange(used, used + len(row.visuals))
            for slot, clip in enumerate(row.visuals, start=number * capacity + used):
                if self._max_tiles:
                    pieces, arrangement = tiles.cut(clip[0], size, self._max_tiles)
                    frames[slot, : len(pieces)] = pieces
                    frame_mask[slot, : len(pieces)] = arrangement
                    continue
                for image, square in zip(clip, frames[slot], strict=False):
                    place(image, square)
                frame_mask[slot, : len(clip)] = True
            used += len(row.visuals)
        frames[frame_mask == 0] = 0
        # A segment starts with <BOS>, which is no target. The segment is compared too, because a
        # vocabulary may have one piece for <BOS> and <EOS>.
        starts = np.diff(segment, axis=1, prepend=0) != 0
        if tokenizer.start_ids:
            starts &= tokens == tokenizer.bos_id
        counts = (segment > 0) & ~starts
        for b, row in enumerate(rows):
            if row.targets is not None:
                counts[b, : len(row.targets)] &= row.targets
        loss_weights = counts.astype(np.float32)
        media_key = np.zeros((len(frames), 2), np.uint32)
        owners, numbers = np.nonzero(media_slot >= 0)
        slots = owners // per_pool * capacity + media_slot[owners, numbers]
        media_key[slots] = media_keys(stream, first + owners, numbers)
        return Batch(
            tokens,
            segment,
            loss_weights,
            media_index,
            media_slot,
            frames,
            frame_mask,
            media_key,
            chunks=config.chunks,
        )


def media_keys(
    stream: tuple[int, int], position: Int64[np.ndarray, "n"], number: Int64[np.ndarray, "n"]
) -> UInt32[np.ndarray, "n 2"]:
    """Returns the augmentation keys of visual inputs: a hash of their place in the data of the run.

    Args:
        stream: the seed, and the number that identifies the dataset.
        position: int64[n] of the row in the dataset; different at each visit to a record.
        number: int64[n] of the visual input in its row, from 0.

    Returns:
        uint32[n, 2], the same on every machine: splitmix64 over the numbers, one after the other.
    """
    state = np.zeros(len(number), np.uint64)
    for part in (*(np.full_like(state, known) for known in stream), position, number):
        state += part.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.stack([state >> np.uint64(32), state & np.uint64(0xFFFFFFFF)], axis=1).astype(
        np.uint32
    )
