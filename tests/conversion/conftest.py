"""The directory of a published model, which a test may change."""

import json
import shutil

import pytest

from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory with config.json, model.safetensors and tokenizer.model."""
    from tests.conversion.found_llama import CONFIG, change_weights  # needs torch

    directory = tmp_path_factory.mktemp("published")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    change_weights(directory)
    train_sentencepiece(["what is it? a cat"] * 4, directory / "tokenizer.model", 290, "bpe")
    return directory


@pytest.fixture
def found(published, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(published, tmp_path / "in")
    return tmp_path / "in"
