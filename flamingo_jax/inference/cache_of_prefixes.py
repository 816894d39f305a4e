"""The prefix cache: keys and values of prompts that were read are kept while there is room.

    prompt --compare--> tokens, phi and visuals of the cached prefixes --> keys and values

Row s of the keys and values is token s. So a cached prefix serves for each shorter one too: the
rows after it are written again before a token can attend them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flamingo_jax.inference.identity import Identify
from flamingo_jax.inference.prompt import PromptBatch, TokenisedPrompt
from flamingo_jax.inference.shared_prefix import is_worth, visuals_before
from flamingo_jax.models.cache import Rows, length_of


@dataclasses.dataclass(frozen=True, eq=False)
class CachedPrefix:
    """A prefix of prompts, with the keys and values of its tokens.

    Attributes:
        tokens: int32[L].
        media_index: int32[L] phi.
        visuals: the identity of each visual that a token attends.
        rows: keys and values of at least L tokens, on the devices; one sequence for each data
            shard, all equal.
        alone: whether these tokens, and no others, were read in one pass. Reading them again gives
            the same to the bit.
    """

    tokens: np.ndarray
    media_index: np.ndarray
    visuals: tuple[bytes, ...]
    rows: Rows
    alone: bool

    @classmethod
    def of(
        cls, prompt: TokenisedPrompt, shown: Sequence[bytes], rows: Rows, *, alone: bool
    ) -> CachedPrefix:
        """Returns a whole prompt as a prefix of later ones.

        Args:
            prompt: the prompt.
            shown: the identities of its visuals; there may be more of them.
            rows: as above.
            alone: as above.
        """
        phi = prompt.media_index
        return cls(prompt.tokens, phi, tuple(shown[: int(phi.max())]), rows, alone)

    def first(self, length: int) -> CachedPrefix:
        """Returns the first `length` tokens."""
        phi = self.media_index[:length]
        visuals = self.visuals[: int(phi.max())]
        return CachedPrefix(self.tokens[:length], phi, visuals, self.rows, self.alone)

    @property
    def num_bytes(self) -> int:
        """Bytes on each device."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.rows)
        )

    def common(self, prompt: TokenisedPrompt, identity: Identify) -> int:
        """Returns the number of tokens up to which a prompt is the same."""
        size = min(len(self.tokens), len(prompt.tokens))
        phi = self.media_index[:size]
        same = (self.tokens[:size] == prompt.tokens[:size]) & (phi == prompt.media_index[:size])
        length = _before_first(~same)
        shown = int(phi[:length].max(initial=0))
        others = (
            number
            for number, (mine, theirs) in enumerate(
                zip(self.visuals[:shown], prompt.visuals, strict=False)
            )
            if mine != identity(theirs)
        )
        return _before_first(phi[:length] > next(others, shown))


def prefix_of(
    prompt: TokenisedPrompt,
    batch: PromptBatch,
    prefix: CachedPrefix | None,
    rows: Any,
    *,
    alone: bool,
) -> CachedPrefix:
    """Returns what was read of the first prompt of a batch, for later prompts.

    Args:
        prompt: the first one, whole.
        batch: with what was read of it.
        prefix: what had been read before; None = nothing.
        rows: keys and values of its tokens.
        alone: as in `CachedPrefix.of`.
    """
    shown = [batch.identities[slot] for slot in batch.media_slot[0] if slot >= 0]
    if prefix is not None:
        before = visuals_before(prompt, len(prefix.tokens))
        shown = [*prefix.visuals[:before], *shown]
    return CachedPrefix.of(prompt, shown, rows, alone=alone)


class PrefixCache:
    """Keeps what was read last, in a bounded memory of the devices."""

    def __init__(self, *, megabytes: int) -> None:
        """Starts empty.

        Args:
            megabytes: bound on the memory on each device between two calls.
        """
        self._bytes = megabytes << 20
        self._cached: list[CachedPrefix] = []  # the one that was used last is at the end

    def __len__(self) -> int:
        """Returns the number of prefixes in the memory."""
        return len(self._cached)

    @property
    def num_bytes(self) -> int:
        """Bytes on each device."""
        return sum(each.num_bytes for each in self._cached)

    def longest(self, prompt: TokenisedPrompt, lengths: tuple[int, ...], identity: Identify) -> int:
        """Returns the length of the longest cached prefix that is worth it; 0 = there is none.

        Args:
            prompt: at most as long as the longest of `lengths`.
            lengths: that prompts are padded to.
            identity: of a visual.
        """
        size = len(prompt.tokens)
        whole = next(length for length in lengths if size <= length)
        found = [
            min(cached.common(prompt, identity), size - 1)  # something must be read
            for cached in self._cached
            if length_of(cached.rows) <= whole
        ]
        return max((each for each in found if is_worth(each, prompt, lengths)), default=0)

    def longest_of_all(
        self, prompts: Sequence[TokenisedPrompt], lengths: tuple[int, ...], identity: Identify
    ) -> int:
        """Returns the length of a prefix of all prompts that is worth it; 0 = there is none.

        It is a cached one, unless what all prompts begin with is longer and leaves rests that are
        padded to less.

        Args:
            prompts: of a batch; one prompt has no others, and its prefix is a cached one.
            lengths: that prompts are padded to.
            identity: of a visual.
        """
        first, *others = prompts
        known = self.longest(first, lengths, identity)
        if not others:
            return known
        whole = CachedPrefix.of(first, list(map(identity, first.visuals)), {}, alone=False)
        shared = min(whole.common(other, identity) for other in others)
        # Something must be read of each prompt.
        shared = min(shared, *(len(prompt.tokens) - 1 for prompt in prompts))
        longest = max(len(prompt.tokens) for prompt in prompts)
        padded = lambda cut: next(each for each in lengths if longest - cut <= each)
        found = [
            cut
            for cut in (min(known, shared), shared)
            if all(is_worth(cut, prompt, lengths) for prompt in prompts)
        ]
        return min(found, key=padded, default=0)

    def get(
        self, start: TokenisedPrompt, identity: Identify, *, alone: bool
    ) -> CachedPrefix | None:
        """Returns the cached prefix with the tokens of `start`; None if there is none.

        Args:
            start: from `shared_prefix.start_of`.
            identity: of a visual.
            alone: whether it must be `CachedPrefix.alone`.
        """
        size = len(start.tokens)
        for cached in sorted(self._cached, key=lambda cached: length_of(cached.rows)):
            fits = cached.alone and len(cached.tokens) == size if alone else True
            if fits and cached.common(start, identity) == size:
                self._use(cached)
                return cached.first(size)
        return None

    def keep(self, cached: CachedPrefix) -> None:
        """Keeps a prefix while there is room, in the place of those that it goes on from."""
        if cached.num_bytes > self._bytes:
            return
        self._cached = [
            each for each in self._cached if each.alone or not _begins_with(cached, each)
        ]
        self._use(cached)

    def _use(self, cached: CachedPrefix) -> None:
        self._cached = [each for each in self._cached if each is not cached] + [cached]
        while self.num_bytes > self._bytes:
            del self._cached[0]


def _begins_with(cached: CachedPrefix, other: CachedPrefix) -> bool:
    size, shown = len(other.tokens), len(other.visuals)
    return (
        np.array_equal(cached.tokens[:size], other.tokens)
        and np.array_equal(cached.media_index[:size], other.media_index)
        and cached.visuals[:shown] == other.visuals
    )


def _before_first(found: np.ndarray) -> int:
    """Returns the number of places before the first True."""
    return int(found.argmax()) if found.any() else len(found)
