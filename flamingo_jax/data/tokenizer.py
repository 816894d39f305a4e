"""Text to token ids and back: SentencePiece pieces, and behind them the few new tokens that Flamingo adds.

    ids   0 .. V-1                              V .. V+K-1
          pieces of the language model          new tokens: ("<EOC>",), or ("<EOC>", "<image>")

The paper adds one entry, `<EOC>`, to the vocabulary of 32,000 and writes `<image>` as plain text, "so that they do not
require any additional special new tokens" (first version, section 3.2.1). The rows of the new tokens are trained, those
of the pieces belong to the frozen language model: so the two never share a table, and V is the border.
"""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, SupportsInt, runtime_checkable

import sentencepiece

from flamingo_jax.core.paths import Path, PathLike, write_atomically

EOC = "<EOC>"  # end of chunk: after the text that belongs to an image
IMAGE_TAG = "<image>"  # where an image stands
FILE_NAME = "tokenizer.model"


@runtime_checkable
class Tokenizer(Protocol):
    """What the package asks of a tokenizer."""

    new_tokens: tuple[str, ...]

    @property
    def vocab_size(self) -> int:
        """V, the number of pieces without the new tokens; new token k has id V + k."""

    @property
    def pad_id(self) -> int:
        """Fills rows to their length."""

    @property
    def bos_id(self) -> int:
        """Stands before every sequence."""

    @property
    def eos_id(self) -> int:
        """Stands behind every document."""

    @property
    def eoc_id(self) -> int:
        """-1 = the vocabulary has no <EOC>: a language model alone needs none."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without <BOS> or <EOS>; a new token's string inside the text becomes its one id."""

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; padding, <BOS> and <EOS> have none."""

    def id(self, piece: str) -> int:
        """The id of one piece or new token, which must exist."""


class SentencePieceTokenizer:
    """A SentencePiece model with new tokens behind its pieces."""

    def __init__(self, model: bytes, new_tokens: Sequence[str] = (EOC,)):
        self._model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.new_tokens = tuple(new_tokens)
        if len(set(self.new_tokens)) != len(self.new_tokens) or "" in self.new_tokens:
            raise ValueError(f"New tokens must be distinct and not empty, got {self.new_tokens}.")
        self._new_ids = {token: self.vocab_size + k for k, token in enumerate(self.new_tokens)}
        longest_first = sorted(self.new_tokens, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        for name in ("pad", "bos", "eos"):
            if getattr(self, f"{name}_id") < 0:
                raise ValueError(f"The SentencePiece model has no {name} piece; train it with train_sentencepiece.")

    @classmethod
    def load(cls, path: PathLike, new_tokens: Sequence[str] = (EOC,)) -> "SentencePieceTokenizer":
        """Reads a SentencePiece model: the file, or a directory that holds it as tokenizer.model.

        Raises:
            FileNotFoundError: there is none.
        """
        file = Path(path)
        file = file / FILE_NAME if file.is_dir() else file
        if not file.exists():
            raise FileNotFoundError(f"No tokenizer at {file}. Make one with data_pipelines.run --pipeline=tokenizer.")
        return cls(file.read_bytes(), new_tokens)

    def save(self, directory: PathLike) -> None:
        """Writes tokenizer.model into `directory`; the new tokens belong to the model's config."""
        write_atomically(Path(directory) / FILE_NAME, self._model)

    @property
    def vocab_size(self) -> int:
        """V, the number of pieces without the new tokens."""
        return self._pieces.vocab_size()

    @property
    def pad_id(self) -> int:
        """Id of the padding."""
        return self._pieces.pad_id()

    @property
    def bos_id(self) -> int:
        """Id of <BOS>."""
        return self._pieces.bos_id()

    @property
    def eos_id(self) -> int:
        """Id of <EOS>."""
        return self._pieces.eos_id()

    @property
    def eoc_id(self) -> int:
        """Id of <EOC>, be it a new token or a piece; -1 = there is none (as SentencePiece says it)."""
        return self.id(EOC) if self._has(EOC) else -1

    def id(self, piece: str) -> int:
        """Returns the id of a new token or of a piece (written as SentencePiece does, with its "▁").

        Raises:
            ValueError: there is no such piece.
        """
        if not self._has(piece):
            raise ValueError(f"{piece!r} is neither a new token {self.new_tokens} nor a piece. Add it to new_tokens.")
        return self._new_ids[piece] if piece in self._new_ids else self._pieces.piece_to_id(piece)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without <BOS> or <EOS>; new tokens inside it become their ids."""
        if self._split is None:
            return self._pieces.encode(text)
        ids: list[int] = []
        for chunk in self._split.split(text):
            if chunk in self._new_ids:
                ids.append(self._new_ids[chunk])
            elif chunk:
                ids.extend(self._pieces.encode(chunk))
        return ids

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Returns the text of `ids`; padding, <BOS> and <EOS> have none.

        Raises:
            ValueError: an id is negative, or beyond the new tokens.
        """
        text: list[str] = []
        run: list[int] = []  # pieces between two new tokens
        size = self.vocab_size
        for token in map(int, ids):
            if 0 <= token < size:
                run.append(token)
                continue
            if not 0 <= token < size + len(self.new_tokens):
                raise ValueError(f"Token id {token} is out of range: {size} pieces, {len(self.new_tokens)} new tokens.")
            text += [self._pieces.decode(run), self.new_tokens[token - size]]
            run = []
        return "".join([*text, self._pieces.decode(run)])

    def _has(self, piece: str) -> bool:
        found = self._pieces.piece_to_id(piece)  # that of the unknown piece, if there is no such piece
        return piece in self._new_ids or self._pieces.id_to_piece(found) == piece


def train_sentencepiece(
    lines: Iterable[str],
    path: PathLike,
    vocab_size: int,
    model_type: Literal["unigram", "bpe", "word", "char"] = "unigram",
) -> None:
    """Trains a SentencePiece model and writes it to `path`; pad = 0, bos = 1, eos = 2, unk = 3.

    As for Chinchilla there is no NFKC normalisation. "unigram" and "bpe" keep every space and fall back to bytes, so
    any text comes back as it was ("▁" alone becomes a space: it is how SentencePiece writes one), and a leading space
    makes a difference (as the space prefix of the pairs supposes). "word" makes one piece of each word; white space
    between words counts once.

    Args:
        lines: the training text; a line may hold spaces of any kind.
        path: file to write, by custom tokenizer.model.
        vocab_size: pieces in all, or fewer where the text does not yield as many.
        model_type: the kind of pieces.
    """
    model = io.BytesIO()
    in_words = model_type == "word"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=in_words,
        remove_extra_whitespaces=in_words,
        byte_fallback=model_type in ("unigram", "bpe"),
        character_coverage=1.0 if in_words else 0.9995,
        max_sentence_length=1 << 16,
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
    write_atomically(path, model.getvalue())
