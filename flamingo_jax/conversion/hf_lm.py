"""Converts open language models, of the families of `lm_families`, for use as the frozen tower.

    DIR/config.json                                        model_type and shape
    DIR/model.safetensors, pytorch_model.bin, or shards    weights
    DIR/tokenizer.model, or tokenizer.json and tokenizer_config.json
        --> an export of kind "language_model"

DIR is a directory that Hugging Face's transformers writes. V is the number of rows of the
checkpoint's token table, which may be larger than the number of the tokenizer's pieces. New tokens
come after these rows.
"""

from __future__ import annotations

from flamingo_jax.conversion import lm_families
from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, open_weights, read_config
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.markers import Markers


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of the directory that `--input` names.

    Raises:
        ConversionError: if a file is missing or damaged, the family is unknown, or the model has an
            option that our block does not have.
    """
    check_options(inputs)
    directory = inputs.input
    files = open_weights(directory)
    lm, rules = lm_families.describe(read_config(directory), files.names())
    return Conversion(
        kind="language_model",
        model=ModelConfig(lm=lm, new_tokens=()),
        rules=rules,
        files=files,
        tokenizer=_tokenizer(directory),
        markers=Markers(bos=_writes_bos(directory), vocab_size=lm.vocab_size),
    )


def _tokenizer(directory: Path) -> Path:
    try:
        return tokenizer_lib.find(directory)
    except FileNotFoundError as error:
        raise ConversionError(
            f"{directory} has neither tokenizer.model nor tokenizer.json. Where it has vocab.json "
            "and merges.txt, transformers makes the latter of them: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
        ) from error


def _writes_bos(directory: Path) -> bool:
    """Returns True if the model's own tokenizer puts <BOS> before a text."""
    file = _tokenizer(directory)
    config = file.parent / tokenizer_lib.SPECIAL_TOKENS_NAMES[0]
    if config.exists() and isinstance(adds := paths.read_json(config).get("add_bos_token"), bool):
        return adds
    if file.suffix != ".json":
        return True  # LLaMA and Mistral use SentencePiece
    return HuggingFaceTokenizer.load(file, ()).writes_bos
