"""A probe of a language model: does it look words up in a dictionary that it has not read before?

    <BOS> circle : ulb ; red : veck ; red : veck ; circle : ulb ; circle :      -> ulb

Binding names to pictures needs this ability: cross-attention writes what is in the picture in the
place of the word, and the frozen language model does the rest. So the demo does not start the
flamingo stage before the probe passes. Names are drawn from `NEW_NAMES` anew for each page.

`lookup_probe` ends the language_model stage. The task `lm_lookup` asks the same pages of an export;
the pages have no images, so a language_model export is enough. A shot is an entry of the
dictionary: at 4 shots the page binds four words to new names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flamingo_jax.core.finite import finite
from flamingo_jax.evaluation import task
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.world.text import NEW_NAMES, lookup_pages

TokenNLL = Callable[[np.ndarray, np.ndarray], Any]
_LENGTH_STEP = 64


def lookup_probe(
    token_nll: TokenNLL, tokenizer: Tokenizer, ways: int, n: int, seed: int
) -> dict[str, float]:
    """Asks a language model `n` pages of `ways` words.

    Args:
        token_nll: the language model: (tokens int32[n, L], segment int32[n, L]) -> float[n, L - 1],
            at l the negative log-likelihood, in nats, of tokens[:, l + 1] given tokens[:, : l + 1].
            It is called once per way, always with the same shape; L is a multiple of 64, and 64 up
            to 7 ways.
        tokenizer: the model's tokenizer.
        ways: number of words, and of names, on a page.
        n: number of pages.
        seed: of the pages.

    Returns:
        "accuracy": how often the right name is the most probable one of the page (chance: 1 /
        ways); "nll": the negative log-likelihood of the right name in nats, mean over pages.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    pages = lookup_pages(ways, n, seed)
    prompts = [[*tokenizer.start_ids, *tokenizer.encode(page.prompt)] for page in pages]
    answers = [
        [tokenizer.encode_after(page.prompt, f" {name}") for name in page.candidates]
        for page in pages
    ]
    longest = max(
        len(prompt) + max(map(len, names)) for prompt, names in zip(prompts, answers, strict=True)
    )
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    nll = np.zeros((n, ways))
    for way in range(ways):
        tokens = np.full((n, length), tokenizer.pad_id, np.int32)
        segment = np.zeros((n, length), np.int32)
        is_answer = np.zeros((n, length), bool)
        for row, (prompt, names) in enumerate(zip(prompts, answers, strict=True)):
            text = [*prompt, *names[way]]
            tokens[row, : len(text)] = text
            segment[row, : len(text)] = 1
            is_answer[row, len(prompt) : len(text)] = True
        losses = np.asarray(token_nll(tokens, segment), np.float64)
        nll[:, way] = np.where(is_answer[:, 1:], losses, 0.0).sum(axis=1)
    finite(nll, "losses of the language model")
    right = np.array([page.candidates.index(page.answer) for page in pages])
    return {
        "accuracy": float((nll.argmin(axis=1) == right).mean()),
        "nll": float(nll[np.arange(n), right].mean()),
    }


@dataclasses.dataclass(frozen=True)
class LookupTask:
    """The task of choosing the name that the page binds to a word."""

    name: str = "lm_lookup"
    metrics: tuple[str, ...] = ("ranking", "nll")
    chance: float | None = None  # 1 / shots
    protocol: Protocol = Protocol()

    def accepts(self, shots: int) -> bool:
        """Returns True from two entries up to as many as there are names."""
        return 2 <= shots <= len(NEW_NAMES)

    def submission_questions(self) -> Sequence[int | str]:
        """Returns (): there is no server, all right answers are known."""
        return ()

    def episodes(self, shots: int) -> list[Episode]:
        """Returns `protocol.n` pages of `shots` words."""
        pages = lookup_pages(shots, self.protocol.n, self.protocol.seed)
        return [
            Episode(
                parts=(page.prompt,),
                candidates=page.candidates,
                answer=page.answer,
                query_id=f"lookup{shots}/{index}",
                separator=" ",
            )
            for index, page in enumerate(pages)
        ]


def _make(data: Mapping[str, str], protocol: Protocol) -> LookupTask:
    task.check_draws_its_own("lm_lookup", protocol)
    return LookupTask(protocol=protocol)


TASKS: dict[str, task.TaskFactory] = {"lm_lookup": _make}
