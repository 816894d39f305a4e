"""Several files of weights in a directory: which is taken, and that the others are named."""

import numpy as np
import pytest

from flamingo_jax.conversion.reading import ConversionError, open_weights
from tests.conversion.found_llama import TABLE, describe, put, weights

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def bin_of(seed):
    return lambda file: torch.save(weights(seed), file)


def safe(seed):
    return lambda file: safetensors.save_file(weights(seed), file)


def other(content):
    return lambda file: torch.save(content, file)


# the file names, in any order -> how each is made; seed 1 is the right model, 2 a wrong one
CHOSEN = {
    "PyTorch's form and the trainer's arguments": {
        "model.safetensors": safe(1),
        "pytorch_model.bin": bin_of(2),
        "training_args.bin": other({"lr": 1}),
    },
    "what a Trainer leaves": {
        "pytorch_model.bin": bin_of(1),
        "training_args.bin": other({"lr": 1}),
        "optimizer.pt": other({"state": 1}),
        "scheduler.pt": other({"step": 1}),
        "rng_state_0.pth": other({"cpu": 1}),
    },
    "a Trainer's files in other names": {
        "weights.bin": bin_of(1),
        "optimizer.bin": other({"s": 1}),
    },
    "Mistral's own form": {"model.safetensors": safe(1), "consolidated.safetensors": safe(2)},
    "an adapter": {"model.safetensors": safe(1), "adapter_model.safetensors": safe(2)},
    "an adapter next to PyTorch's form": {
        "pytorch_model.bin": bin_of(1),
        "adapter_model.safetensors": safe(2),
    },
    "another precision": {"model.safetensors": safe(1), "model.fp16.safetensors": safe(2)},
    "a file of macOS": {"a.safetensors": safe(1), "._a.safetensors": lambda file: file.touch()},
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_canonical_file_wins_and_the_others_are_named(found, name):
    (found / "model.safetensors").unlink()
    for file, make in CHOSEN[name].items():
        make(found / file)
    described = describe(found)
    np.testing.assert_array_equal(described.files.read(TABLE), weights(1)[TABLE])
    passed = sorted(file for file in list(CHOSEN[name])[1:] if not file.startswith("._"))
    assert bool(described.notes) == bool(passed)
    assert all(file in described.notes[0] for file in passed[:3])


def shards(directory, total, seed, stem="model"):
    """Writes `total` shards without an index; returns {weight: file}."""
    state, where = list(weights(seed).items()), {}
    for number in range(total):
        file = directory / f"{stem}-{number + 1:05}-of-{total:05}.safetensors"
        part = dict(state[number::total])
        safetensors.save_file(part, file)
        where |= dict.fromkeys(part, file.name)
    return where


def test_shards_without_an_index_are_one_model_if_none_is_missing(found):
    (found / "model.safetensors").unlink()
    where = shards(found, 3, 1)
    np.testing.assert_array_equal(describe(found).files.read(TABLE), weights(1)[TABLE])
    (found / where[TABLE]).unlink()
    with pytest.raises(ConversionError, match=r"1 of 3 shards .* are missing: N = 1\. Put"):
        describe(found)


def test_of_two_sets_of_shards_the_index_says_which(found):
    (found / "model.safetensors").unlink()
    where = shards(found, 2, 1)
    shards(found, 3, 2)
    with pytest.raises(ConversionError, match="holds 5 files of weights and no index"):
        describe(found)
    put(found, "model.safetensors.index.json", {"weight_map": where})
    described = describe(found)
    np.testing.assert_array_equal(described.files.read(TABLE), weights(1)[TABLE])
    assert "3 files next to the model are not read" in described.notes[0]
    (found / where[TABLE]).unlink()
    with pytest.raises(ConversionError, match="1 of 2 shards that .* are missing"):
        describe(found)


def test_an_adapter_alone_is_no_model(found):
    (found / "model.safetensors").rename(found / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match="holds an adapter, .* Merge them first"):
        open_weights(found)
