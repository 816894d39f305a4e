"""What the engine is asked, and what it answers."""

from __future__ import annotations

import dataclasses

from flamingo_jax.inference.prompt import TokenisedPrompt


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One prompt to answer.

    Attributes:
        prompt: the prompt.
        candidates: token ids of each candidate to be scored.
    """

    prompt: TokenisedPrompt
    candidates: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to one request.

    Attributes:
        tokens: the best answer without its stop token; None if nothing was generated.
        log_likelihood: the answer's score; None if nothing was generated.
        scores: of the candidates.
    """

    tokens: tuple[int, ...] | None
    log_likelihood: float | None
    scores: tuple[float, ...]
