"""The interface of tokenizers, and the new tokens that Flamingo adds to a vocabulary.

The tokens of a text depend on what is before it: `encode_after` has the rule, which candidates,
pairs, pages and prompts share.

    ids   0 .. V-1                              V .. V+K-1
          pieces of the language model          new tokens: ("<EOC>",), or ("<EOC>", "<image>")

The paper adds one entry, `<EOC>`, to the vocabulary of 32,000 and writes `<image>` as plain text,
"so that they do not require any additional special new tokens" (first version, section 3.2.1). The
embeddings of the new tokens are trained, those of the pieces belong to the frozen language model.
Therefore they are in separate tables: ids below V are in the language model's table.

The table of an imported model may have more rows than its tokenizer has pieces. Then V is the
number of rows (stored in prompt.json, see `tokenizers.markers`), and no text has the ids between.
"""

import abc
import copy
import enum
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsInt, TypeVar, runtime_checkable

from flamingo_jax.core.paths import Path, PathLike, regular
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers import prefix as prefix_lib
from flamingo_jax.tokenizers.markers import EOC, Markers
from flamingo_jax.tokenizers.prefix import CONFIG_NAME, JSON_NAME

FILE_NAME = "tokenizer.model"
VOCABULARY_NAME = "vocab.txt"  # of BERT (`tokenizers.wordpiece`)
# Files of Hugging Face next to its vocabulary that name the pieces of <BOS>, <EOS> and padding. If
# both name one, the first file counts.
SPECIAL_TOKENS_NAMES = (CONFIG_NAME, "special_tokens_map.json")

T = TypeVar("T", bound="WithNewTokens")


