"""Reads, writes and trains SentencePiece tokenizers (tokenizer.model)."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import sentencepiece

from flamingo_jax.core.paths import Path, PathLike, regular, write_atomically, write_json
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers import prefix as prefix_lib
from flamingo_jax.tokenizers.base import FILE_NAME, Before, WithNewTokens, find
from flamingo_jax.tokenizers.markers import EOC, PAPER, Markers
from flamingo_jax.tokenizers.prefix import Prefix


class SentencePieceTokenizer(WithNewTokens):
    """A SentencePiece model, with new tokens after its pieces.

    If the model has no padding piece, as LLaMA's, rows are filled with <EOS>.

    Args:
        model: content of tokenizer.model.
        new_tokens: strings that get ids after the pieces.
        markers: the markers of the model.
        prefix: where the model writes its dummy prefix, if it has one.
    """

    def __init__(
        self,
        model: bytes,
        new_tokens: Sequence[str] = (EOC,),
        markers: Markers = PAPER,
        prefix: Prefix = "first",
    ):
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(
                f"These {len(model)} bytes are no {FILE_NAME} of SentencePiece: {error}."
            ) from error
        self._prefix = prefix
        self._has_prefix = prefix_lib.has_prefix(self._pieces)
        # encodes without the prefix
        self._inner = self._pieces
        if self._has_prefix:
            self._inner = sentencepiece.SentencePieceProcessor(
                model_proto=prefix_lib.without_prefix(model)
            )
        self._words = prefix_lib.is_of_words(self._pieces)
        self._plain = self._words or prefix_lib.is_plain(model)
        self._drops_spaces = not self._words and self._inner.normalize(" a")[:1] == "a"
        super().__init__(self._pieces.vocab_size(), new_tokens, markers)
        self._model = model
        for name in ("bos", "eos"):
            if getattr(self, f"{name}_id") < 0:
                raise ValueError(
                    f"The SentencePiece model has no {name} piece; train it with "
                    "train_sentencepiece."
                )

    @classmethod
    def load(cls, path: PathLike, new_tokens: Sequence[str] = (EOC,)) -> "SentencePieceTokenizer":
        """Reads a SentencePiece model: the file, or tokenizer.model in a directory.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is no SentencePiece model, or has no piece for <BOS> or <EOS>.
        """
        file = find(path, (FILE_NAME,))
        markers, prefix = markers_lib.read(file.parent), prefix_lib.read(file.parent)
        return cls(regular(file).read_bytes(), new_tokens, markers, prefix)

    def save(self, directory: PathLike) -> None:
        """Writes tokenizer.model, the markers, and where the prefix is written into `directory`.

        The new tokens are not written: they are in the config of the model.
        """
        write_atomically(Path(directory) / FILE_NAME, self._model)
        if self._has_prefix:
            stated = prefix_lib.stated(Path(directory), self._prefix)
            write_json(Path(directory) / prefix_lib.CONFIG_NAME, stated)
        markers_lib.write(directory, self.markers)

    @property
    def pad_id(self) -> int:
        """Id of the padding."""
        return self._pieces.pad_id() if self._pieces.pad_id() >= 0 else self.eos_id

    @property
    def bos_id(self) -> int:
        """Id of <BOS>."""
        return self._pieces.bos_id()

    @property
    def eos_id(self) -> int:
        """Id of <EOS>."""
        return self._pieces.eos_id()

    @property
    def _is_plain(self) -> bool:
        return self._plain

    @property
    def _is_of_words(self) -> bool:
        return self._words

    def _encode(self, text: str, place: Before) -> list[int]:
        if self._plain or self._gets_prefix(place):
            return self._pieces.encode(text)
        if self._drops_spaces and text[:1].isspace():  # at the start of what it encodes
            return self._encode_inside(text)
        return self._inner.encode(text)

    def _decode(self, ids: list[int], place: Before) -> str:
        return (self._pieces if self._gets_prefix(place) else self._inner).decode(ids)

    def _gets_prefix(self, place: Before) -> bool:
        """Returns True if a text at `place` gets the prefix of the model, if it has one."""
        if place is Before.INSIDE or self._prefix == "never":
            return False
        return place is Before.START or self._prefix == "always"

    def _is_text(self, number: int) -> bool:
        return not self._pieces.is_control(number)

    def _is_byte(self, number: int) -> bool:
        return self._pieces.is_byte(number)

    def _piece_id(self, piece: str) -> int | None:
        # SentencePiece returns the id of the unknown piece if there is no such piece.
        found = self._pieces.piece_to_id(piece)
        return found if self._pieces.id_to_piece(found) == piece else None


_MAX_LINE = 1 << 16  # bytes of a line of training text; SentencePiece leaves out a longer one
_RESERVED = "\u2585"  # what SentencePiece writes for an unknown piece in training
_SPACES = b" \n\t\r\v\f"


def train_sentencepiece(
    lines: Iterable[str],
    path: PathLike,
    vocab_size: int,
    model_type: Literal["unigram", "bpe", "word", "char"] = "unigram",
) -> None:
    """Trains a SentencePiece model and writes it to `path`; pad = 0, bos = 1, eos = 2, unk = 3.

    As for Chinchilla there is no NFKC normalisation. "unigram" and "bpe" keep every space and fall
    back to bytes, so that decoding returns the encoded text. The one exception is "▁", which is how
    SentencePiece writes a space and becomes a space. A leading space changes the pieces, as the
    space prefix of pairs assumes. "word" makes one piece of each word, and ignores the amount of
    white space between words.

    SentencePiece keeps the text in memory, and needs about 20 bytes for each of its bytes. It skips
    a line that is too long or has a character that it reserves. So a long line is cut at white
    space, and that character becomes a space.

    Args:
        lines: the training text; a line may contain white space of any kind.
        path: file to write, usually tokenizer.model.
        vocab_size: number of pieces; the result may have fewer if the text is too short.
        model_type: the kind of pieces.

    Raises:
        ValueError: there is no text, or the vocabulary is smaller than the characters of the text.
    """
    model = io.BytesIO()
    in_words = model_type == "word"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in _parts(line)),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=in_words,
            remove_extra_whitespaces=in_words,
            byte_fallback=model_type in ("unigram", "bpe"),
            character_coverage=1.0 if in_words else 0.9995,
            max_sentence_length=_MAX_LINE,
            num_threads=1,  # the result must not depend on the machine
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            bos_piece="<BOS>",
            eos_piece="<EOS>",
            minloglevel=2,
        )
    except RuntimeError as error:  # of SentencePiece, in C++
        raise ValueError(_explained(str(error), vocab_size)) from error
    write_atomically(path, model.getvalue())


def _parts(line: str) -> Iterator[str]:
    """Yields a line in parts of at most _MAX_LINE bytes, cut at white space where there is some."""
    left = line.replace(_RESERVED, " ").encode(errors="replace")
    while len(left) > _MAX_LINE:
        end = next((at for at in range(_MAX_LINE, _MAX_LINE // 2, -1) if left[at] in _SPACES), 0)
        if not end:  # text without spaces is cut between two characters
            end = next(at for at in range(_MAX_LINE, 0, -1) if left[at] & 0xC0 != 0x80)
        yield left[:end].decode()
        left = left[end:]
    yield left.decode()


def _explained(error: str, vocab_size: int) -> str:
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if needed:
        return (
            f"A vocabulary of {vocab_size} pieces is too small: the characters of this text, the "
            f"bytes and the special pieces are {needed[1]}. Give a larger vocab_size."
        )
    if "!sentences_.empty()" in error:
        return "There is no text to train a tokenizer on: every text is empty."
    return f"SentencePiece cannot train a model of {vocab_size} pieces on this text: {error}"
