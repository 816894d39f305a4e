"""Where a prompt is cut, so that a prefix that several prompts share is read once.

    <BOS><image>Output: A cat.<EOC><image>Output: A dog.<EOC> | <image>Output:
    phi      1  1          ..  1     2     ..             2   |   3      3
                                                              |   1      1     of the rest's images
    the support examples, read once for all queries           | each query, read by itself

What a token gives to later tokens, its keys and values, depends on nothing after it. So prompts may
be cut anywhere. The rest of a prompt has the images from that of its first token on, which may be
the prefix's last one. A call cuts its prompts after an `<EOC>`, where examples end. A prompt
that goes on from an earlier one, as in a dialogue, is cut where the two part.

A prefix is worth it if it has at least MIN_TOKENS tokens, and if the rest is padded to at most
half the length that the whole prompt is padded to.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flamingo_jax.inference.identity import Identify
from flamingo_jax.inference.prompt import TokenisedPrompt

MIN_TOKENS = 64


class Cut(NamedTuple):
    """Where a prompt is cut.

    Attributes:
        of: number of the first prompt with the same prefix; -1 = the prompt is not cut.
        length: tokens of the prefix.
    """

    of: int
    length: int


WHOLE = Cut(-1, 0)


def is_worth(length: int, prompt: TokenisedPrompt, lengths: tuple[int, ...]) -> bool:
    """Returns True if it pays to read the first `length` tokens of a prompt by themselves.

    Args:
        length: at least one token fewer than the prompt has.
        prompt: at most as long as the longest of `lengths`.
        lengths: that prompts are padded to.
    """
    total = len(prompt.tokens)
    padded = lambda size: next(each for each in lengths if size <= each)
    return MIN_TOKENS <= length < total and 2 * padded(total - length) <= padded(total)


def shared_cuts(
    prompts: Sequence[TokenisedPrompt],
    *,
    ends: tuple[int, ...],
    lengths: tuple[int, ...],
    batch_size: int,
    identity: Identify,
) -> list[Cut]:
    """Returns where each prompt of a call is cut.

    It is the longest prefix that is worth it, and that fills at least half a batch: smaller
    groups would take more steps of decoding than they save of reading. No visual is looked at
    unless the texts of prompts agree.

    Args:
        prompts: of the call.
        ends: tokens that end an example.
        lengths: that prompts are padded to.
        batch_size: prompts answered together.
        identity: of a visual.
    """
    least = max(2, -(-min(batch_size, len(prompts)) // 2))
    cuts = {number: _after_examples(each, ends, lengths) for number, each in enumerate(prompts)}
    same_text = _shared(prompts, cuts, least, lambda visual: b"")
    first: dict[bytes, int] = {}
    found = [WHOLE] * len(prompts)
    for number, shared in _shared(prompts, same_text, least, identity).items():
        if shared:
            length = max(shared)
            found[number] = Cut(first.setdefault(shared[length], number), length)
    return found


def _after_examples(
    prompt: TokenisedPrompt, ends: tuple[int, ...], lengths: tuple[int, ...]
) -> list[int]:
    """Returns the lengths of the prefixes that end in one of `ends` and are worth it."""
    places = np.flatnonzero(np.isin(prompt.tokens, ends)) + 1
    return [length for length in places.tolist() if is_worth(length, prompt, lengths)]


def _shared(
    prompts: Sequence[TokenisedPrompt],
    cuts: Mapping[int, Collection[int]],
    least: int,
    identity: Identify,
) -> dict[int, dict[int, bytes]]:
    """Returns {number: {length: hash}} of the prefixes that at least `least` prompts have.

    Args:
        prompts: all of them.
        cuts: {number: the lengths to look at, ascending}.
        least: prompts.
        identity: what a visual adds to the hash.
    """
    hashes: dict[int, dict[int, bytes]] = {}
    for number, lengths in cuts.items():
        prompt, at, shown = prompts[number], 0, 0
        text, visuals = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        hashes[number] = {}
        for length in lengths:
            phi = prompt.media_index[at:length]
            text.update(np.stack([prompt.tokens[at:length], phi], axis=1).tobytes())
            until = int(phi.max())
            visuals.update(b"".join(map(identity, prompt.visuals[shown:until])))
            hashes[number][length] = text.digest() + visuals.digest()
            at, shown = length, max(shown, until)
    counts = collections.Counter(one for found in hashes.values() for one in found.values())
    return {
        number: {length: one for length, one in found.items() if counts[one] >= least}
        for number, found in hashes.items()
    }


def start_of(prompt: TokenisedPrompt, length: int) -> TokenisedPrompt:
    """Returns the first `length` tokens of a prompt, with the visuals that they attend."""
    phi = prompt.media_index[:length]
    visuals = prompt.visuals[: int(phi.max())]
    return TokenisedPrompt(prompt.tokens[:length], phi, visuals)


def rest_of(prompt: TokenisedPrompt, length: int) -> TokenisedPrompt:
    """Returns a prompt without its first `length` tokens; phi counts the visuals that are left."""
    phi = prompt.media_index[length:]
    before = visuals_before(prompt, length)
    visuals = prompt.visuals[before : int(phi.max())]
    return TokenisedPrompt(prompt.tokens[length:], np.maximum(phi - before, 0), visuals)


def visuals_before(prompt: TokenisedPrompt, length: int) -> int:
    """Returns the number of visuals that no token from number `length` on attends."""
    return max(int(prompt.media_index[length]) - 1, 0)