@runtime_checkable
class Tokenizer(Protocol):
    """What the package needs from a tokenizer."""

    new_tokens: tuple[str, ...]
    markers: Markers

    def __hash__(self) -> int:
        """Returns another number for each tokenizer."""

    @property
    def vocab_size(self) -> int:
        """V, the rows of the model's table without the new tokens; new token k has id V + k."""

    @property
    def pad_id(self) -> int:
        """Id that fills rows to their length."""

    @property
    def bos_id(self) -> int:
        """Id of <BOS>, the start of a sequence."""

    @property
    def eos_id(self) -> int:
        """Id of <EOS>, the end of a document."""

    @property
    def eoc_id(self) -> int:
        """Id of <EOC>, the end of a chunk; -1 if a language model's vocabulary has no <EOC>."""

    @property
    def start_ids(self) -> list[int]:
        """The ids at the start of a sequence: <BOS>, or nothing."""

    @property
    def separator(self) -> str:
        """What joins two texts that follow each other: nothing; a space in a model of words."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text` at the start of a sequence, without <BOS> or <EOS>.

        The string of a new token inside the text becomes one id.
        """

    def encode_after(self, before: str, text: str) -> list[int]:
        """Returns the ids of `text` when it follows `before` in one string."""

    def join(self, before: str, text: str) -> tuple[int, list[int]]:
        """Returns what `text` changes and adds to the ids of `before`.

        The first number is how many ids at the end of `before` are others in the joined string.
        The ids of the joined string from there on follow.
        """

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Returns the text of `ids`; padding, <BOS> and <EOS> have no text."""

    def is_byte(self, number: int) -> bool:
        """Returns True if a piece is one byte: "é" may be the pieces <0xC3> and <0xA9>."""

    def id(self, piece: str) -> int:
        """Returns the id of a piece or new token, which must exist."""


class Before(enum.Enum):
    """What is before a text: nothing, a new token, or other text."""

    START = "start"
    AFTER_TOKEN = "after a new token"
    INSIDE = "inside a text"


# Texts to which a tokenizer is not likely to join what follows, the most usual first.
_NEUTRAL = (",", "a", "0", "\n")


class WithNewTokens(abc.ABC):
    """The base class of tokenizers: adds new tokens after the pieces of a vocabulary.

    Text is split at the strings of the new tokens first. So a new token has an id after the pieces,
    even if the vocabulary has a piece of the same name.

    Args:
        num_pieces: ids of the vocabulary; V, unless the markers define V.
        new_tokens: strings. If one begins with another, the longer one is found first.
        markers: the markers of the model.

    Raises:
        ValueError: a new token is empty, or occurs twice.
    """

    def __init__(self, num_pieces: int, new_tokens: Sequence[str], markers: Markers):
        vocab_size = markers.vocab_size or num_pieces
        self._num_pieces, self._vocab_size = num_pieces, vocab_size
        self.new_tokens, self.markers = tuple(new_tokens), markers
        if len(set(self.new_tokens)) != len(self.new_tokens) or "" in self.new_tokens:
            raise ValueError(f"New tokens must be distinct and not empty, got {self.new_tokens}.")
        self._new_ids = {token: vocab_size + k for k, token in enumerate(self.new_tokens)}
        # tokens without a piece, which this class decodes itself
        self._added = {
            number: token
            for token, number in (markers.in_text | markers.in_prompts).items()
            if number >= num_pieces
        }
        self._find_in_text(markers.in_text)

    def _find_in_text(self, tokens: Mapping[str, int]) -> None:
        """Sets which strings become one id: these tokens, the new tokens and `<EOC>`."""
        self._ids_in_text = {**tokens, **self._new_ids}
        self._after = dict.fromkeys(self._ids_in_text, Before.AFTER_TOKEN)
        if EOC not in self._new_ids and self.markers.end_of_chunk != EOC and self.eoc_id >= 0:
            self._ids_in_text[EOC] = self.eoc_id
            is_text = self.eoc_id < self._vocab_size and self._is_text(self.eoc_id)
            self._after[EOC] = Before.INSIDE if is_text else Before.AFTER_TOKEN
        longest_first = sorted(self._ids_in_text, key=len, reverse=True)
        self._split = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else None
        )
        self._longest = len(longest_first[0]) if longest_first else 0
        self._last_before = ("", Before.START, "", list[int]())

    def for_prompts(self: T) -> T:
        """Returns a tokenizer that also finds the tokens which count in prompts alone.

        See `Markers.in_prompts`.
        """
        other = copy.copy(self)
        other._find_in_text(self.markers.in_text | self.markers.in_prompts)
        return other

    def is_byte(self, number: int) -> bool:
        """Returns True if a piece is one byte: "é" may be the pieces <0xC3> and <0xA9>."""
        return number < self._num_pieces and self._is_byte(number)

    def _is_byte(self, number: int) -> bool:
        """Returns True if a piece of the vocabulary is one byte."""
        return False

    @abc.abstractmethod
    def _encode(self, text: str, place: Before) -> list[int]:
        """Returns the ids of a text without new tokens."""

    @abc.abstractmethod
    def _decode(self, ids: list[int], place: Before) -> str:
        """Returns the text of ids below V."""

    @abc.abstractmethod
    def _is_text(self, number: int) -> bool:
        """Returns True if a piece is part of a text, and no control symbol."""

    @property
    def _is_plain(self) -> bool:
        """True if a text has the ids inside a text that it has alone, unless a piece joins both."""
        return False

    @property
    def _is_of_words(self) -> bool:
        """True if every piece is a word, so that each text begins with a new one."""
        return False

    @abc.abstractmethod
    def _piece_id(self, piece: str) -> int | None:
        """Returns the id of a piece, None if the vocabulary has no such piece."""

    @property
    def vocab_size(self) -> int:
        """V: the number of pieces, or of rows in the model's table, without the new tokens."""
        return self._vocab_size

    @property
    def eoc_id(self) -> int:
        """Id of the new token or piece that closes a chunk; -1 if there is no such token."""
        found = self._find(self.markers.end_of_chunk)
        return -1 if found is None else found

    @property
    @abc.abstractmethod
    def bos_id(self) -> int:
        """Id of <BOS>."""

    @property
    def start_ids(self) -> list[int]:
        """The ids at the start of a sequence: <BOS>, or nothing if the model was trained so."""
        return [self.bos_id] if self.markers.bos else []

    @property
    def separator(self) -> str:
        """What joins two texts that follow each other to one text.

        It is a space in a model of words, where every text begins with a word; else nothing.
        """
        return " " if self._is_of_words else ""

    def id(self, piece: str) -> int:
        """Returns the id of a new token or a piece.

        Args:
            piece: as in the vocabulary, with "▁" or "Ġ" for a space.

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

        The text is at the start of a sequence.

        Raises:
            ValueError: the text contains a piece that has no row in the model's table.
        """
        return self._encode_at(Before.START, text)

    def encode_after(self, before: str, text: str) -> list[int]:
        """Returns the ids of `text` when it follows `before` in one string.

            before "Answer:", text " yes"    ▁Answer : | ▁yes        not ▁ ▁yes, as alone

        In general they are the ids of `before + text` after those of `before`. The joined string
        may have a piece that is partly in both texts ("Ans" + "wer:"). Then the ids are those that
        spell `text` inside a text: after the ids of `before` they give the same string, but the
        model was trained with the joined piece. `join` returns that piece.

        Args:
            before: from the last new token on is enough; "" = the start of a sequence.
            text: may contain new tokens.

        Raises:
            ValueError: as in `encode`.
        """
        if self._is_plain:
            _, tail, _ = self._before(before)
            if not tail or not self._has_token_across(tail, text):
                return self.encode(text)
        changed, ids = self.join(before, text)
        return self._encode_at(Before.INSIDE, text) if changed else ids

    def join(self, before: str, text: str) -> tuple[int, list[int]]:
        """Returns (how many ids at the end of `before` the text changes, the ids from there on).

        before "Answer:", text " yes"    0, ▁yes
        before "Answer: ", text "yes"    1, ▁yes       alone, `before` ends in the piece ▁
        """
        if not text:
            return 0, []
        place, tail, head = self._before(before)
        if not tail:
            return 0, self._encode_at(place, text)
        if self._is_of_words and not self._has_token_across(tail, text):
            return 0, self._encode_at(Before.INSIDE, text)
        whole = self._encode_at(place, tail + text)
        pairs = enumerate(zip(head, whole, strict=False))
        same = next((n for n, (a, b) in pairs if a != b), min(len(head), len(whole)))
        if same == len(head) and self._is_plain:
            return 0, self._encode_at(Before.INSIDE, text)
        return len(head) - same, whole[same:]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Returns the text of `ids`; padding, <BOS> and <EOS> have no text.

        Raises:
            ValueError: an id is negative, or larger than those of the new tokens.
        """
        text: list[str] = []
        run: list[int] = []  # pieces between two new tokens
        size, place = self.vocab_size, Before.START
        for token in map(int, ids):
            if token in self._added:
                text += [self._decode(run, place), self._added[token]]
                run, place = [], Before.AFTER_TOKEN
                continue
            if 0 <= token < size:
                if token < self._num_pieces:  # rows of the table without a piece have no text
                    run.append(token)
                continue
            if not 0 <= token < size + len(self.new_tokens):
                raise ValueError(
                    f"Token id {token} is out of range: {size} pieces, "
                    f"{len(self.new_tokens)} new tokens."
                )
            text += [self._decode(run, place), self.new_tokens[token - size]]
            run, place = [], Before.AFTER_TOKEN
        return "".join([*text, self._decode(run, place)])

    def _encode_at(self, place: Before, text: str) -> list[int]:
        if self._split is None:
            return self._in_table(self._encode(text, place))
        ids: list[int] = []
        for chunk in self._split.split(text):
            if chunk in self._ids_in_text:
                ids.append(self._ids_in_text[chunk])
                place = self._after[chunk]
            elif chunk:
                ids.extend(self._in_table(self._encode(chunk, place)))
        return ids

    def _before(self, text: str) -> tuple[Before, str, list[int]]:
        """Returns what is before the part of a text after its last new token, the part, its ids.

        The result is kept, because the candidates of a prompt have the same text before them.
        """
        known, place, tail, ids = self._last_before
        if known == text:
            return place, tail, ids
        place, tail = Before.START, text
        for token in self._split.finditer(text) if self._split else ():
            place, tail = self._after[token[0]], text[token.end() :]
        ids = self._encode_at(place, tail) if tail else []
        self._last_before = (text, place, tail, ids)
        return place, tail, ids

    def _has_token_across(self, before: str, after: str) -> bool:
        """Returns True if a new token begins in the first text and ends in the second."""
        most = self._longest - 1
        if self._split is None or most < 1:
            return False
        before, after = before[-most:], after[:most]
        return any(
            token.start() < len(before) < token.end()
            for token in self._split.finditer(before + after)
        )

    def _encode_inside(self, text: str) -> list[int]:
        """Returns the ids of a text inside a text, for tokenizers that cannot be asked for them."""
        for neutral in _NEUTRAL:
            head = self._encode(neutral, Before.START)
            whole = self._encode(neutral + text, Before.START)
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        return self._encode(text, Before.START)

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


def find(path: PathLike, names: Sequence[str] = (FILE_NAME, JSON_NAME, VOCABULARY_NAME)) -> Path:
    """Returns the file of a tokenizer: `path`, or the first of `names` in the directory `path`.

    Raises:
        FileNotFoundError: there is no such file.
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


def read_fields(file: Path) -> dict[str, Any]:
    """Returns the fields of a JSON file next to a vocabulary.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        fields: Any = json.loads(regular(file).read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file} holds a {type(fields).__name__}; expected an object.")
    return fields


def files(path: PathLike) -> dict[str, bytes]:
    """Returns the contents of the files that `load_tokenizer` reads, by name.

    They are copied into an export, so that a model has its tokenizer.

    Raises:
        FileNotFoundError: there is no tokenizer at `path`.
    """
    file = find(path)
    name = {".json": JSON_NAME, ".txt": VOCABULARY_NAME}.get(file.suffix, FILE_NAME)
    names = (markers_lib.FILE_NAME, *(SPECIAL_TOKENS_NAMES if name != FILE_NAME else ()))
    others = [file.parent / name for name in names]
    content = {name: regular(file).read_bytes()} | {
        other.name: regular(other).read_bytes() for other in others if other.exists()
    }
    if name == FILE_NAME and prefix_lib.has_prefix_in(content[name]):
        config = prefix_lib.stated(file.parent, prefix_lib.read(file.parent))
        content[CONFIG_NAME] = json.dumps(config, indent=2, allow_nan=False).encode()
    return content
