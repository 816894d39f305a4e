"""Texts of the synthetic world: captions, and the documents that train the language model.

    dictionary  "circle : dax ; red : blick ; circle : dax ; ..."
                Each document binds words to other names.
    binding     "small red circle . this is a dax ; big red ring . ..."
                A binding page, with words in the place of pictures.
    format      "small red circle . output : red ; ..."
                A format page, with words in the place of pictures.
    qa          "small red circle and big blue ring .
                 question : what colour is the circle ? answer : red ; ..."
    captions    "a small red circle and a big blue ring ; ..."

A text consists of words from WORDS with spaces between them. There are 60 made-up names. All of
them are in the documents, but the last twelve, the new names, are in no page with pictures:
few-shot evaluation uses only these. The dictionary documents teach the look-up that is needed to
bind names to pictures; `lookup_pages` is the probe that measures it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from flamingo_jax.core.seeds import generator
from flamingo_jax.world import scenes
from flamingo_jax.world.scenes import (
    COLOUR,
    COLOURS,
    DIRECTIONS,
    SHAPE,
    SHAPES,
    SIZES,
    VALUES,
    Pool,
    draw_attributes,
)

NAMES = tuple(
    "dax blick wug fep zop gax lorp mib nurb plim quop rix snib tave vorp yim zeb drun fosk glab "
    "hask jeb krit lomp mox neph prag skeb trum vusk wim yorl zarn brel chaz doop frob gorp hilk "
    "jaff kulp lish moff norf pilk rask shug tork ulb veck yeth zilt bosk crell dref flim grook "
    "hoon jurb kesh".split()
)
NUM_NEW_NAMES = 12
SEEN_NAMES, NEW_NAMES = NAMES[:-NUM_NEW_NAMES], NAMES[-NUM_NEW_NAMES:]
_FUNCTION_WORDS = tuple(
    "a and this is output question what colour shape the answer moves : ? . ;".split()
)
WORDS = COLOURS + SHAPES + SIZES + DIRECTIONS + _FUNCTION_WORDS + NAMES

FORMAT_SHARES = (0.4, 0.4, 0.2)  # how often a format page asks for colour, shape, size
# [attribute][value] -> the (colour, shape) pairs seen in training that have this value
_PAIRS_WITH = tuple(
    tuple(
        np.array([pair for pair in scenes.SEEN if pair[attribute] == value])
        for value in range(len(VALUES[attribute]))
    )
    for attribute in (COLOUR, SHAPE)
)


@dataclasses.dataclass(frozen=True)
class TextMix:
    """Shares of the kinds of documents.

    Half are dictionaries. In the one pair of runs that was compared, a share of 0.35 (and as many
    binding documents) left the look-up probe at an NLL of 0.65 after 700 steps of the tiny language
    model; with a share of 0.50 it was 0.1 after 500 steps.
    """

    dictionary: float = 0.50
    binding: float = 0.20
    format: float = 0.10
    qa: float = 0.15
    captions: float = 0.05


def describe(attributes: Int[np.ndarray, "3"]) -> str:
    """Describes one object: "small red circle"."""
    colour, shape, size = attributes
    return f"{SIZES[size]} {COLOURS[colour]} {SHAPES[shape]}"


def caption(attributes: Int[np.ndarray, "O 3"]) -> str:
    """Describes a picture: "a small red circle and a big blue ring"."""
    return " and ".join(f"a {describe(one)}" for one in attributes)


def video_caption(attributes: Int[np.ndarray, "3"], direction: str) -> str:
    """Describes a video: "a small red circle moves left"."""
    return f"a {describe(attributes)} moves {direction}"


def question(rng: np.random.Generator, attributes: Int[np.ndarray, "2 3"]) -> tuple[str, str]:
    """Draws a question about one of two objects, and its answer.

    It asks for the colour of a shape, or for the shape of a colour.
    """
    colour, shape, _ = attributes[rng.integers(2)]
    if rng.integers(2):
        return f"question : what colour is the {SHAPES[shape]} ? answer :", COLOURS[colour]
    return f"question : what shape is {COLOURS[colour]} ? answer :", SHAPES[shape]


def choose_kind(rng: np.random.Generator, mix: object) -> str:
    """Draws the name of a field of `mix` (TextMix, PageMix), by their shares."""
    shares = np.array(dataclasses.astuple(mix))  # type: ignore[call-overload]
    names = [field.name for field in dataclasses.fields(mix)]  # type: ignore[arg-type]
    return names[np.searchsorted(shares.cumsum(), rng.random() * shares.sum(), side="right")]


def document(seed: int, stream: str, index: int, *, mix: TextMix, num_words: int) -> str:
    """Returns document `index` of a stream: complete entries, at most `num_words` words."""
    rng = generator(seed, f"{stream}/text", index)
    entry = _ENTRIES[choose_kind(rng, mix)](rng)
    words: list[str] = []
    while len(words) + len(more := entry().split()) <= num_words:
        words += more
    return " ".join(words)


# Each function below draws what all entries of a document share (the names, the attribute), and
# returns a function that draws one entry.


def _dictionary(rng: np.random.Generator) -> Callable[[], str]:
    """Binds 3 to 7 words to names.

    Entries are drawn independently, so that a name can be predicted only by looking its word up.
    """
    ways = rng.integers(3, 8)
    keys = rng.permutation(COLOURS + SHAPES + SIZES)[:ways]
    names = rng.permutation(NAMES)[:ways]
    form = "{} : {} ;" if rng.integers(2) else "{} {}"
    entries = [form.format(key, name) for key, name in zip(keys, names, strict=True)]
    order = iter(rng.integers(ways, size=256).tolist())
    return lambda: entries[next(order)]


def _binding(rng: np.random.Generator) -> Callable[[], str]:
    """Binds 2 to 4 values of colour or of shape to names.

    The text does not say which of the two attributes is named. The other attributes vary.
    """
    attribute, ways = (COLOUR, SHAPE)[rng.integers(2)], rng.integers(2, 5)
    values = rng.permutation(len(VALUES[attribute]))[:ways]
    names = rng.permutation(NAMES)[:ways]

    def entry() -> str:
        way = rng.integers(ways)
        pairs = _PAIRS_WITH[attribute][values[way]]
        described = describe(np.append(pairs[rng.integers(len(pairs))], rng.integers(len(SIZES))))
        return f"{described} . this is a {names[way]} ;"

    return entry


def _format(rng: np.random.Generator) -> Callable[[], str]:
    """Asks for the value of one attribute, which is the same in the whole document."""
    attribute = draw_attribute(rng)

    def entry() -> str:
        attributes = draw_attributes(rng, 1, Pool(1))[0, 0]
        return f"{describe(attributes)} . output : {VALUES[attribute][attributes[attribute]]} ;"

    return entry


def _qa(rng: np.random.Generator) -> Callable[[], str]:
    def entry() -> str:
        first, second = objects = draw_attributes(rng, 1, Pool(2))[0]
        return " ".join(
            [describe(first), "and", describe(second), ".", *question(rng, objects), ";"]
        )

    return entry


def _captions(rng: np.random.Generator) -> Callable[[], str]:
    def entry() -> str:
        objects = draw_attributes(rng, 1, Pool(1 + int(rng.integers(2))))[0]
        if len(objects) == 1 and rng.integers(4) == 0:
            return video_caption(objects[0], DIRECTIONS[rng.integers(len(DIRECTIONS))]) + " ;"
        return caption(objects) + " ;"

    return entry


_ENTRIES: dict[str, Callable[[np.random.Generator], Callable[[], str]]] = {
    "dictionary": _dictionary,
    "binding": _binding,
    "format": _format,
    "qa": _qa,
    "captions": _captions,
}


def draw_attribute(rng: np.random.Generator) -> int:
    """Draws the attribute that a format page asks for, by FORMAT_SHARES."""
    return int(np.searchsorted(np.cumsum(FORMAT_SHARES), rng.random(), side="right"))


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A question of the look-up probe.

    Attributes:
      prompt: "circle : ulb ; red : veck ; red : veck ; circle : ulb ; circle :".
      candidates: the names on the page.
      answer: the name of the last word.
    """

    prompt: str
    candidates: tuple[str, ...]
    answer: str


def lookup_pages(ways: int, n: int, seed: int) -> Sequence[Lookup]:
    """Returns `n` pages of the text-only probe of dictionary look-up.

    A page has `ways` words with new names, twice in random order, and then one of the words again.
    """
    if not 1 <= ways <= NUM_NEW_NAMES:
        raise ValueError(
            f"lookup_pages: got ways={ways}, expected 1 to {NUM_NEW_NAMES}, the "
            "number of new names."
        )
    pages = []
    for index in range(n):
        rng = generator(seed, f"lookup/{ways}", index)
        keys = rng.permutation(COLOURS + SHAPES + SIZES)[:ways].tolist()
        names = rng.permutation(NEW_NAMES)[:ways].tolist()
        passes = [int(i) for _ in range(2) for i in rng.permutation(ways)]
        asked = int(rng.integers(ways))
        text = " ".join(f"{keys[i]} : {names[i]} ;" for i in passes)
        pages.append(Lookup(f"{text} {keys[asked]} :", tuple(names), names[asked]))
    return pages
