"""Text of tokens that come one by one: each piece is final when it is given out.

    tokens   ▁caf  <0xC3> <0xA9>  ▁au        pieces of the text   "caf"  ""  ""  "é au"

The pieces together are the text of all tokens. A character of several tokens is given out when the
token after it has come, where its bytes are pieces by themselves: until then a wrong byte would
change what is before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flamingo_jax.inference.token_stream import TokenStream
from flamingo_jax.tokenizers.base import Tokenizer

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


class TextPieces:
    """The text of one answer, piece by piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer of the model."""
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = ""

    @property
    def num_tokens(self) -> int:
        """The tokens so far."""
        return len(self._tokens)

    def add(self, tokens: Iterable[int]) -> str:
        """Returns the text that is final now, and was not given out before; "" if there is none."""
        self._tokens += tokens
        if not self._tokens or self._tokenizer.is_byte(self._tokens[-1]):
            return ""
        return self._new(self._tokenizer.decode(self._tokens).rstrip(_BROKEN))

    def end(self) -> str:
        """Returns the rest of the text; no token comes any more."""
        return self._new(self._tokenizer.decode(self._tokens))

    def _new(self, text: str) -> str:
        new = text[len(self._given) :]
        self._given += new
        return new


def text_of(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the text of the only answer of a stream; no piece is empty.

    Raises:
        NonFiniteError: the model gave NaN or infinity.
    """
    pieces = TextPieces(tokenizer)
    try:
        while not stream.is_done:
            (tokens,) = stream.advance()
            if piece := pieces.add(tokens):
                yield piece
        if rest := pieces.end():
            yield rest
    finally:
        stream.end(0)
