"""Times functions on inputs of n and 2n characters, and makes inputs that are hard to match."""

import re
import time
from collections.abc import Callable, Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

# A factor of 2 in length is about 2 in time; 4 if the time grows with the square.
_LARGEST_RATIO = 3.0
_NOISE = 0.01  # seconds
_TINY = 24  # characters: enough to see a time of 2^n, which would never end for more
_MOST_PIECES = 100
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT)


def seconds(function: Callable[[Any], object], value: Any) -> float:
    """Returns the CPU seconds of one call, which other processes on the machine do not change."""
    start = time.thread_time()
    function(value)
    return time.thread_time() - start


def grows_too_fast(function: Callable[[Any], object], make: Callable[[int], Any], size: int) -> str:
    """Returns "" if a function's time is about linear in the length of its input, else its times.

    Args:
      function: of one input.
      make: length -> input.
      size: length n; the time of the square must be clearly above 0.01 seconds there.
    """
    if seconds(function, make(_TINY)) > _NOISE and seconds(function, make(_TINY)) > _NOISE:
        return f"already {_TINY} characters take more than {_NOISE} s"
    small, large = make(size), make(2 * size)
    for _ in range(3):  # a collection of garbage can hit any of them
        first, second = seconds(function, small), seconds(function, large)
        if second <= _LARGEST_RATIO * first + _NOISE:
            return ""
    return f"{size}: {first:.3f} s, {2 * size}: {second:.3f} s"


def hard_inputs(pattern: re.Pattern) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Yields (name, length -> input) of inputs on which a pattern could try many ways.

    Each part of the pattern is repeated, alone and with all that comes before it, with text before
    it that matches, and with an end that does not.
    """
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    pieces = list(dict.fromkeys(_pieces(parser.parse(text, pattern.flags & ~re.UNICODE))))
    pieces = pieces[:: 1 + len(pieces) // _MOST_PIECES]  # of a long list of words, a few
    for before, pump in pieces:
        for start, end in (("", "\0"), (before, "\0"), (before, "\n\0"), (before, " \0")):

            def make(size: int, start: str = start, pump: str = pump, end: str = end) -> Any:
                made = start + pump * (size // len(pump)) + end
                return made if isinstance(pattern.pattern, str) else made.encode("latin-1")

            yield f"{pattern.pattern!r:.60} on {start!r} + {pump!r} * n + {end!r}", make


def _pieces(parsed: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yields (text before, text to repeat)."""
    so_far = ""
    for code, argument in parsed:
        for inner in _inside(code, argument):
            yield from _pieces(inner, before + so_far)
        if sample := _sample([(code, argument)]):
            yield before + so_far, sample
            so_far += sample
            yield before, so_far


def _inside(code: Any, argument: Any) -> list[Any]:
    if code in _REPEATS:
        return [argument[2]]
    if code is codes.SUBPATTERN:
        return [argument[3]]
    if code is codes.BRANCH:
        return list(argument[1])
    return []


def _sample(parsed: Any) -> str:
    """Returns a short text that a part of a pattern matches."""
    sample = ""
    for code, argument in parsed:
        if code is codes.LITERAL:
            sample += chr(argument)
        elif code is codes.NOT_LITERAL:
            sample += "x" if argument != ord("x") else "y"
        elif code is codes.ANY:
            sample += "x"
        elif code is codes.IN:
            sample += _one_of(argument)
        elif code in _REPEATS:
            sample += _sample(argument[2]) * max(argument[0], 1)
        elif inside := _inside(code, argument):
            sample += _sample(inside[0])
    return sample


def _one_of(members: Any) -> str:
    candidates = "a1 x/<.,\n\t\0-'\"" + "".join(
        chr(argument) if code is codes.LITERAL else chr(argument[0])
        for code, argument in members
        if code in (codes.LITERAL, codes.RANGE)
    )
    matches = re.compile("".join(["[", *map(_member, members), "]"]))
    return next((letter for letter in candidates if matches.match(letter)), "")


def _member(member: Any) -> str:
    code, argument = member
    categories = {
        codes.CATEGORY_DIGIT: r"\d",
        codes.CATEGORY_NOT_DIGIT: r"\D",
        codes.CATEGORY_SPACE: r"\s",
        codes.CATEGORY_NOT_SPACE: r"\S",
        codes.CATEGORY_WORD: r"\w",
        codes.CATEGORY_NOT_WORD: r"\W",
    }
    if code is codes.NEGATE:
        return "^"
    if code is codes.LITERAL:
        return re.escape(chr(argument))
    if code is codes.RANGE:
        return f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
    return categories[argument]
