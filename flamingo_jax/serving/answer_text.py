r"""The text of an answer while it comes: where it ends, and how much of it may be sent already.

    pieces   " A d"  "og.\n"  "Use"  "r: Is"        stops: "User:"
    sent     "A d"   "og."    ""     (ended)        white space and "Use" wait for what follows

The answer is the text before the first stop, without white space around it. Sent in pieces or as a
whole, it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence


class AnswerText:
    """The text of one answer.

    Attributes:
        stopped: whether a stop text has come.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Takes the texts that end the answer."""
        self._stops = tuple(stops)
        self._waiting = ""
        self._begun = False
        self.stopped = False

    def add(self, piece: str) -> str:
        """Returns the text that may be sent now."""
        if self.stopped:
            return ""
        self._waiting += piece
        places = [at for stop in self._stops if (at := self._waiting.find(stop)) >= 0]
        if places:
            self.stopped = True
            self._waiting = self._waiting[: min(places)]
            return self.end()
        held = max((self._begun_stop(stop) for stop in self._stops), default=0)
        return self._take(len(self._waiting[: len(self._waiting) - held].rstrip()))

    def end(self) -> str:
        """Returns the rest of the text; no piece comes any more."""
        rest = self._take(len(self._waiting.rstrip()))
        self._waiting = ""
        return rest

    def _take(self, size: int) -> str:
        text, self._waiting = self._waiting[:size], self._waiting[size:]
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return text

    def _begun_stop(self, stop: str) -> int:
        """Returns the characters at the end that may be the beginning of a stop."""
        sizes = range(min(len(stop) - 1, len(self._waiting)), 0, -1)
        return next((size for size in sizes if self._waiting.endswith(stop[:size])), 0)
