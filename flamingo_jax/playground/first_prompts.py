"""Prompts to begin with, for models that know the words of the demo's world.

They have pictures that training never showed: those of the pool `test_one`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from flamingo_jax.core import paths
from flamingo_jax.playground.prompt_files import PromptRow, SavedPrompt
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.world.pages import BIND_PROMPT, FORMAT_PROMPT, Album
from flamingo_jax.world.scenes import BLOCK, COLOUR, COLOURS, SHAPE
from flamingo_jax.world.text import NEW_NAMES

_SEED = 1
NAMES = {"Name the colour, 4 shots": "colour", "Two made-up names, 4 shots": "names"}


def fit(tokenizer: Tokenizer) -> bool:
    """Returns True if the model has a vocabulary of words, and these prompts' words are in it."""
    text = f"{FORMAT_PROMPT} {' '.join(COLOURS)} {BIND_PROMPT} {' '.join(NEW_NAMES)}"
    return tokenizer.separator == " " and tokenizer.decode(tokenizer.encode(text)).strip() == text


def make(name: str, directory: str) -> SavedPrompt:
    """Draws the pictures of one of NAMES into a directory, and returns the prompt."""
    if NAMES[name] == "colour":
        shown = [_pictures(COLOUR, value) for value in (0, 2, 1, 3, 2)]
        answers = [COLOURS[value] for value in (0, 2, 1, 3)]
        return _prompt("colour", shown, FORMAT_PROMPT, answers, COLOURS[:4], directory)
    ways = NEW_NAMES[:2]
    order = (0, 1, 1, 0, 0)
    shown = [_pictures(SHAPE, (0, 4)[way]) for way in order]
    answers = [ways[way] for way in order[:-1]]
    return _prompt("names", shown, BIND_PROMPT, answers, ways, directory)


def _prompt(
    name: str,
    shown: Sequence[Sequence[bytes]],
    before: str,
    answers: Sequence[str],
    candidates: Sequence[str],
    directory: str,
) -> SavedPrompt:
    """Returns shots and a question; picture i is the i-th one of `shown[i]`."""
    rows = []
    for i, pictures in enumerate(shown):
        path = paths.Path(directory) / f"{name}_{i + 1}.png"
        path.write_bytes(pictures[i])
        text = f"{before} {answers[i]}" if i < len(answers) else before
        rows.append(PromptRow((str(path),), text))
    return SavedPrompt(tuple(rows), tuple(candidates))


@functools.cache
def _album() -> Album:
    return Album.draw(_SEED, "test_one", BLOCK)


def _pictures(attribute: int, value: int) -> list[bytes]:
    album = _album()
    return [album.images[row] for row in album.having(attribute, value)]
