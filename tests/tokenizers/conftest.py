"""The tokenizers of tests/data."""

from tests.data.conftest import pieces, words

__all__ = ["pieces", "words"]
