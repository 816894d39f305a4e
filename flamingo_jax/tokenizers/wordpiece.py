"""Reads WordPiece (Devlin et al. 2019), BERT's tokenizer, for the contrastive text encoder.

    vocab.txt                a piece per line; its id is the number of the line, from 0
    tokenizer_config.json    how text is normalised, and the names of the special pieces

    "A cat's whiskers"  -->  [CLS] a cat ' s whisk ##ers [SEP]

[CLS] takes the place of <BOS>, and [SEP] that of <EOS>. A tokenizer.json of this kind is read like
any other (`tokenizers.huggingface`).
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from flamingo_jax.core.paths import Path, regular
from flamingo_jax.tokenizers.base import VOCABULARY_NAME, read_fields
from flamingo_jax.tokenizers.prefix import CONFIG_NAME

# BERT's pieces, where no file names others.
PIECES: Mapping[str, str] = {"bos": "[CLS]", "eos": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"}


def as_json(file: Path, pieces: Mapping[str, str]) -> bytes:
    """Returns the content of the tokenizer.json for a vocab.txt.

    Args:
        file: vocab.txt; tokenizer_config.json may be next to it.
        pieces: the special pieces, with the keys of PIECES.

    Raises:
        ValueError: a file is damaged, or a special piece is not in the vocabulary.
    """
    numbers, config = _read(file), file.parent / CONFIG_NAME
    if missing := [piece for piece in pieces.values() if piece not in numbers]:
        raise ValueError(
            f"{file} has no piece {missing[0]!r} among its {len(numbers)} lines; expected "
            f"{', '.join(pieces.values())}, each on a line. Take BERT's vocabulary, or name its "
            f"pieces in {CONFIG_NAME}: cls_token, sep_token, pad_token, unk_token."
        )
    fields = read_fields(config) if config.exists() else {}
    made = tokenizers.Tokenizer(models.WordPiece(numbers, unk_token=pieces["unk"]))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=_flag(fields, "do_lower_case", config, default=True),
        handle_chinese_chars=_flag(fields, "tokenize_chinese_chars", config, default=True),
        strip_accents=_flag(fields, "strip_accents", config, default=None),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    begin, end = ((pieces[role], numbers[pieces[role]]) for role in ("bos", "eos"))
    made.post_processor = processors.BertProcessing(end, begin)
    made.add_special_tokens(list(pieces.values()))
    return made.to_str().encode("utf-8")


def around(tokenizer: tokenizers.Tokenizer) -> tuple[str | None, str | None]:
    """Returns the pieces that a WordPiece tokenizer puts around a text; (None, None) for others."""
    if isinstance(tokenizer.model, models.WordPiece):
        written = tokenizer.encode("", add_special_tokens=True).tokens
        if len(written) == 2:
            return written[0], written[1]
    return None, None


def _read(file: Path) -> dict[str, int]:
    """Returns piece -> id."""
    try:
        text = regular(file).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no {VOCABULARY_NAME}: it is not UTF-8 ({error}).") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    numbers = {piece: number for number, piece in enumerate(lines)}
    if len(numbers) < len(lines):
        first = next(number for number, piece in enumerate(lines) if numbers[piece] != number)
        raise ValueError(
            f"{file} has the piece {lines[first]!r} twice, on the lines {first + 1} and "
            f"{numbers[lines[first]] + 1}; expected each piece once. Take the original file."
        )
    return numbers


def _flag(fields: Mapping[str, Any], name: str, file: Path, *, default: bool | None) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{file}: {name} is {value!r}; expected true or false.")
    return default if value is None else value
