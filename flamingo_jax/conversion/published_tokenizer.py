"""Loads a publisher's tokenizer, checks it, and finds the tokens that end an answer.

    tokenizer.model, or tokenizer.json                the pieces
    tokenizer_config.json, special_tokens_map.json    the pieces of <BOS>, <EOS> and padding
    added_tokens.json, and the files above            tokens that were added to the pieces
    generation_config.json, config.json               one or several ids that end an answer
        --> `PublishedTokenizer`: the files of the export, and the tokenizer that they give

The tokenizer is loaded from the very files that the export will contain. So a tokenizer that cannot
be used ends the conversion before anything is written.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers

from flamingo_jax.checkpoint.arrays import few, first_line
from flamingo_jax.conversion.files import git_lfs
from flamingo_jax.conversion.reading import ConversionError, read_object
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path
from flamingo_jax.tokenizers import base
from flamingo_jax.tokenizers import markers as markers_lib
from flamingo_jax.tokenizers.base import FILE_NAME, JSON_NAME, SPECIAL_TOKENS_NAMES, Tokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.markers import Markers

_ROLES = ("bos", "eos", "pad", "unk")
_TIKTOKEN = re.compile(rb"\A[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # base64 of a piece, and its rank


@dataclasses.dataclass(frozen=True)
class PublishedTokenizer:
    """A tokenizer that was loaded, and its files.

    Attributes:
        files: name -> content of the files of the export, without prompt.json.
        loaded: the tokenizer, with the markers and the new tokens of the model.
        num_ids: the highest id of a piece or of an added token, plus 1.
        notes: what a user should know about it.
    """

    files: Mapping[str, bytes]
    loaded: Tokenizer
    num_ids: int
    notes: tuple[str, ...] = ()

    @property
    def markers(self) -> Markers:
        """The markers of the model's prompts, with its added tokens and its ends."""
        return self.loaded.markers

    def in_model(self, markers: Markers, new_tokens: Sequence[str]) -> PublishedTokenizer:
        """Returns the tokenizer of a larger model, which has other markers and new tokens.

        Raises:
            ConversionError: if it cannot be loaded with them.
        """
        loaded = _loaded(self.files, markers, new_tokens, "The tokenizer of the language model")
        return dataclasses.replace(self, loaded=loaded)


def load(
    directory: Path,
    *,
    rows: int,
    new_tokens: Sequence[str] = (),
    markers: Markers | None = None,
) -> PublishedTokenizer:
    """Reads the tokenizer in a publisher's directory.

    Args:
        directory: contains the files.
        rows: V, the rows of the model's token table.
        new_tokens: tokens whose ids are V, V + 1, ...
        markers: of the model's prompts; None = `<BOS>` if the publisher's tokenizer writes it, and
            no other. The added tokens and the ends are set here.

    Raises:
        ConversionError: if there is no tokenizer, a file is damaged or of another kind, or the
            table has fewer rows than the tokenizer has pieces.
    """
    file, notes = _vocabulary_file(directory)
    is_json = file.suffix == ".json"
    special, added, ends = _special(directory), _added(directory), _ends(directory)
    files = {
        name: content for name, content in base.files(file).items() if name != markers_lib.FILE_NAME
    }
    vocabulary = _of_json(files[JSON_NAME], file) if is_json else _of_model(files[FILE_NAME])
    if is_json:
        special = _from_ids(directory, special, ends, vocabulary.piece)
        files[SPECIAL_TOKENS_NAMES[0]] = _config(directory, special)
    if vocabulary.num_pieces > rows:
        raise ConversionError(
            f"{file} has {vocabulary.num_pieces} pieces, and the model's token table has {rows} "
            "rows; expected a row for each piece. Put the tokenizer there that the model was "
            "trained with."
        )
    limit = rows + len(new_tokens)
    for what, numbers in (("added tokens", list(added)), ("ids that end an answer", list(ends))):
        if lost := [str(number) for number in numbers if number >= limit]:
            notes.append(f"{len(lost)} {what} have no row in the token table: {few(lost)}.")
    names = set(special.values())
    in_prompts = vocabulary.controls | {t.text: n for n, t in added.items() if t.text in names}
    others = {*in_prompts, *new_tokens, special.get("unk"), vocabulary.unknown}
    in_text = {
        token.text: number
        for number, token in added.items()
        # the library finds the tokens of tokenizer.json that are not special
        if token.text not in others and (token.is_special or number >= vocabulary.num_ids)
    }
    if markers is None:
        writes_bos = _says_bos(directory)
        if writes_bos is None:
            writes_bos = vocabulary.writes(special.get("bos") or special.get("eos"))
        markers = Markers(bos=writes_bos, vocab_size=rows)
    markers = dataclasses.replace(
        markers,
        in_text={token: number for token, number in in_text.items() if number < rows},
        in_prompts={
            token: number
            for token, number in in_prompts.items()
            if number < rows and token not in {special.get("unk"), vocabulary.unknown, *new_tokens}
        },
        ends=tuple(number for number in ends if number < limit),
    )
    return PublishedTokenizer(
        files=files,
        loaded=_loaded(files, markers, new_tokens, str(file)),
        num_ids=max([vocabulary.num_ids, *(number + 1 for number in added)]),
        notes=tuple(notes),
    )


