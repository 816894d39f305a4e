"""Where a SentencePiece model writes a space that is not in the text, the "dummy prefix".

    text                 Output: cat.<EOC>Output: dog
    "always"             ▁Output : ▁cat . <EOC> ▁Output : ▁dog
    "first"              ▁Output : ▁cat . <EOC> Out put : ▁dog
    "never"              Out put : ▁cat . <EOC> Out put : ▁dog

A model file says only whether it has a prefix. Whether a text after a new token gets one too is
decided by the files that a publisher puts next to it, in the order of this table:

    tokenizer_config.json   add_prefix_space=false                       "never"
    tokenizer_config.json   legacy=true, legacy=false                    "always", "first"
    tokenizer.json          the normalizer Prepend, or Metaspace's prepend_scheme
    none of them            "first": SentencePiece writes one prefix per text, and tokens that are
                            symbols of its own model do not begin another one

Exports of version 0.4.0 and before say nothing. Their models were trained with "always".
"""

from collections.abc import Mapping
from typing import Any, Literal

import sentencepiece

from flamingo_jax.core.paths import Path, read_json

Prefix = Literal["always", "first", "never"]

CONFIG_NAME, JSON_NAME = "tokenizer_config.json", "tokenizer.json"
_EXPORT = "model.json"  # an export has this file (`checkpoint.export.CARD`)
# A message of protocol buffers may be followed by fields that replace those before:
# ModelProto.normalizer_spec (3) . add_dummy_prefix (3) = false.
_NO_PREFIX = b"\x1a\x02\x18\x00"


def without_prefix(model: bytes) -> bytes:
    """Returns the content of tokenizer.model with `add_dummy_prefix` switched off."""
    return model + _NO_PREFIX


def has_prefix(pieces: sentencepiece.SentencePieceProcessor) -> bool:
    """Returns True if the model writes a space before a text that begins with none.

    A model of words does not count: it has no piece without a space.
    """
    return pieces.normalize("a")[:1] in ("▁", " ") and not is_of_words(pieces)


def has_prefix_in(model: bytes) -> bool:
    """Returns `has_prefix` of the content of a tokenizer.model; False if it is damaged."""
    try:
        return has_prefix(sentencepiece.SentencePieceProcessor(model_proto=model))
    except RuntimeError:
        return False


def is_plain(model: bytes) -> bool:
    """Returns True if a tokenizer.model changes no text: a piece does not depend on others' text.

    Such a model has no prefix, keeps all spaces, and normalises nothing.
    """
    spec = sentencepiece.SentencePieceNormalizer(model_proto=model).serialized_normalizer_spec()
    spaces = sentencepiece.SentencePieceProcessor(model_proto=model).normalize(" a  a ")
    return spec[2:10] == b"identity" and spaces == "▁a▁▁a▁"


def is_of_words(pieces: sentencepiece.SentencePieceProcessor) -> bool:
    """Returns True if every piece begins with a space, so that each text begins with a word."""
    numbers = range(pieces.vocab_size())
    is_symbol = (pieces.is_control, pieces.is_unknown, pieces.is_byte)
    return all(
        pieces.id_to_piece(number).startswith("▁")
        for number in numbers
        if not any(check(number) for check in is_symbol)
    )


def read(directory: Path) -> Prefix:
    """Returns where the tokenizer.model of a directory writes its prefix, if it has one.

    Raises:
        PathError: a file next to it is not valid JSON.
    """
    config = _fields(directory / CONFIG_NAME)
    if config.get("add_prefix_space") is False:
        return "never"
    if isinstance(legacy := config.get("legacy"), bool):
        return "always" if legacy else "first"
    if (directory / JSON_NAME).exists():
        return _of_json(_fields(directory / JSON_NAME))
    return "always" if (directory / _EXPORT).exists() else "first"


def stated(directory: Path, prefix: Prefix) -> dict[str, Any]:
    """Returns the content of a tokenizer_config.json that says `prefix`, with all that it says now.

    Raises:
        PathError: the file in the directory is not valid JSON.
    """
    said = {"add_prefix_space": prefix != "never", "legacy": prefix == "always"}
    return {**_fields(directory / CONFIG_NAME), **said}


def _fields(file: Path) -> Mapping[str, Any]:
    content = read_json(file) if file.exists() else {}
    return content if isinstance(content, dict) else {}


def _of_json(content: Mapping[str, Any]) -> Prefix:
    """Returns the scheme of a tokenizer.json: of its normalizers and pre-tokenizers."""
    parts = [content.get("normalizer"), content.get("pre_tokenizer")]
    for part in parts:
        if not isinstance(part, dict):
            continue
        parts += [*part.get("normalizers", ()), *part.get("pretokenizers", ())]  # of a sequence
        if part.get("type") == "Prepend":
            return "always"
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme")
            if scheme in ("always", "first", "never"):
                return scheme
            return "always" if part.get("add_prefix_space", True) else "never"
    return "never"
