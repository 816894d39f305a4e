"""The tokens that a candidate has after a prompt.

    prompt "Answer:"    candidate " yes"    <BOS> Answer : | ▁yes
    prompt "Answer: "   candidate "yes"     <BOS> Answer : | ▁yes      the prompt's piece ▁ is gone

They are those of the joined text (`tokenizers.base.WithNewTokens.join`), as in the EleutherAI
evaluation harness. Where a candidate changes the last tokens of the prompt, the prompt ends before
them and they are scored with the candidates. All candidates of a prompt are scored from the same
place, so that their scores can be compared.
"""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Iterable

from flamingo_jax.inference.prompt import PromptError, TokenisedPrompt, warn_once
from flamingo_jax.tokenizers.base import Tokenizer

Tokens = tuple[int, ...]


class Candidates:
    """Tokenises candidates. Those of the last prompts are kept.

    A classification has the same thousand candidates after every query.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._joined = functools.lru_cache(maxsize=16)(self._join)

    def after(
        self, prompt: TokenisedPrompt, texts: Iterable[str], *, separator: str = ""
    ) -> tuple[TokenisedPrompt, tuple[Tokens, ...]]:
        """Returns the prompt, and the tokens of each candidate after it.

        Args:
            prompt: the prompt.
            texts: the candidates.
            separator: text between the prompt and each candidate.

        Raises:
            PromptError: the candidates are one str, or one of them is none.
        """
        given = as_candidates(texts)
        joined = self._joined(prompt.tail, given, separator)
        most = min(max((changed for changed, _ in joined), default=0), prompt.tail_length)
        if most == len(prompt.tokens):  # something must be read before the first token is scored
            most -= 1
        kept = len(prompt.tokens) - most
        again = tuple(prompt.tokens[kept:].tolist())
        tokens = []
        for text, (changed, ids) in zip(given, joined, strict=True):
            if changed > most:
                ids = tuple(self._tokenizer.encode_after(prompt.tail, f"{separator}{text}"))
                changed = 0
            # An empty candidate stays empty, which is an error later.
            tokens.append((*again[: most - changed], *ids) if ids else ())
        if most:
            prompt = dataclasses.replace(
                prompt, tokens=prompt.tokens[:kept], media_index=prompt.media_index[:kept]
            )
        return prompt, tuple(tokens)

    def _join(
        self, tail: str, texts: tuple[str, ...], separator: str
    ) -> tuple[tuple[int, Tokens], ...]:
        """Returns `Tokenizer.join` of each candidate."""
        texts = tuple(f"{separator}{text}" for text in texts)
        if texts and _lacks_a_space(self._tokenizer, tail, texts[0]):
            warn_once(
                "candidates: they begin without a space after a prompt that ends without one, so "
                "they are read as the rest of its last word ('Answer:yes'). Put a space in front "
                "of each: ' yes'."
            )
        found = (self._tokenizer.join(tail, text) for text in texts)
        return tuple((changed, tuple(ids)) for changed, ids in found)


def as_candidates(texts: object) -> tuple[str, ...]:
    """Returns the candidates of a prompt, in their order.

    Raises:
        PromptError: they are one str, have no order, or one of them is no str.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise PromptError(
            f"candidates: got {type(texts).__name__} {str(texts)[:40]!r}; expected a list of str, "
            "such as [' red', ' green']. Put a single candidate into a list."
        )
    if isinstance(texts, set | frozenset | dict):
        raise PromptError(
            f"candidates: got a {type(texts).__name__}; expected a list of str, because the scores "
            "are in the order of the candidates. Write list(...) around it."
        )
    given = tuple(texts)
    for number, text in enumerate(given):
        if not isinstance(text, str):
            raise PromptError(
                f"candidates: candidate {number} is {type(text).__name__}; expected a str."
            )
    return given


def _lacks_a_space(tokenizer: Tokenizer, tail: str, text: str) -> bool:
    """Returns True if a candidate would be the rest of the prompt's last word."""
    last, first = tail[-1:], text[:1]
    if first not in (*string.ascii_letters, *string.digits):
        return False
    if not last.isalnum() and last not in (*":?.!,;",):
        return False
    return tokenizer.join(tail, text) != tokenizer.join(tail, f" {text}")
