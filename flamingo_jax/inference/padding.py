"""The arrays of a batch of prompts, padded to one of a few shapes.

Each size is rounded up to one of a few sizes, so that the number of compiled programs is bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flamingo_jax.core.config import ConfigError
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.methods import Greedy, Method, Sample, is_whole
from flamingo_jax.inference.prompt import PromptError, TokenisedPrompt
from flamingo_jax.models import media_context

LONGEST = 2048  # tokens of an answer that are allowed in any case


class PromptTooLong(PromptError):
    """A prompt with more tokens or images than the model, or the largest of the shapes, takes."""


class Shape(NamedTuple):
    """The shape of a batch of prompts: B rows, L tokens and N images for each row."""

    rows: int
    length: int
    num_images: int


def round_up(size: int, sizes: tuple[int, ...], *, who: str, what: str, field: str) -> int:
    """Returns the smallest of `sizes` that is at least `size`.

    Args:
        size: tokens or images of a prompt.
        sizes: ascending.
        who: the prompt, for the message.
        what: "tokens" or "images", for the message.
        field: of InferenceConfig, for the message.

    Raises:
        PromptTooLong: `size` is larger than all of them.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise PromptTooLong(
        f"{who} has {size} {what}; expected at most {sizes[-1]}. Shorten it, or add a size to "
        f"config.inference.{field}."
    )


def of_prompt(
    prompt: TokenisedPrompt,
    lengths: tuple[int, ...],
    num_images: tuple[int, ...],
    who: str = "the prompt",
) -> tuple[int, int]:
    """Returns the length and the number of images that a prompt is padded to.

    Args:
        prompt: the prompt.
        lengths: in tokens, ascending.
        num_images: ascending.
        who: the prompt, for the message.

    Raises:
        PromptTooLong: it is longer, or has more images, than all of them.
    """
    length = round_up(len(prompt.tokens), lengths, who=who, what="tokens", field="lengths")
    images = len(prompt.visuals)
    return length, round_up(images, num_images, who=who, what="images", field="num_images")


def of_part(prompt: TokenisedPrompt, config: InferenceConfig) -> tuple[int, int]:
    """Returns the length and the number of images that a part of a prompt is padded to."""
    # Most queries have one image.
    return of_prompt(prompt, config.lengths, tuple(sorted({1, *config.num_images})))


def check_sizes(batch_size: object, method: Method | None, longest: int) -> None:
    """Checks the number of prompts that are answered together, and the length of the answers.

    An answer may be as long as the longest prompt: each of its tokens takes memory and a step.

    Args:
        batch_size: prompts answered together.
        method: how answers are chosen; None = nothing is generated.
        longest: tokens of the longest possible prompt.

    Raises:
        ConfigError: the number is no whole number of at least 1, or the answers are too long.
    """
    if not is_whole(batch_size, least=1):
        raise ConfigError(
            f"batch_size is {batch_size!r}; expected a whole number of at least 1, such as 16."
        )
    most = max(longest, LONGEST)
    if method is not None and method.max_new_tokens > most:
        raise ConfigError(
            f"{type(method).__name__}.max_new_tokens is {method.max_new_tokens:,}; expected at "
            f"most {most:,}. Take fewer, or add a longer size to config.inference.lengths."
        )


def num_rows(count: int, batch_size: int, shards: int) -> int:
    """Returns the rows of a batch: `batch_size`, or a power of two if fewer are enough.

    A multiple of the number of batch shards.
    """
    rows = min(batch_size, 1 << (count - 1).bit_length())
    return -(-rows // shards) * shards


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Returns the array with rows of zeros at its end."""
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])


def pad_candidates(
    candidates: Sequence[tuple[tuple[int, ...], ...]], rows: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (int32[B, C, T] tokens, int32[B, C] lengths) of candidates, or None if there is none.

    A length of 0 is no candidate. C and T are rounded up to powers of two. C is rounded up further
    if T is 1, since candidates of one token cost nothing.

    Args:
        candidates: token ids of each candidate of each prompt.
        rows: B.

    Raises:
        PromptError: a candidate without tokens.
    """
    most = max(map(len, candidates))
    if not most:
        return None
    longest = max(len(candidate) for of_prompt in candidates for candidate in of_prompt)
    count, width = (1 << (size - 1).bit_length() for size in (most, max(longest, 1)))
    count = max(count, 32) if width == 1 else count
    tokens, lengths = np.zeros((rows, count, width), np.int32), np.zeros((rows, count), np.int32)
    for row, of_prompt in enumerate(candidates):
        for column, candidate in enumerate(of_prompt):
            if not candidate:
                raise PromptError(
                    f"candidate {column} is empty: there is nothing to score. Give it some text."
                )
            tokens[row, column, : len(candidate)] = candidate
            lengths[row, column] = len(candidate)
    return tokens, lengths


def sampling(
    prompts: Sequence[TokenisedPrompt], rows: int, methods: Sequence[Greedy | Sample]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the fields of `decode.Sampling`.

    A row's seed is a hash of its method's seed and of the prompt, so that equal prompts are
    answered equally, in whichever row they are.
    """
    seeds = np.zeros(rows, np.uint32)
    temperature, top_p = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    for row, (prompt, method) in enumerate(zip(prompts, methods, strict=True)):
        if isinstance(method, Sample):
            content = f"{method.seed}:".encode() + prompt.tokens.tobytes()
            digest = hashlib.blake2b(content, digest_size=4).digest()
            seeds[row] = int.from_bytes(digest, "little")
            temperature[row], top_p[row] = method.temperature, method.top_p
    return seeds, temperature, top_p


def xattn_chunk(
    media_index: np.ndarray, num_images: int, tokens: int, *, runs: bool = False
) -> tuple[int, int] | None:
    """Returns (tokens, span) of the chunked cross-attention, or None if the full form is as cheap.

    Args:
        media_index: int32[B, L] phi.
        num_images: N.
        tokens: of a chunk; 0 = never chunked.
        runs: whether a token attends a run of images (`models.media_context`).

    Returns:
        The span is the most images that a chunk attends, rounded up to a power of two.
    """
    if not tokens or media_index.shape[1] % tokens or not media_index.any():
        return None
    lowest = media_context.first_images(media_index) if runs else media_index
    phi, lowest = (x.reshape(len(x), -1, tokens) for x in (media_index, lowest))
    span = int((phi.max(axis=2) - np.where(phi > 0, lowest, num_images + 1).min(axis=2)).max()) + 1
    span = 1 << max(span - 1, 0).bit_length()
    return (tokens, span) if 2 * span <= num_images else None


def before_stop(tokens: np.ndarray, ends: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the tokens before the first of `ends`."""
    found = np.isin(tokens, ends)
    return tuple(int(token) for token in (tokens[: int(found.argmax())] if found.any() else tokens))
