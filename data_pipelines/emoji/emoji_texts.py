"""Texts about emoji: captions, and the documents that train the language model.

    dictionary  "red apple : dax ; mailbox : blick ; red apple : dax ; ..."
                Each document binds the names of concepts to made-up words.
    binding     "red apple . this is a dax ; mailbox . this is a blick ; ..."
                A binding page, with names in the place of pictures.
    category    "red apple . output : food ; mailbox . output : object ; ..."
                or "red apple . output : red apple ; ...": a format page, with names in the place
                of pictures.
    captions    "a picture of red apple ; ..."

The words are those of the tiny world (`flamingo_jax/world/text.py`), with its 60 made-up words. All
of them are in the documents, but the last twelve are in no page with pictures: few-shot evaluation
uses only these. No text is about a concept outside of the training split; a short name of one may
be part of another name, as "cat" of "cat face".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.emoji.concepts import Concept
from flamingo_jax.core.seeds import generator
from flamingo_jax.world import text as world_text
from flamingo_jax.world.pages import BIND_PROMPT, FORMAT_PROMPT

CAPTION_PROMPT = "a picture of"
MAX_WAYS = 5


@dataclasses.dataclass(frozen=True)
class EmojiTextMix:
    """Shares of the kinds of documents, as in the tiny world, which has questions too."""

    dictionary: float = 0.50
    binding: float = 0.20
    category: float = 0.20
    captions: float = 0.10


def document(
    seed: int,
    stream: str,
    index: int,
    *,
    concepts: Sequence[Concept],
    mix: EmojiTextMix,
    num_words: int,
) -> str:
    """Returns document `index` of a stream: complete entries, at most `num_words` words."""
    rng = generator(seed, f"{stream}/text", index)
    entry = _ENTRIES[world_text.choose_kind(rng, mix)](rng, concepts)
    words: list[str] = []
    while len(words) + len(more := entry().split()) <= num_words:
        words += more
    return " ".join(words)


def answers_of(concept: Concept) -> dict[str, str]:
    """Returns what a format page can ask for: {"name": "red apple", "category": "food"}."""
    return {"name": concept.name, "category": concept.category}


# Each function below draws what all entries of a document share, and returns a function that draws
# one entry.


def _some(rng: np.random.Generator, concepts: Sequence[Concept], number: int) -> list[Concept]:
    return [concepts[i] for i in rng.choice(len(concepts), size=number, replace=False).tolist()]


def _dictionary(rng: np.random.Generator, concepts: Sequence[Concept]) -> Callable[[], str]:
    ways = int(rng.integers(3, 8))
    keys = _some(rng, concepts, ways)
    names = rng.permutation(world_text.NAMES)[:ways]
    form = "{} : {} ;" if rng.integers(2) else "{} {} ;"
    entries = [form.format(key.name, name) for key, name in zip(keys, names, strict=True)]
    return lambda: entries[rng.integers(ways)]


def _binding(rng: np.random.Generator, concepts: Sequence[Concept]) -> Callable[[], str]:
    ways = int(rng.integers(2, MAX_WAYS + 1))
    keys = _some(rng, concepts, ways)
    names = rng.permutation(world_text.NAMES)[:ways]

    def entry() -> str:
        way = rng.integers(ways)
        return f"{keys[way].name} . {BIND_PROMPT} {names[way]} ;"

    return entry


def _category(rng: np.random.Generator, concepts: Sequence[Concept]) -> Callable[[], str]:
    asked = ("name", "category")[rng.integers(2)]

    def entry() -> str:
        concept = concepts[int(rng.integers(len(concepts)))]
        return f"{concept.name} . {FORMAT_PROMPT} {answers_of(concept)[asked]} ;"

    return entry


def _captions(rng: np.random.Generator, concepts: Sequence[Concept]) -> Callable[[], str]:
    return lambda: f"{CAPTION_PROMPT} {concepts[int(rng.integers(len(concepts)))].name} ;"


_ENTRIES: dict[str, Callable[[np.random.Generator, Sequence[Concept]], Callable[[], str]]] = {
    "dictionary": _dictionary,
    "binding": _binding,
    "category": _category,
    "captions": _captions,
}