def added_tokens(directory: Path) -> dict[int, str]:
    """Returns id -> string of the tokens that any of Hugging Face's files adds to the pieces.

    Raises:
        ConversionError: if one of the files is damaged.
    """
    return {number: token.text for number, token in _added(directory).items()}


@dataclasses.dataclass(frozen=True)
class _Token:
    """An added token; `is_special` tokens are found in a text by us, the others by the library."""

    text: str
    is_special: bool


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """What a file of pieces contains.

    Attributes:
        num_pieces: the highest id of a piece, plus 1.
        num_ids: the same, with the tokens that the file adds.
        controls: piece -> id of its own <BOS> and <EOS>.
        unknown: the piece of what is not in the vocabulary.
        piece: id -> piece.
        writes: (piece of <BOS>) -> True if the tokenizer puts it before a text.
    """

    num_pieces: int
    num_ids: int
    controls: dict[str, int]
    unknown: str | None
    piece: Callable[[int], str | None]
    writes: Callable[[str | None], bool]


def _of_json(content: bytes, file: Path) -> _Vocabulary:
    try:
        made = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise ConversionError(
            f"{file} is no tokenizer of Hugging Face: {first_line(error)}. Put the publisher's "
            "there."
        ) from error
    pieces, everything = (made.get_vocab(with_added_tokens=also) for also in (False, True))
    unknown = getattr(made.model, "unk_token", None)
    return _Vocabulary(
        num_pieces=max(pieces.values(), default=-1) + 1,
        num_ids=max(everything.values(), default=-1) + 1,
        controls={},
        unknown=unknown if isinstance(unknown, str) else None,
        piece=made.id_to_token,
        writes=lambda bos: (
            bos is not None
            and made.encode("", add_special_tokens=True).ids[:1] == [made.token_to_id(bos)]
        ),
    )


def _of_model(content: bytes) -> _Vocabulary:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    size = pieces.vocab_size()
    controls = [number for number in (pieces.bos_id(), pieces.eos_id()) if number >= 0]
    return _Vocabulary(
        num_pieces=size,
        num_ids=size,
        controls={pieces.id_to_piece(number): number for number in controls},
        unknown=pieces.id_to_piece(pieces.unk_id()),
        piece=lambda number: pieces.id_to_piece(number) if 0 <= number < size else None,
        writes=lambda bos: True,  # LLaMA and Mistral
    )


def _vocabulary_file(directory: Path) -> tuple[Path, list[str]]:
    """Returns (the file of the pieces, notes)."""
    model, content = directory / FILE_NAME, directory / JSON_NAME
    problem = _problem(paths.regular(model).read_bytes()) if model.exists() else None
    if model.exists() and problem is None:
        return model, []
    if content.exists():
        return content, [f"{model.name} is not used, it {problem}."] if problem else []
    if problem is not None:
        raise ConversionError(
            f"{model} {problem}; expected SentencePiece's file, or {JSON_NAME}. Put the "
            f"publisher's {JSON_NAME} next to it, which transformers reads."
        )
    raise ConversionError(
        f"{directory} has neither {FILE_NAME} nor {JSON_NAME}. Where it has vocab.json and "
        "merges.txt, transformers makes the latter of them: "
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
    )


def _problem(content: bytes) -> str | None:
    """Returns what is wrong with a tokenizer.model, or None."""
    if _TIKTOKEN.match(content):
        return "is a list of ranks of tiktoken, as Meta publishes it with Llama 3"
    if git_lfs.is_pointer(content):
        return "is a pointer of Git LFS, and not the file that it points to"
    if not content:
        return "is empty"
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        return f"is no model of SentencePiece ({len(content)} bytes)"
    return None


