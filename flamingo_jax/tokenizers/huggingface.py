"""Reads and writes the tokenizers of Hugging Face.

    DIR/tokenizer.json            the vocabulary, and how text is split
    DIR/tokenizer_config.json     the pieces of <BOS>, <EOS> and padding
    DIR/special_tokens_map.json   the same, for those that tokenizer_config.json does not name

BERT has neither <BOS> nor <EOS>: its [CLS] and [SEP] take their places. It may also be stored as
vocab.txt (`tokenizers.wordpiece`). The tokenizers have the interface of `tokenizers.base`.
"""

import re
from collections.abc import Sequence

import tokenizers

from flamingo_jax.core.paths import Path, PathLike, regular, write_atomically, write_json
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers import wordpiece
from flamingo_jax.tokenizers.base import (
    JSON_NAME,
    SPECIAL_TOKENS_NAMES,
    VOCABULARY_NAME,
    Before,
    WithNewTokens,
    find,
    read_fields,
)
from flamingo_jax.tokenizers.markers import EOC, PAPER, Markers

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer(WithNewTokens):
    """A tokenizer.json, with new tokens after its vocabulary.

    The vocabulary includes the added tokens of the file. Its highest id + 1 is V, unless the
    markers define V. A special token of the file ("</s>") inside a text is encoded as plain text,
    so that the text of a web page cannot end a document.

    Args:
        content: of tokenizer.json.
        new_tokens: strings that get ids after the vocabulary.
        bos: the piece at the start of a sequence; None = the same as `eos`, as in GPT-2.
        eos: the piece at the end of a document; None = of WordPiece, what the file puts there.
        pad: the piece that fills rows; None = the same as `eos`, because padding is known by its
            segment. `eos` is also used if `pad` has no row in the model's table.
        markers: the markers of the model.

    Raises:
        ValueError: the content is no tokenizer, or has no piece for <BOS>, <EOS> or padding.
    """

    def __init__(
        self,
        content: bytes,
        new_tokens: Sequence[str] = (EOC,),
        *,
        bos: str | None = None,
        eos: str | None,
        pad: str | None = None,
        markers: Markers = PAPER,
    ):
        self._content = content
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:
            raise ValueError(
                f"These {len(content)} bytes are no {JSON_NAME} of Hugging Face: {error}."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        super().__init__(
            max(self._tokenizer.get_vocab().values(), default=-1) + 1, new_tokens, markers
        )
        if eos is None:
            bos, eos = wordpiece.around(self._tokenizer)
        if eos is None:
            raise ValueError(
                "Nothing says which piece stands behind a document: neither the argument eos nor "
                f"{SPECIAL_TOKENS_NAMES} beside {JSON_NAME}. Put tokenizer_config.json there, with "
                "eos_token and bos_token."
            )
        self._names = {"bos": bos or eos, "eos": eos, "pad": pad or eos}
        found = {name: self._tokenizer.token_to_id(piece) for name, piece in self._names.items()}
        if found["pad"] is not None and found["pad"] >= self.vocab_size:
            found["pad"] = found["eos"]
        if missing := [name for name, number in found.items() if number is None]:
            raise ValueError(
                f"The vocabulary of {JSON_NAME} has no piece {self._names[missing[0]]!r}, the "
                f"{missing[0]} token."
            )
        if beyond := [name for name, number in found.items() if (number or 0) >= self.vocab_size]:
            raise ValueError(
                f"The {beyond[0]} token {self._names[beyond[0]]!r} is piece {found[beyond[0]]} of "
                f"{JSON_NAME}, and the model's table has {self.vocab_size} rows. Name another in "
                f"{SPECIAL_TOKENS_NAMES[0]}."
            )
        self._ids = {name: number for name, number in found.items() if number is not None}
        self._silent = frozenset(self._ids.values())
        # An added token, to ask for the ids after one. No text has it, because a text is split at
        # the token that it begins with.
        known = (*self.new_tokens, *markers.in_text, *markers.in_prompts)
        self._token = f"{known[0]}\ue000\ue001" if known else ""
        self._tokenizer.add_tokens(
            [tokenizers.AddedToken(self._token, normalized=False)] if known else []
        )
        self._is_start_anew = self._encode("a", Before.START) == self._encode(
            "a", Before.AFTER_TOKEN
        )

    @classmethod
    def load(
        cls,
        path: PathLike,
        new_tokens: Sequence[str] = (EOC,),
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
    ) -> "HuggingFaceTokenizer":
        """Reads tokenizer.json, or BERT's vocab.txt, and the files next to it.

        Args:
            path: the file, or the directory that contains it.
            new_tokens: strings that get ids after the vocabulary.
            bos: as in the class; None = the piece that the other files name.
            eos: as `bos`.
            pad: as `bos`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: as in the class, or one of the other files is damaged.
        """
        file = find(path, (JSON_NAME, VOCABULARY_NAME))
        pieces = _special_tokens(file.parent)
        if file.suffix == ".txt":
            pieces = {**wordpiece.PIECES, **pieces}
            content = wordpiece.as_json(file, pieces)
        else:
            content = regular(file).read_bytes()
        return cls(
            content,
            new_tokens,
            bos=bos or pieces.get("bos"),
            eos=eos or pieces.get("eos"),
            pad=pad or pieces.get("pad"),
            markers=markers_lib.read(file.parent),
        )

    def save(self, directory: PathLike) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the markers into `directory`.

        The new tokens are not written: they are in the config of the model.
        """
        write_atomically(Path(directory) / JSON_NAME, self._content)
        write_json(
            Path(directory) / SPECIAL_TOKENS_NAMES[0],
            {f"{name}_token": piece for name, piece in self._names.items()},
        )
        markers_lib.write(directory, self.markers)

    @property
    def pad_id(self) -> int:
        """Id of the padding."""
        return self._ids["pad"]

    @property
    def bos_id(self) -> int:
        """Id of <BOS>."""
        return self._ids["bos"]

    @property
    def eos_id(self) -> int:
        """Id of <EOS>."""
        return self._ids["eos"]

    @property
    def writes_bos(self) -> bool:
        """True if the file puts <BOS> before a text that is encoded with special tokens.

        Texts are never encoded with special tokens here.
        """
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [self.bos_id]

    def _encode(self, text: str, place: Before) -> list[int]:
        if place is Before.INSIDE:
            return self._encode_inside(text)
        before = self._token if place is Before.AFTER_TOKEN else ""
        ids = self._tokenizer.encode(before + text, add_special_tokens=False).ids
        return ids[1:] if before else ids

    def _decode(self, ids: list[int], place: Before) -> str:
        ids = [i for i in ids if i not in self._silent]
        if place is Before.START or self._is_start_anew:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        before = self._tokenizer.encode(self._token, add_special_tokens=False).ids
        text = self._tokenizer.decode([*before, *ids], skip_special_tokens=False)
        return text.removeprefix(self._token)

    def _is_text(self, number: int) -> bool:
        return number not in self._tokenizer.get_added_tokens_decoder()

    def _is_byte(self, number: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.id_to_token(number) or "") is not None

    def _piece_id(self, piece: str) -> int | None:
        return self._tokenizer.token_to_id(piece)


def _special_tokens(directory: Path) -> dict[str, str]:
    """Returns {"bos": piece, ...} from the files next to the vocabulary.

    BERT's cls and sep are its bos and eos, where no file names one of these.
    """
    pieces: dict[str, str] = {}
    for name in SPECIAL_TOKENS_NAMES:
        file = directory / name
        if not file.exists():
            continue
        fields = read_fields(file)
        for key in ("bos", "eos", "pad", "unk", "cls", "sep"):
            piece = fields.get(f"{key}_token")
            piece = piece.get("content") if isinstance(piece, dict) else piece
            if isinstance(piece, str):
                pieces.setdefault(key, piece)
    begin, end = pieces.pop("cls", None), pieces.pop("sep", None)
    if begin and end and not {"bos", "eos"} & set(pieces):
        pieces |= {"bos": begin, "eos": end}
    return pieces
