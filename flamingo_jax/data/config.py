"""The config of a mixture: its datasets, the images, and the reading threads.

`DatasetConfig.weight` is the lambda_m of a dataset (paper, 2.4).
"""

import dataclasses
import math
from typing import Any, Literal

from flamingo_jax.core import ranges
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.tokenizers.chat_template import TURNS

ImageFit = Literal["pad", "crop", "squash"]
Background = Literal["mean", "white", "none"]
Kind = Literal["interleaved", "pairs", "conversations", "captions", "text"]


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of the mixture.

    Attributes:
        kind: how records become rows: "interleaved" (pages), "pairs" (an image or video and its
            text, for captioning), "conversations" (instruction data), "captions" (records of pairs,
            for the contrastive stage) or "text" (documents, for a language model; also among
            Flamingo's datasets).
        path: a TFDS directory of ArrayRecord files, as data_pipelines writes it.
        batch_size: B, over all processes.
        length: L, tokens per row; at least two, since the first is no target.
        split: a split of the dataset, also in the notation of TFDS ("train[:10%]").
        weight: lambda_m, the weight of this dataset's loss (paper, 2.4).
        max_images: N, images per row of interleaved pages (5 in the paper) and conversations.
            Pairs and captions have 1, text has 0.
        num_frames: F, frames per visual input; 1 for still images.
        frame_rate: frames per second that are taken from a video (1 in the paper, 2.1).
        pool: images per data shard that a batch has room for; None = the most that its rows can
            have. Each chunk has an equal part of it.
        chunks: k equal parts of a batch that an update takes one after the other, so that only one
            needs memory for activations (training/chunks.py). The gradient is that of the whole
            batch, except for rounding. Divides the rows of a data shard, and `pool`.
        p_next: probability that the text of a page attends the next image instead of the previous
            one (paper, A.3.2).
        space_prefix: probability that a space is put before the text of a pair (paper, B.1.2).
        loss_on: what of a pair of prompt and answer, or of a conversation, counts in the loss: the
            whole "text", as of all pairs (the paper), or the "answers" alone, with the <EOC> and
            <EOS> after them.
        documents_per_row: documents that are read for each row of packed text. Documents that do
            not fit are left out.
        rows_per_group: rows of packed text that share their documents. A document that is cut at
            the end of a row goes on in the next row of the group, so that text is left out only at
            the end of a group. `data_pipelines.run --pipeline=pool` reports how much.
    """

    kind: Kind
    path: str
    batch_size: int
    length: int
    split: str = "train"
    weight: float = 1.0
    max_images: int = 1
    num_frames: int = 1
    frame_rate: float = 1.0
    pool: int | None = None
    chunks: int = 1
    p_next: float = 0.5
    space_prefix: float = 0.5
    loss_on: Literal["text", "answers"] = "text"
    documents_per_row: int = 8
    rows_per_group: int = 1

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1), "batch_size", "max_images", "num_frames", "pool")
        ranges.check(self, ranges.whole(1), "chunks")
        ranges.check(self, ranges.whole(1), "documents_per_row", "rows_per_group")
        ranges.check(self, ranges.whole(2), "length")
        ranges.check(self, ranges.POSITIVE, "frame_rate")
        ranges.check(self, ranges.SHARE, "p_next", "space_prefix")
        ranges.check(self, ranges.NOT_NEGATIVE, "weight")
        if self.loss_on != "text" and self.kind not in ("pairs", "conversations"):
            raise FieldError(
                f"loss_on is {self.loss_on!r}, and records of kind {self.kind!r} have no answers; "
                "expected 'text' for all kinds but 'pairs' and 'conversations'."
            )

    @property
    def num_visuals(self) -> int:
        """N, the most visual inputs of a row."""
        fixed = {"pairs": 1, "captions": 1, "text": 0}
        return fixed.get(self.kind, self.max_images)


def check_chunks(name: str, dataset: DatasetConfig, num_shards: int) -> None:
    """Checks that the rows and the pool of a data shard can be cut into chunks.

    Args:
        name: of the dataset.
        dataset: its batch can be split over the data shards.
        num_shards: data shards of the mesh.

    Raises:
        ConfigError: they cannot.
    """
    rows, chunks = dataset.batch_size // num_shards, dataset.chunks
    pool = dataset.pool if dataset.num_visuals else None
    both = math.gcd(rows, pool or 0)
    if both % chunks:
        room = f" and a pool of {pool}" if pool else ""
        fits = max(k for k in range(1, chunks) if both % k == 0)
        raise ConfigError(
            f"config.data.datasets.{name}.chunks is {chunks}, and a data shard has {rows} "
            f"row(s){room} (config.mesh: replica x data = {num_shards}); expected a divisor of "
            f"{both}, such as --config.data.datasets.{name}.chunks={fits}."
        )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random flip and colours of the images in training; all zeros switch it off.

    The paper says "random left/right flip and colour augmentation" and gives no number: these
    numbers are ours. They are small, because texts name colours: red must not become orange. A
    fifth of a turn leads from red to yellow; 0.02 is a tenth of that.

    Attributes:
        flip: probability of a left/right flip.
        brightness: largest shift, up or down, as a share of the full range.
        contrast: largest change of the contrast; 0.2 draws a factor between 0.8 and 1.2.
        saturation: largest change of the saturation; 0.2 draws a factor between 0.8 and 1.2.
        hue: largest turn of the colour circle, in both directions, in turns.
    """

    flip: float = 0.5
    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02

    def __post_init__(self) -> None:
        ranges.check(self, ranges.SHARE, "flip", "brightness", "contrast", "saturation")
        ranges.check(self, ranges.Range(0, 0.5), "hue")

    @property
    def changes_colours(self) -> bool:
        """True if at least one change of colour is on."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


NO_AUGMENTATION = AugmentConfig(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The whole mixture.

    Attributes:
        tokenizer: path of the tokenizer: tokenizer.model of SentencePiece, or tokenizer.json or
            vocab.txt of Hugging Face (`tokenizers.load`).
        image_size: side of the square images, in pixels (320 in the paper, 288 contrastive, 480 in
            fine-tuning).
        image_fit: how an image becomes a square: "pad" adds borders along the longer sides (the
            paper), "crop" cuts out the middle (CLIP), "squash" changes the proportions (IDEFICS).
        background: what is behind transparent pixels: the "mean" colour, "white" (transformers'
            CLIP and IDEFICS), or "none": the transparency is ignored (open_clip, OpenFlamingo).
        datasets: by name. The order and the randomness of a dataset depend on its name.
        augment: random flip and colours in training.
        num_threads: threads of a process that make batches; 0 = one for each core that the process
            may use.
        prefetch: batches (of all datasets) that are made ahead.
        max_corrupt: share of a dataset's records that may be corrupt. If more are, the run stops
            with an error.
    """

    tokenizer: str
    image_size: int
    datasets: dict[str, DatasetConfig]
    image_fit: ImageFit = "pad"
    background: Background = "mean"
    augment: AugmentConfig = AugmentConfig()
    num_threads: int = 0
    prefetch: int = 4
    max_corrupt: float = 0.05

    def __post_init__(self) -> None:
        ranges.check(self, ranges.whole(1, 1 << 16), "image_size")
        ranges.check(self, ranges.whole(0, 1 << 12), "num_threads")
        ranges.check(self, ranges.whole(1, 1 << 16), "prefetch")
        ranges.check(self, ranges.SHARE, "max_corrupt")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What an export stores about its images and dialogues; what is left out has its default.

        A model that learns from conversations writes dialogues as they do.
        """
        fit = {} if self.image_fit == "pad" else {"image_fit": self.image_fit}
        behind = {} if self.background == "mean" else {"background": self.background}
        kinds = {dataset.kind for dataset in self.datasets.values()}
        chat = {"chat": dataclasses.asdict(TURNS)} if "conversations" in kinds else {}
        return {"image_size": self.image_size, **fit, **behind, **chat}
