"""The methods of decoding, for `Flamingo.generate(..., method=...)`.

    Greedy()                              the most probable token each time
    BeamSearch(3)                         the best answer of a search (paper, Appendix A.2: 3 beams)
    Sample(temperature=0.8, top_p=0.9)    tokens drawn at random

`inference.decode` has the functions. Ranges of settings are checked here only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

from flamingo_jax.core.config import ConfigError

Ends = Literal["any", "best"]
MAX_NEW_TOKENS = 20


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the most probable token each time.

    Attributes:
        max_new_tokens: bound on an answer, `<EOC>` included.
    """

    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        _at_least_one(self, "max_new_tokens")


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
        _at_least_one(self, "num_beams", "max_new_tokens")
        if not self.length_penalty >= 0:
            raise ValueError(
                f"BeamSearch.length_penalty is {self.length_penalty}; expected at "
                "least 0 (0 = off)."
            )
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
        _at_least_one(self, "max_new_tokens")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"Sample.temperature is {self.temperature} and Sample.top_p {self.top_p}; expected "
                "temperature > 0 and 0 < top_p <= 1. For the most probable token each time, use "
                "Greedy()."
            )


Method: TypeAlias = Greedy | BeamSearch | Sample


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


def _at_least_one(method: Method, *names: str) -> None:
    for name in names:
        value = getattr(method, name)
        if value < 1:
            raise ValueError(f"{type(method).__name__}.{name} is {value}; expected at least 1.")
