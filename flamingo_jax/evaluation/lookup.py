"""The look-up probe of a language model as a task, `lm_lookup`: text alone, so it runs on a language_model export too.

    circle : ulb ; red : veck ; red : veck ; circle : ulb ; circle :      -> ulb

A shot is an entry of the dictionary: at 4 shots the page binds four words to new names. The same pages as `evaluation.lm_lookup`, which is the
probe that ends the language_model stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flamingo_jax.evaluation import task
from flamingo_jax.world.text import NEW_NAMES, lookup_pages


@dataclasses.dataclass(frozen=True)
class LookupTask:
    """Which of the page's names belongs to the word that is asked for."""

    name: str = "lm_lookup"
    metrics: tuple[str, ...] = ("ranking", "nll")
    chance: float | None = None  # 1 / shots

    def accepts(self, shots: int) -> bool:
        """A dictionary has two entries or more, and there are so many names."""
        return 2 <= shots <= len(NEW_NAMES)

    def episodes(self, shots: int, n: int, seed: int) -> list[task.Episode]:
        """`n` pages of `shots` words."""
        return [
            task.Episode(
                parts=(page.prompt,), candidates=page.candidates, answer=page.answer, query_id=f"lookup{shots}/{index}"
            )
            for index, page in enumerate(lookup_pages(shots, n, seed))
        ]


def _make(data: Mapping[str, str], settings: task.Settings) -> LookupTask:
    settings.only_random("lm_lookup")
    return LookupTask()


task.register("lm_lookup", _make)
