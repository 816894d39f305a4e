"""The tokenizers of the loader's tests."""

from tests.data.conftest import pieces, words

__all__ = ["pieces", "words"]
