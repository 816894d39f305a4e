"""The methods of decoding, for `Flamingo.generate(..., method=...)`.

    Greedy()                              the most probable token each time
    BeamSearch(3)                         the best answer of a search (paper, Appendix A.2: 3 beams)
    Sample(temperature=0.8, top_p=0.9)    tokens drawn at random

`inference.decode` has the functions. Ranges of settings are checked here only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import numpy as np

from flamingo_jax.core import ranges, seeds
from flamingo_jax.core.config import ConfigError

Ends = Literal["any", "best"]
MAX_NEW_TOKENS = 20
COUNT = ranges.whole(1)
TOP_P = ranges.Range(0, 1, above=True)


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the most probable token each time.

    Attributes:
        max_new_tokens: bound on an answer, `<EOC>` included.
    """

    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        ranges.check(self, COUNT, "max_new_tokens", prefix="Greedy.")


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """Keeps the most probable unfinished answers at each step, and returns the best finished one.

    Attributes:
        num_beams: answers kept; the paper uses 3.
        length_penalty: answers are ordered by score / length**length_penalty; 0 = off, as in the
            paper.
        ends: which answers may end in a step; "best" as in transformers (`decode.beam_search`).
        max_new_tokens: bound on an answer, `<EOC>` included.
    """

    num_beams: int = 3
    length_penalty: float = 0.0
    ends: Ends = "any"
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        ranges.check(self, COUNT, "num_beams", "max_new_tokens", prefix="BeamSearch.")
        ranges.check(self, ranges.NOT_NEGATIVE, "length_penalty", prefix="BeamSearch.")
        if self.ends not in ("any", "best"):
            raise ValueError(f"BeamSearch.ends is {self.ends!r}; expected 'any' or 'best'.")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws each token at random, from the most probable ones.

    Attributes:
        temperature: divides the log-probabilities.
        top_p: tokens are drawn from the fewest that together have this probability; 1 = from all.
        seed: an answer depends on the seed, the prompt and the model, not on other prompts of the
            batch.
        max_new_tokens: bound on an answer, `<EOC>` included.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        ranges.check(self, COUNT, "max_new_tokens", prefix="Sample.")
        advice = "For the most probable token each time, use Greedy()."
        ranges.check(self, ranges.POSITIVE, "temperature", prefix="Sample.", advice=advice)
        ranges.check(self, TOP_P, "top_p", prefix="Sample.")
        ranges.check(self, seeds.RANGE, "seed", prefix="Sample.")


Method: TypeAlias = Greedy | BeamSearch | Sample


def as_method(method: object) -> Method | None:
    """Returns `method`, which a caller may have given wrongly.

    Raises:
        ConfigError: it is no method.
    """
    if method is None or isinstance(method, Greedy | BeamSearch | Sample):
        return method
    got = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
    raise ConfigError(
        f"method: got {got}; expected a method with its settings: Greedy(), BeamSearch(3), "
        "Sample(top_p=0.9), or None for that of the model's config."
    )


def from_settings(
    default: Greedy | BeamSearch,
    *,
    beams: int | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
) -> Method:
    """Returns the method that the flags of `generate` describe.

    Args:
        default: the method if neither beams nor a setting of sampling is given; its bound on the
            answer is also that of the other methods.
        beams: 1 = greedy, more = beam search.
        top_p: of sampling.
        temperature: of sampling.
        seed: of sampling.
        max_new_tokens: bound on an answer.

    Raises:
        ConfigError: there are both beams and settings of sampling.
        ValueError: a setting out of range.
    """
    is_drawn = top_p is not None or temperature is not None
    if beams is not None and is_drawn:
        raise ConfigError(
            f"Got beams={beams} with top_p={top_p}, temperature={temperature}: "
            "search or draw, not both."
        )
    method: Method = default
    if beams is not None:
        method = Greedy() if beams == 1 else BeamSearch(beams)
    elif is_drawn:
        settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed}
        given = {name: value for name, value in settings.items() if value is not None}
        method = dataclasses.replace(Sample(), **given)
    return dataclasses.replace(method, max_new_tokens=max_new_tokens or default.max_new_tokens)


def is_whole(value: Any, *, least: int | None = None) -> bool:
    """Returns True for a whole number of Python or numpy, of at least `least`."""
    if not isinstance(value, int | np.integer) or type(value) is bool:
        return False
    return least is None or bool(value >= least)
