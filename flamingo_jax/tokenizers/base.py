"""Text to token ids and back.

The pieces of a language model, and behind them the few new tokens that Flamingo adds.

    ids   0 .. V-1                              V .. V+K-1
          pieces of the language model          new tokens: ("<EOC>",), or ("<EOC>", "<image>")

The paper adds one entry, `<EOC>`, to the vocabulary of 32,000 and writes `<image>` as plain text,
"so that they do not require any additional special new tokens" (first version, section 3.2.1). The
rows of the new tokens are trained, those of the pieces belong to the frozen language model: so the
two never share a table, and V is the border.

An imported model's table may have more rows than its tokenizer has pieces: then V is the table's
(prompt.json beside the tokenizer, `tokenizers.markers`), and no text has the ids between.
"""

import abc
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, SupportsInt, runtime_checkable

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers.markers import EOC, Markers

FILE_NAME = "tokenizer.model"
JSON_NAME = "tokenizer.json"
# Beside tokenizer.json, as Hugging Face writes them: which pieces are <BOS>, <EOS> and padding. The
# first that says so counts.
SPECIAL_TOKENS_NAMES = ("tokenizer_config.json", "special_tokens_map.json")


@runtime_checkable
class Tokenizer(Protocol):
    """What the package asks of a tokenizer."""

    new_tokens: tuple[str, ...]
    markers: Markers

    @property
    def vocab_size(self) -> int:
        """V, the rows of the model's table without the new tokens; new token k has id V + k."""

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

    @property
    def start_ids(self) -> list[int]:
        """What a sequence begins with: <BOS>, or nothing."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without <BOS> or <EOS>.

        A new token's string inside the text becomes its one id.
        """

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; padding, <BOS> and <EOS> have none."""

    def id(self, piece: str) -> int:
        """The id of one piece or new token, which must exist."""


class WithNewTokens(abc.ABC):
    """The part that all tokenizers share: new tokens behind the pieces of a vocabulary.

    Text is cut at the new tokens' strings before the vocabulary sees it: so a new token has its id
    behind the pieces even where the vocabulary has a piece of the same name.

    Args:
        num_pieces: ids that the vocabulary has; V, unless the markers say it.
        new_tokens: strings, the longest of which wins where one begins with another.
        markers: the signs of the model.

    Raises:
        ValueError: a new token is empty, or there twice.
    """

    def __init__(self, num_pieces: int, new_tokens: Sequence[str], markers: Markers):
        vocab_size = markers.vocab_size or num_pieces
        self._num_pieces, self._vocab_size = num_pieces, vocab_size
        self.new_tokens, self.markers = tuple(new_tokens), markers
        if len(set(self.new_tokens)) != len(self.new_tokens) or "" in self.new_tokens:
            raise ValueError(f"New tokens must be distinct and not empty, got {self.new_tokens}.")
        self._new_ids = {token: vocab_size + k for k, token in enumerate(self.new_tokens)}
        self._ids_in_text = dict(self._new_ids)
        if EOC not in self._new_ids and markers.end_of_chunk != EOC and self.eoc_id >= 0:
            self._ids_in_text[EOC] = self.eoc_id
        longest_first = sorted(self._ids_in_text, key=len, reverse=True)
        self._split = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else None
        )

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a text without new tokens."""

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids below V."""

    @abc.abstractmethod
    def _piece_id(self, piece: str) -> int | None:
        """The id of a piece, None if there is no such piece."""

    @property
    def vocab_size(self) -> int:
        """V: the pieces, or the rows that the model's table has for them.

        Without the new tokens.
        """
        return self._vocab_size

    @property
    def eoc_id(self) -> int:
        """Id of what <EOC> stands for, be it a new token or a piece.

        -1 = there is none (as SentencePiece says it).
        """
        found = self._find(self.markers.end_of_chunk)
        return -1 if found is None else found

    @property
    @abc.abstractmethod
    def bos_id(self) -> int:
        """Id of <BOS>."""

    @property
    def start_ids(self) -> list[int]:
        """What a sequence begins with: <BOS>, or nothing where the model was trained so."""
        return [self.bos_id] if self.markers.bos else []

    def id(self, piece: str) -> int:
        """Returns the id of a new token or of a piece (written as its vocabulary does, with "▁" or "Ġ" for a space).

        Raises:
            ValueError: there is no such piece.
        """
        if (found := self._find(piece)) is None:
            raise ValueError(
                f"{piece!r} is neither a new token {self.new_tokens} nor a piece. Add "
                "it to new_tokens."
            )
        return found

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without <BOS> or <EOS>; new tokens inside it become their ids.

        Raises:
            ValueError: the text holds a piece for which the model's table has no row.
        """
        if self._split is None:
            return self._in_table(self._encode(text))
        ids: list[int] = []
        for chunk in self._split.split(text):
            if chunk in self._ids_in_text:
                ids.append(self._ids_in_text[chunk])
            elif chunk:
                ids.extend(self._in_table(self._encode(chunk)))
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
                if token < self._num_pieces:  # rows of the table that no piece has are no text
                    run.append(token)
                continue
            if not 0 <= token < size + len(self.new_tokens):
                raise ValueError(
                    f"Token id {token} is out of range: {size} pieces, "
                    f"{len(self.new_tokens)} new tokens."
                )
            text += [self._decode(run), self.new_tokens[token - size]]
            run = []
        return "".join([*text, self._decode(run)])

    def _find(self, piece: str) -> int | None:
        if piece in self._new_ids:
            return self._new_ids[piece]
        found = self._piece_id(piece)
        return found if found is None or found < self._vocab_size else None

    def _in_table(self, ids: list[int]) -> list[int]:
        if self._num_pieces > self._vocab_size and max(ids, default=0) >= self._vocab_size:
            raise ValueError(
                f"A text holds piece {max(ids)} of the tokenizer, and the model's table has "
                f"{self._vocab_size} rows. If the piece is one of the model's new tokens, name it "
                "in new_tokens; else take it out of the text."
            )
        return ids


def find(path: PathLike, names: Sequence[str] = (FILE_NAME, JSON_NAME)) -> Path:
    """Returns the file of a tokenizer.

    `path` itself, or the first of `names` in the directory `path`.

    Raises:
        FileNotFoundError: there is none.
    """
    given = Path(path)
    files = [given / name for name in names] if given.is_dir() else [given]
    for file in files:
        if file.exists():
            return file
    raise FileNotFoundError(
        f"No tokenizer at {' or '.join(map(str, files))}. Make one with data_pipelines.run "
        "--pipeline=tokenizer."
    )


def files(path: PathLike) -> dict[str, bytes]:
    """Returns the files that `load_tokenizer` reads, by name.

    What to copy where a tokenizer goes along with a model.

    Raises:
        FileNotFoundError: there is no tokenizer at `path`.
    """
    file = find(path)
    names = (markers_lib.FILE_NAME, *(SPECIAL_TOKENS_NAMES if file.suffix == ".json" else ()))
    beside = [file.parent / name for name in names]
    name = JSON_NAME if file.suffix == ".json" else FILE_NAME
    return {name: file.read_bytes()} | {
        other.name: other.read_bytes() for other in beside if other.exists()
    }
