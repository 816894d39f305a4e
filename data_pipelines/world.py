"""Writes the synthetic world as datasets.

    python -m data_pipelines.run --pipeline=world --output=runs/demo/world --seed=1 --size=demo

    OUTPUT/captions     image_text        all training pictures with their full captions
                                          (contrastive)
    OUTPUT/pairs        image_text        as many pictures of one object as of two (flamingo)
    OUTPUT/pages        interleaved_page  binding, format and question pages (flamingo)
    OUTPUT/text         document          text without pictures, each document about one row long
                                          (language_model)
    OUTPUT/videos       video_text        a shape that moves; frames as PNG
    OUTPUT/test_images  image_text        split "test" only: new pictures, and the held-out pairs of
                                          colour and shape, for evaluation
    OUTPUT/world.json                     the request, names, held-out pairs and counts

All except `test_images` have the splits "train" and "test". The test splits contain new pictures
and new text of the same kind. `metadata` has the attributes of pictures as JSON. Everything is a
pure function of the request. `album`, the number of pictures that pages draw from, bounds the
memory; all other records are streamed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from data_pipelines import options
from data_pipelines.write_records import Splits, write_records
from flamingo_jax.core import seeds
from flamingo_jax.data.schema import Document, ImageText, InterleavedPage, VideoText
from flamingo_jax.world import pages as synthetic_pages
from flamingo_jax.world import scenes
from flamingo_jax.world import text as synthetic_text
from flamingo_jax.world.pages import Album, PageMix
from flamingo_jax.world.text import TextMix


@dataclasses.dataclass(frozen=True)
class WorldSize:
    """Numbers of records.

    Attributes:
      one, two: training pictures of one and of two objects. There are twice as many of two, since
        the encoder learns from these (TINY_WORLD: 70 %).
      album: number of pictures of each kind that the pages and the pairs draw from, the first ones.
      pairs, pages, documents, videos: records of the training splits.
      held_back: records of each test split.
      test_one, test_two, test_held_out: test pictures of one object, of two, and of one object of a
        held-out pair of colour and shape.
      words: largest number of words in a document; with <BOS> and <EOS> a row of 96 tokens.
      frames: frames of a video.
      pictures: largest number of pictures on a page, at least 8. With more, each page has a number
        of its own, from 8 on; one with questions has half as many.
    """

    one: int = 8192
    two: int = 16384
    album: int = 8192
    pairs: int = 8192
    pages: int = 8192
    documents: int = 32768  # 1000 steps of 32 rows
    videos: int = 256
    held_back: int = 256
    test_one: int = 2048
    test_two: int = 2048
    test_held_out: int = 1024
    words: int = 94
    frames: int = 8
    pictures: int = synthetic_pages.LEAST_PICTURES

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"world: {field.name} is {getattr(self, field.name)}, expected at least 1."
                )
        if self.pictures < synthetic_pages.LEAST_PICTURES:
            raise ValueError(
                f"world: pictures is {self.pictures}, expected at least "
                f"{synthetic_pages.LEAST_PICTURES}."
            )
        for name in ("one", "two"):
            if self.album > getattr(self, name):
                raise ValueError(
                    f"world: album={self.album} is more than {name}={getattr(self, name)}: pages "
                    "draw from training pictures."
                )


SIZES = {
    "demo": WorldSize(),
    "smoke": WorldSize(
        one=256, two=256, album=256, pairs=128, pages=128, documents=256, videos=8, held_back=32,
        test_one=256, test_two=64, test_held_out=64, frames=4,
    ),
    # For configs/tiny.py:gpu: 32 examples and a query on a page, and as many tokens in a row.
    "gpu": WorldSize(
        one=32768, two=65536, album=32768, pairs=32768, pages=32768, documents=131072, words=222,
        pictures=33,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WorldRequest:
    """Everything that decides the bytes of a world."""

    seed: int = 1
    size: WorldSize = WorldSize()
    page_mix: PageMix = PageMix()
    text_mix: TextMix = TextMix()


_Numbers: Any = dataclasses.make_dataclass(
    "_Numbers",
    [(f"num_{field.name}", int, -1) for field in dataclasses.fields(WorldSize)],
    frozen=True,
)


_Numbers.__doc__ = "Numbers of records.\n\nAttributes:\n" + "\n".join(
    f"  num_{name}: in place of the preset's number: {text}"
    for name, text in options.attributes(WorldSize).items()
)


@dataclasses.dataclass(frozen=True)
class WorldOptions(_Numbers):
    """The options of the command line.

    Attributes:
      seed: seed of everything random.
      size: preset of the numbers of records: demo, smoke or gpu.
      page_mix: shares of binding, format and question pages.
      text_mix: shares of dictionary, binding, format, question and caption documents.
    """

    seed: int = 1
    size: str = "demo"
    page_mix: tuple[str, ...] = ()
    text_mix: tuple[str, ...] = ()

    def request(self) -> WorldRequest:
        """Returns the request.

        Raises:
          ValueError: there is no such size, a number is below 1, the seed has more than 32 bits,
            or the shares are not shares.
        """
        if self.size not in SIZES:
            raise ValueError(f"--size={self.size}: expected one of {', '.join(SIZES)}.")
        seeds.check(self.seed, "world: --seed")
        names = [field.name for field in dataclasses.fields(WorldSize)]
        numbers = {name: getattr(self, f"num_{name}") for name in names}
        given = {name: number for name, number in numbers.items() if number != -1}
        return WorldRequest(
            seed=self.seed,
            size=dataclasses.replace(SIZES[self.size], **given),
            page_mix=_shares(PageMix, "page_mix", self.page_mix),
            text_mix=_shares(TextMix, "text_mix", self.text_mix),
        )


def _shares(mix: type, name: str, values: tuple[str, ...]) -> Any:
    if not values:
        return mix()
    fields = [field.name for field in dataclasses.fields(mix)]
    try:
        shares = [float(value) for value in values]
    except ValueError:
        shares = []
    are_shares = all(0 <= share < math.inf for share in shares) and sum(shares) > 0
    if len(shares) != len(fields) or not are_shares:
        raise ValueError(
            f"--{name}={','.join(values)}: expected {len(fields)} numbers, the shares of "
            f"{', '.join(fields)}."
        )
    return mix(*shares)


def build(request: WorldRequest, output: epath.Path) -> dict[str, int]:
    """Writes a world into the directory `output`.

    Returns:
      {"captions/train": number of records, ...}.
    """
    counts: dict[str, int] = {}
    for name, (kind, splits) in datasets(request).items():
        written = write_records(output / name, kind, splits)
        counts |= {f"{name}/{split}": count for split, count in written.items()}
    text = json.dumps(describe(request) | {"counts": counts}, indent=2, allow_nan=False) + "\n"
    (output / "world.json").write_text(text)
    return counts


def describe(request: WorldRequest) -> dict[str, object]:
    """Returns the content of world.json, except the counts."""
    held_out = [
        f"{scenes.COLOURS[colour]} {scenes.SHAPES[shape]}" for colour, shape in scenes.HELD_OUT
    ]
    return {
        "request": dataclasses.asdict(request),
        "image_size": scenes.IMAGE_SIZE,
        "seen_names": list(synthetic_text.SEEN_NAMES),
        "new_names": list(synthetic_text.NEW_NAMES),
        "held_out": held_out,
        "words": list(synthetic_text.WORDS),
    }


def datasets(request: WorldRequest) -> dict[str, tuple[str, Splits]]:
    """Returns {name: (kind of record, splits)} of all datasets of a world.

    A split draws its records when it is iterated.
    """
    size = request.size
    half = -(-size.held_back // 2)
    return {
        "captions": ("image_text", {
            "train": lambda: _captions(request.seed, train_one=size.one, train_two=size.two),
            "test": lambda: _captions(request.seed, test_one=half, test_two=half),
        }),
        "pairs": ("image_text", {
            "train": lambda: _pairs(request, "train", size.pairs),
            "test": lambda: _pairs(request, "test", size.held_back),
        }),
        "pages": ("interleaved_page", {
            "train": lambda: _pages(request, "train", size.pages),
            "test": lambda: _pages(request, "test", size.held_back),
        }),
        "text": ("document", {
            "train": lambda: _documents(request, "train", size.documents),
            "test": lambda: _documents(request, "test", size.held_back),
        }),
        "videos": ("video_text", {
            "train": lambda: _videos(request, range(size.videos)),
            "test": lambda: _videos(request, range(size.videos, size.videos + size.held_back)),
        }),
        "test_images": ("image_text", {
            "test": lambda: _captions(
                request.seed,
                test_one=size.test_one,
                test_two=size.test_two,
                test_held_out=size.test_held_out,
            ),
        }),
    }  # fmt: skip


def _captions(seed: int, **pools: int) -> Iterator[ImageText]:
    """Yields the first pictures of each pool, with their captions."""
    for pool, num in pools.items():
        for index, (attributes, png) in enumerate(scenes.iterate(seed, pool, num)):
            metadata = _metadata(f"{pool}/{index}", attributes)
            yield ImageText(png, synthetic_text.caption(attributes), metadata)


@functools.lru_cache(maxsize=4)  # pairs and pages draw from the same albums
def _album(seed: int, pool: str, num: int) -> Album:
    return Album.draw(seed, pool, num)


def _albums(request: WorldRequest, split: str) -> tuple[Album, Album]:
    """Returns the pictures of one object and of two from which the records of a split are made."""
    size = request.size
    one, two = (size.album, size.album)
    if split == "test":
        one, two = min(size.test_one, size.album), min(size.test_two, size.album)
    return _album(request.seed, f"{split}_one", one), _album(request.seed, f"{split}_two", two)


def _pairs(request: WorldRequest, split: str, num: int) -> Iterator[ImageText]:
    """Yields pictures of one object and of two alternately, with their captions.

    Starts again at the first picture of an album if there are too few.
    """
    albums = _albums(request, split)
    for index in range(num):
        album, pool = albums[index % 2], ("one", "two")[index % 2]
        row = index // 2 % len(album.images)
        metadata = _metadata(f"{split}_{pool}/{row}", album.attributes[row])
        yield ImageText(album.images[row], synthetic_text.caption(album.attributes[row]), metadata)


def _pages(request: WorldRequest, split: str, num: int) -> Iterator[InterleavedPage]:
    one, two = _albums(request, split)
    for index in range(num):
        yield synthetic_pages.page(
            request.seed,
            split,
            index,
            one=one,
            two=two,
            mix=request.page_mix,
            most=request.size.pictures,
        )


def _documents(request: WorldRequest, split: str, num: int) -> Iterator[Document]:
    for index in range(num):
        text = synthetic_text.document(
            request.seed, split, index, mix=request.text_mix, num_words=request.size.words
        )
        yield Document(text)


def _videos(request: WorldRequest, indices: range) -> Iterator[VideoText]:
    for index in indices:
        video = scenes.video(request.seed, index, request.size.frames)
        yield VideoText(
            frames=tuple(scenes.encode_png(frame) for frame in video.frames),
            text=synthetic_text.video_caption(video.attributes, video.direction),
            fps=float(request.size.frames),  # one second long
            metadata=_metadata(f"video/{index}", video.attributes[None]),
        )


def _metadata(name: str, attributes: np.ndarray) -> str:
    """Returns as JSON where a picture comes from, and its objects (int[O, 3]) as words."""
    objects = []
    for row in attributes.tolist():
        words = [values[value] for values, value in zip(scenes.VALUES, row, strict=True)]
        objects.append(dict(zip(scenes.ATTRIBUTES, words, strict=True)))
    return json.dumps({"id": name, "objects": objects}, allow_nan=False)