def _special(directory: Path) -> dict[str, str]:
    """Returns {"bos": piece, ...}, of the first file that names it."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS_NAMES:
        if not (directory / name).exists():
            continue
        fields = read_object(directory / name)
        for role in _ROLES:
            token = fields.get(f"{role}_token")
            token = token.get("content") if isinstance(token, Mapping) else token
            if token is not None and not isinstance(token, str):
                raise ConversionError(
                    f"{directory / name}: {role}_token is {fields[f'{role}_token']!r}; expected a "
                    "string, or an object with its content. Put the publisher's there."
                )
            if token:
                found.setdefault(role, token)
    return found


def _from_ids(
    directory: Path,
    special: Mapping[str, str],
    ends: Sequence[int],
    piece: Callable[[int], str | None],
) -> dict[str, str]:
    """Adds the pieces of <BOS> and <EOS> that only generation_config.json or config.json names."""
    found = dict(special)
    starts = _ids_of(directory, "bos_token_id")
    for role, numbers in (("eos", ends), ("bos", starts)):
        names = [name for number in numbers if (name := piece(number)) is not None]
        if names:
            found.setdefault(role, names[0])
    return found


def _config(directory: Path, special: Mapping[str, str]) -> bytes:
    """Returns the publisher's tokenizer_config.json, with the pieces that were found."""
    file = directory / SPECIAL_TOKENS_NAMES[0]
    fields = read_object(file) if file.exists() else {}
    fields |= {f"{role}_token": piece for role, piece in special.items()}
    return json.dumps(fields, indent=2, allow_nan=False).encode()


def _says_bos(directory: Path) -> bool | None:
    """Returns the field that says whether <BOS> is put before a text; None if there is none."""
    file = directory / SPECIAL_TOKENS_NAMES[0]
    found = read_object(file).get("add_bos_token") if file.exists() else None
    if found is not None and not isinstance(found, bool):
        raise ConversionError(f"{file}: add_bos_token is {found!r}; expected true or false.")
    return found


def _added(directory: Path) -> dict[int, _Token]:
    found: dict[int, _Token] = {}
    for name in (JSON_NAME, SPECIAL_TOKENS_NAMES[0], "added_tokens.json"):
        if not (directory / name).exists():
            continue
        content = read_object(directory / name)
        try:
            tokens: list[tuple[Any, Any, Any]]
            if name == JSON_NAME:
                tokens = [
                    (token["id"], token["content"], token.get("special", False))
                    for token in content.get("added_tokens") or []
                ]
            elif name == SPECIAL_TOKENS_NAMES[0]:
                tokens = [
                    (number, token["content"], token.get("special", False))
                    for number, token in (content.get("added_tokens_decoder") or {}).items()
                ]
            else:
                tokens = [(number, token, True) for token, number in content.items()]
            for number, token, is_special in tokens:
                if not isinstance(token, str) or not token or isinstance(number, bool):
                    raise ValueError(f"{token!r} with the id {number!r} is no token")
                known = found.get(int(number))
                # added_tokens.json does not say whether a token is special
                if known is None or known.text != token or name != "added_tokens.json":
                    found[int(number)] = _Token(token, bool(is_special))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(
                f"{directory / name} is damaged: {first_line(error)}. Put the publisher's there."
            ) from error
    return {number: token for number, token in found.items() if number >= 0}


def _ends(directory: Path) -> tuple[int, ...]:
    """Returns the ids that end an answer, as the publisher's generation_config.json says.

    Without this file, those of config.json.
    """
    return _ids_of(directory, "eos_token_id")


def _ids_of(directory: Path, field: str) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        value = read_object(file).get(field) if file.exists() else None
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if wrong := [n for n in numbers if not isinstance(n, int) or isinstance(n, bool)]:
            raise ConversionError(
                f"{file}: {field} is {value!r}; expected an id or a list of ids, got {wrong[0]!r}."
            )
        return tuple(dict.fromkeys(number for number in numbers if number >= 0))
    return ()


def _loaded(
    files: Mapping[str, bytes], markers: Markers, new_tokens: Sequence[str], what: str
) -> Tokenizer:
    """Loads a tokenizer from the files that an export contains."""
    with paths.temporary_directory("tokenizer") as directory:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        markers_lib.write(directory, markers)
        try:
            return load_tokenizer(directory, new_tokens)
        except (ValueError, FileNotFoundError) as error:
            raise ConversionError(f"{what} cannot be used: {error}") from error
