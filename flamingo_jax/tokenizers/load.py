"""Opens a tokenizer of either library, by the file that a directory holds."""

from collections.abc import Sequence

from flamingo_jax.core.paths import PathLike
from flamingo_jax.tokenizers.base import Tokenizer, find
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.markers import EOC
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer


def load_tokenizer(path: PathLike, new_tokens: Sequence[str] = (EOC,)) -> Tokenizer:
    """Reads the tokenizer that is there.

    Tokenizer.model (SentencePiece), else tokenizer.json (Hugging Face).

    Args:
        path: the file, or the directory that holds it.
        new_tokens: strings that get ids behind the vocabulary, in this order.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the file is damaged, or does not say what stands before and behind a sequence.
    """
    file = find(path)
    if file.suffix != ".json":
        return SentencePieceTokenizer.load(file, new_tokens)
    return HuggingFaceTokenizer.load(file, new_tokens)
