"""Open language models as the frozen tower.

A directory as Hugging Face's transformers writes it, of one of the families of `lm_families`.

    DIR/config.json                                          model_type and shape
    DIR/model.safetensors, pytorch_model.bin, or shards      weights                        -->  a language_model export
    DIR/tokenizer.model, or tokenizer.json and tokenizer_config.json

V is the number of rows of the checkpoint's table, which may have more of them than its tokenizer
has pieces; new tokens stand behind it.
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
        ConversionError: a file is missing or damaged, the family is unknown, or the model has an
            option that our block has not.
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
    """Whether the model's own tokenizer puts <BOS> before a text."""
    file = _tokenizer(directory)
    said = file.parent / tokenizer_lib.SPECIAL_TOKENS_NAMES[0]
    if said.exists() and isinstance(says := paths.read_json(said).get("add_bos_token"), bool):
        return says
    if file.suffix != ".json":
        return True  # SentencePiece is LLaMA's and Mistral's
    return HuggingFaceTokenizer.load(file, ()).writes_bos
