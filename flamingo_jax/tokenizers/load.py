"""Loads a tokenizer of either library; the file in the directory decides which."""

from collections.abc import Sequence

from flamingo_jax.core.paths import PathLike
from flamingo_jax.tokenizers.base import Tokenizer, find
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.markers import EOC
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer


def load_tokenizer(
    path: PathLike, new_tokens: Sequence[str] = (EOC,), *, in_prompts: bool = False
) -> Tokenizer:
    """Reads a tokenizer.model (SentencePiece), else a tokenizer.json or vocab.txt (Hugging Face).

    Args:
        path: the file, or the directory that contains it.
        new_tokens: strings that get ids after the vocabulary, in this order.
        in_prompts: True if the texts are prompts, and not documents (see `Markers.in_prompts`).

    Raises:
        FileNotFoundError: none of the files exists.
        ValueError: the file is damaged, or has no piece for the start or end of a sequence.
    """
    file = find(path)
    cls = HuggingFaceTokenizer if file.suffix in (".json", ".txt") else SentencePieceTokenizer
    tokenizer = cls.load(file, new_tokens)
    return tokenizer.for_prompts() if in_prompts else tokenizer
