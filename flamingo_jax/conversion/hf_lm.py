"""Converts open language models, of the families of `lm_families`, for use as the frozen tower.

    DIR/config.json                                        model_type and shape
    DIR/model.safetensors, pytorch_model.bin, or shards    weights
    DIR/tokenizer.model, or tokenizer.json, and the files next to it (see `published_tokenizer`)
        --> an export of kind "language_model"

DIR is a directory that Hugging Face's transformers writes; a file of weights in it may be named
instead. V is the number of rows of the checkpoint's token table, which may be larger than the
number of the tokenizer's pieces. New tokens come after these rows.
"""

from __future__ import annotations

from flamingo_jax.conversion import lm_families, published_tokenizer
from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import open_weights, read_config
from flamingo_jax.models.config import ModelConfig


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of the directory that `--input` names, or that contains it.

    Raises:
        ConversionError: if a file is missing or damaged, the family is unknown, the model has an
            option that our block does not have, or the tokenizer cannot be used.
    """
    check_options(inputs)
    files = open_weights(inputs.input)
    lm, rules = lm_families.describe(read_config(inputs.input), files.names())
    published = published_tokenizer.load(inputs.directory, rows=lm.vocab_size)
    return Conversion(
        kind="language_model",
        model=ModelConfig(lm=lm, new_tokens=()),
        rules=rules,
        files=files,
        tokenizer=published,
        markers=published.markers,
    )
