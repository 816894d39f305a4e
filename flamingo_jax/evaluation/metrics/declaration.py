"""A metric, and the unit in which its values are printed."""

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
        factor: values are multiplied by it.
        decimals: digits after the point.
        of_each: True if the metric is the mean over queries of how right each answer is, in 0..1;
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
    """Most metrics need nothing but the predictions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric, declared in one file of `evaluation/metrics`.

    Attributes:
        name: in results.json.
        value: predictions -> value of the whole task.
        needs: of the model: "generation" (open-ended: the decoded text) or "scores" (close-ended: a
            score of each candidate).
        unit: on the paper's benchmarks, as papers print it.
        plain_unit: on other tasks; None: `unit` there too, and the task is reported as a benchmark.
        check: raises MissingResourceError if this machine lacks a program, a package or a file; the
            message says what to install. It is called before hours of decoding, not after.
        caveat: a sentence below tables, on what makes two values not comparable.
    """

    name: str
    value: Callable[[Sequence[Answer]], float]
    needs: Literal["generation", "scores"]
    unit: Unit
    plain_unit: Unit | None = None
    check: Callable[[], None] = _nothing
    caveat: str = ""
