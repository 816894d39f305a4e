"""What a metric is, and the unit in which its values are printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from flamingo_jax.evaluation.episode import Answer


@dataclasses.dataclass(frozen=True)
class Unit:
    """How the values of a metric are printed.

    Attributes:
        title: name and unit, such as "VQA accuracy, %".
        factor: factor from the metric's value to the printed one.
        decimals: digits after the point.
        of_each: True if the metric is the mean over queries of a value in 0..1 for each answer.
            CIDEr, ROC AUC, mWAP and nll are not.
    """

    title: str
    factor: float = 100.0
    decimals: int = 1
    of_each: bool = True

    @property
    def name(self) -> str:
        """The title without the unit, such as "VQA accuracy"."""
        return self.title.removesuffix(", %").removesuffix(" x 100")

    def text(self, value: float | None) -> str:
        """Formats a value, such as "57.3"; "-" for None."""
        return "-" if value is None else f"{value * self.factor:.{self.decimals}f}"


def _nothing() -> None:
    """Checks nothing: most metrics need only the answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric.

    Attributes:
        name: name in results.json.
        value: answers of a task -> value.
        needs: what the model must do: "generation" (decode text, for open-ended tasks) or "scores"
            (score each candidate, for close-ended tasks).
        unit: unit on the paper's benchmarks, as papers print it.
        plain_unit: unit on other tasks; None if it is `unit` there too, and such tasks are reported
            like benchmarks.
        check: raises MissingResourceError if this machine lacks a program, a package or a file; the
            message says what to install. Called before the hours of decoding.
        caveat: note below tables about values that are not comparable.
    """

    name: str
    value: Callable[[Sequence[Answer]], float]
    needs: Literal["generation", "scores"]
    unit: Unit
    plain_unit: Unit | None = None
    check: Callable[[], None] = _nothing
    caveat: str = ""
