"""Checks that the numbers of a config are in their ranges, in its `__post_init__`.

    ranges.check(self, ranges.whole(1), "batch_size", "length")
    ranges.check(self, ranges.SHARE, "p_next")

A value that is None is right where the field may be None; of a tuple each item is checked.
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from flamingo_jax.core.config import FieldError
from flamingo_jax.core.fields import arms_of, hints_of

INT32 = (1 << 31) - 1  # the largest whole number of the devices
_FLOAT32 = 3.4028234e38  # likewise


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        low, high: the bounds.
        above: whether `low` is left out.
        below: whether `high` is left out.
        whole: whether only whole numbers are in the range.
        also: a number outside of the bounds with a meaning of its own, such as -1; and the meaning.
    """

    low: int | float = -_FLOAT32
    high: int | float = _FLOAT32
    above: bool = False
    below: bool = False
    whole: bool = False
    also: tuple[int, str] | None = None

    def holds(self, value: Any) -> bool:
        """Returns True for a number in the range; NaN is in none."""
        kind: type = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number: Any = value
        if self.also and number == self.also[0]:
            return True
        is_low = number > self.low if self.above else number >= self.low
        return bool(is_low and (number < self.high if self.below else number <= self.high))

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'of at least'} {self.low:.15g}"
        high = f"{'below' if self.below else 'at most'} {self.high:.15g}"
        if self == Range():
            words = "a finite number"
        elif self.high == _FLOAT32:
            words = f"{what} {low}"
        elif self.above or self.below:
            words = f"{what} {low} and {high}"
        else:
            words = f"{what} from {self.low:.15g} to {self.high:.15g}"
        return words + (f", or {self.also[0]} for {self.also[1]}" if self.also else "")


def whole(low: int, high: int = INT32, *, also: tuple[int, str] | None = None) -> Range:
    """Returns the range of the whole numbers from `low` to `high`."""
    return Range(low, high, whole=True, also=also)


_MOST = 1e6  # nothing that these ranges are of makes sense beyond
MODERATE = Range(-_MOST, _MOST)
POSITIVE = Range(0, _MOST, above=True)
NOT_NEGATIVE = Range(0, _MOST)
EPSILON = Range(1e-30, 1)  # a smaller one is 0 in float32
SHARE = Range(0, 1)  # of a whole, or a probability
SHARE_BELOW_ONE = Range(0, 1, below=True)


def check(config: Any, of: Range, *names: str, prefix: str = "", advice: str = "") -> None:
    """Checks fields of a dataclass.

    Args:
        config: the dataclass.
        of: the range of all these fields.
        names: the fields.
        prefix: is put before the name of the field in the message.
        advice: is added to the message.

    Raises:
        FieldError: a value is no number of the range; it names the field, the value and the range.
    """
    cls: Any = type(config)
    hints = hints_of(cls)
    for name in names:
        value = getattr(config, name)
        optional = type(None) in arms_of(hints[name])
        if value is None and optional:
            continue
        items = value if isinstance(value, (tuple, list)) else (value,)
        for i, item in enumerate(items):
            if not of.holds(item):
                place = name if items is not value else f"{name}[{i}]"
                otherwise = ", or None" if optional else ""
                end = f" {advice}" if advice else ""
                raise FieldError(f"{prefix}{place} is {item!r}; expected {of}{otherwise}.{end}")
