"""Writes the world of emoji as datasets.

    python -m data_pipelines.run --pipeline=emoji --input=node_modules --output=runs/emoji/records

    OUTPUT/captions     image_text        training pictures, with names and keywords (contrastive)
    OUTPUT/pairs        image_text        training pictures, "a picture of red apple" (flamingo)
    OUTPUT/pages        interleaved_page  binding and format pages (flamingo)
    OUTPUT/text         document          text without pictures (language_model)
    OUTPUT/test_images  image_text        split "test" only: pictures for evaluation, in four pools
    OUTPUT/emoji.json                     the request, the concepts and their splits, and counts
    OUTPUT/LICENCES.md                    whose the drawings are, and under which licences

captions, pairs, pages and text have the splits "train" and "test"; "test" has new compositions of
trained drawings. The pools of `test_images`, first part of the `id` in the metadata:

    unseen_style  training concepts, in the style that training did not show
    test          concepts that no record of another dataset is about, in both styles
    validation    likewise, to choose a recipe
    third_style   training and test concepts in OpenMoji's drawings; only if --input has them

Some flags are drawn alike, pixel by pixel: France and St. Martin. If training shows a concept's
drawing for evaluation under another name, nothing asks about this concept. It is counted as
`drawn_as_trained`, and emoji.json names it.

Everything is a pure function of the request and the packages.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence

from etils import epath

from data_pipelines.emoji import concepts as emoji_concepts
from data_pipelines.emoji import emoji_pages, emoji_texts, pictures
from data_pipelines.emoji.concepts import STYLES, THIRD_STYLE, Collection, Concept, EmojiError
from data_pipelines.emoji.emoji_pages import EmojiAlbum, EmojiPageMix
from data_pipelines.emoji.emoji_texts import EmojiTextMix
from data_pipelines.write_records import Splits, write_records
from flamingo_jax.core import seeds
from flamingo_jax.data.schema import Document, ImageText, InterleavedPage

# The packages themselves are under MIT; the drawings are not.
LICENCES = {
    "google": "Noto Emoji, by Google: Apache 2.0 (https://github.com/googlefonts/noto-emoji)",
    "twitter": "Twemoji, by Twitter and contributors: CC-BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/)",
    THIRD_STYLE: "OpenMoji, by its contributors: CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/)",
}
_NOTICE = """The pictures in this folder are made from drawings of others, which were put on
backgrounds, shifted, scaled and rotated. Whoever distributes them, or what is made of them, must
follow the licences:

"""


@dataclasses.dataclass(frozen=True)
class EmojiSize:
    """Numbers of records.

    Attributes:
      compositions: training pictures of each trained drawing.
      pairs, pages, documents: records of the training splits.
      held_back: records of each test split.
      test_compositions: pictures of each drawing of a test or validation concept.
      unseen_compositions: pictures of each drawing of a training concept in its unseen style.
      third_compositions: pictures of each drawing of the third style.
      words: largest number of words in a document; with <BOS> and <EOS> a row of 96 tokens.
      pictures: largest number of pictures on a page, at least 8. With more, each page has a number
        of its own, from 8 on.
    """

    compositions: int = 16
    pairs: int = 49152
    pages: int = 24576
    documents: int = 49152
    held_back: int = 256
    test_compositions: int = 8
    unseen_compositions: int = 4
    third_compositions: int = 1
    words: int = 94
    pictures: int = emoji_pages.LEAST_PICTURES


SIZES = {
    "full": EmojiSize(),
    "smoke": EmojiSize(
        compositions=1, pairs=64, pages=64, documents=128, held_back=16, test_compositions=4,
        unseen_compositions=2,
    ),
    # For configs/emoji.py:gpu: 16 examples and a query on a page, and as many tokens in a row.
    "gpu": EmojiSize(documents=131072, words=158, pictures=17),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EmojiRequest:
    """The options of the command line, which decide the bytes of the records.

    Attributes:
      input: folder with the npm packages, such as node_modules.
      seed: seed of everything random, except the splits.
      size: preset of the numbers of records: full, smoke or gpu.
      image_size: side of a picture in pixels.
    """

    input: str = ""
    seed: int = 1
    size: str = "full"
    image_size: int = 32

    def check(self) -> None:
        """Checks the options.

        Raises:
          ValueError: there is no such size, a number is out of range, or the input is missing.
        """
        if not self.input:
            raise ValueError("--input is missing: give the folder with the npm packages of emoji.")
        if self.size not in SIZES:
            raise ValueError(f"--size={self.size}: expected one of {', '.join(SIZES)}.")
        if not 16 <= self.image_size <= 512:
            raise ValueError(f"--image_size={self.image_size}: expected 16 to 512 pixels.")
        seeds.check(self.seed, "emoji: --seed")


def build(request: EmojiRequest, output: epath.Path) -> dict[str, int]:
    """Writes the records into the directory `output`.

    Returns:
      {"captions/train": number of records, ..., "left out: component": 5}.

    Raises:
      ValueError: an option is wrong.
      EmojiError: a package is missing or damaged, resvg-py is missing and OpenMoji needs it, or a
        split has no concepts.
    """
    request.check()
    collection = emoji_concepts.read(request.input)
    _check_splits(collection, request.input)
    if THIRD_STYLE in collection.versions:
        pictures.rasteriser()  # its drawings are the last ones to be read
    counts: dict[str, int] = {}
    records = _Records(request, collection.concepts)
    for name, (kind, splits) in records.datasets().items():
        written = write_records(output / name, kind, splits)
        counts |= {f"{name}/{split}": count for split, count in written.items()}
    counts |= {f"left out: {reason}": number for reason, number in collection.counts.items()}
    alike = sorted(concept.name for concept in records.drawn_as_trained)
    counts["left out: drawn_as_trained"] = len(alike)
    described = _describe(request, collection) | {"drawn_as_trained": alike, "counts": counts}
    text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    (output / "emoji.json").write_text(text)
    licences = "".join(f"- {LICENCES[style]}\n" for style in _styles(collection))
    (output / "LICENCES.md").write_text(_NOTICE + licences)
    return counts


def _styles(collection: Collection) -> list[str]:
    return [*STYLES, *([THIRD_STYLE] if THIRD_STYLE in collection.versions else [])]


def _check_splits(collection: Collection, where: str) -> None:
    """Raises EmojiError if a split has too few concepts to make pages or episodes of."""
    for split in emoji_concepts.SPLITS:
        found = sum(concept.split == split for concept in collection.concepts)
        if found < emoji_texts.MAX_WAYS + 2:
            raise EmojiError(
                f"{where} has {found} concepts in the split {split!r}; expected at least "
                f"{emoji_texts.MAX_WAYS + 2}. The whole packages have 1,905 concepts: give them."
            )


def _describe(request: EmojiRequest, collection: Collection) -> dict[str, object]:
    return {
        "request": {**dataclasses.asdict(request), **dataclasses.asdict(SIZES[request.size])},
        "versions": dict(collection.versions),
        "concepts": [
            {
                "code": concept.code,
                "name": concept.name,
                "keywords": list(concept.keywords),
                "category": concept.category,
                "group": concept.group,
                "split": concept.split,
                "unseen_style": concept.unseen_style,
            }
            for concept in collection.concepts
        ],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """Draws the records of a request.

    Attributes:
      request: the options.
      concepts: all concepts of the packages.
    """

    request: EmojiRequest
    concepts: Sequence[Concept]

    def datasets(self) -> dict[str, tuple[str, Splits]]:
        """Returns {name: (kind of record, splits)}; a split is drawn when it is iterated."""
        size = self.size
        return {
            "captions": ("image_text", {
                "train": self.captions,
                "test": lambda: self._shown("held_back", self.held_back),
            }),
            "pairs": ("image_text", {
                "train": lambda: self.pairs("train", self.trained_album, size.pairs),
                "test": lambda: self.pairs("test", self.held_back, size.held_back),
            }),
            "pages": ("interleaved_page", {
                "train": lambda: self.pages("train", self.trained_album, size.pages),
                "test": lambda: self.pages("test", self.held_back, size.held_back),
            }),
            "text": ("document", {
                "train": lambda: self.documents("train", size.documents),
                "test": lambda: self.documents("test", size.held_back),
            }),
            "test_images": ("image_text", {"test": self.test_images}),
        }  # fmt: skip

    @property
    def size(self) -> EmojiSize:
        return SIZES[self.request.size]

    @functools.cached_property
    def trained(self) -> list[Concept]:
        """The concepts of the training split."""
        return [concept for concept in self.concepts if concept.split == "train"]

    @functools.cached_property
    def trained_album(self) -> EmojiAlbum:
        """All training pictures."""
        return self._album(self.trained, range(self.size.compositions))

    @functools.cached_property
    def held_back(self) -> EmojiAlbum:
        """New compositions of trained drawings."""
        rng = seeds.generator(self.request.seed, "emoji/held_back")
        chosen = rng.permutation(len(self.trained))[: self.size.held_back].tolist()
        number = self.size.compositions
        return self._album([self.trained[i] for i in chosen], range(number, number + 1))

    def captions(self) -> Iterator[ImageText]:
        """Yields the training pictures, with names and keywords."""
        return self._shown("train", self.trained_album)

    def pairs(self, split: str, album: EmojiAlbum, num: int) -> Iterator[ImageText]:
        """Yields pictures in random order, again and again, with names."""
        rng = seeds.generator(self.request.seed, f"emoji/pairs/{split}")
        order = rng.permutation(len(album.images)).tolist()
        for index in range(num):
            row = order[index % len(order)]
            concept = album.concepts[row]
            metadata = _metadata(f"{split}_pairs/{row}", concept, album.styles[row])
            yield ImageText(
                album.images[row], f"{emoji_texts.CAPTION_PROMPT} {concept.name}", metadata
            )

    def pages(self, split: str, album: EmojiAlbum, num: int) -> Iterator[InterleavedPage]:
        """Yields binding and format pages."""
        for index in range(num):
            yield emoji_pages.page(
                self.request.seed,
                f"emoji/{split}",
                index,
                album=album,
                mix=EmojiPageMix(),
                most=self.size.pictures,
            )

    def documents(self, split: str, num: int) -> Iterator[Document]:
        """Yields texts about training concepts."""
        for index in range(num):
            text = emoji_texts.document(
                self.request.seed,
                f"emoji/{split}",
                index,
                concepts=self.trained,
                mix=EmojiTextMix(),
                num_words=self.size.words,
            )
            yield Document(text)

    @functools.cached_property
    def drawn_as_trained(self) -> list[Concept]:
        """The concepts for evaluation of which training shows the same pixels, of any concept."""

        def pixels(concept: Concept, style: str) -> bytes:
            return hashlib.sha256(pictures.drawing(concept, style).tobytes()).digest()

        shown = {
            pixels(concept, style) for concept in self.trained for style in concept.trained_styles
        }
        return [
            concept
            for concept in self.concepts
            if any(
                style not in concept.trained_styles and pixels(concept, style) in shown
                for style in STYLES
            )
        ]

    def test_images(self) -> Iterator[ImageText]:
        """Yields the pictures of all pools of evaluation."""
        size = self.size
        alike = {concept.code for concept in self.drawn_as_trained}
        for concept in self.concepts:
            shown: list[tuple[str, str, int]] = []
            if concept.code in alike:
                if concept.split != "train":
                    continue
            elif concept.split != "train":
                shown += [(concept.split, style, size.test_compositions) for style in STYLES]
            elif concept.unseen_style:
                shown.append(("unseen_style", concept.unseen_style, size.unseen_compositions))
            if THIRD_STYLE in concept.drawings and concept.split != "validation":
                shown.append(("third_style", THIRD_STYLE, size.third_compositions))
            for pool, style, compositions in shown:
                for number in range(compositions):
                    metadata = _metadata(f"{pool}/{concept.code}/{style}/{number}", concept, style)
                    image = self._picture(concept, style, number)
                    yield ImageText(image, concept.caption, metadata)

    def _album(self, concepts: Sequence[Concept], numbers: range) -> EmojiAlbum:
        """Returns compositions of the trained drawings of concepts."""
        shown = [
            (concept, style, number)
            for concept in concepts
            for style in concept.trained_styles
            for number in numbers
        ]
        return EmojiAlbum(
            concepts=[concept for concept, _, _ in shown],
            styles=[style for _, style, _ in shown],
            images=[self._picture(*each) for each in shown],
        )

    def _picture(self, concept: Concept, style: str, number: int) -> bytes:
        return pictures.picture(self.request.seed, concept, style, number, self.request.image_size)

    def _shown(self, pool: str, album: EmojiAlbum) -> Iterator[ImageText]:
        """Yields the pictures of an album, with names and keywords."""
        for row, concept in enumerate(album.concepts):
            metadata = _metadata(f"{pool}/{row}", concept, album.styles[row])
            yield ImageText(album.images[row], concept.caption, metadata)


def _metadata(name: str, concept: Concept, style: str) -> str:
    """Returns as JSON where a picture comes from, and what it shows."""
    return json.dumps(
        {
            "id": name,
            "name": concept.name,
            "category": concept.category,
            "group": concept.group,
            "split": concept.split,
            "style": style,
        },
        allow_nan=False,
    )
