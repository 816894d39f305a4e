"""Reading of safetensors and PyTorch's files, whole and in shards; bad files are one error."""

import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion.reading import (
    ConversionError,
    InMemory,
    Merged,
    open_weights,
    read_config,
)
from flamingo_jax.core.paths import Path

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor([0.5], dtype=torch.float16),
    "d": torch.arange(3),
    "e": torch.tensor(4.0),
}
DTYPES = {"a": np.float32, "b": jnp.bfloat16, "c": np.float16, "d": np.int64, "e": np.float32}


def _check(weights):
    names = weights.names()
    assert {name: leaf.dtype for name, leaf in names.items()} == {
        name: np.dtype(dtype) for name, dtype in DTYPES.items()
    }
    for name, tensor in TENSORS.items():
        array = weights.read(name)
        assert names[name].shape == array.shape == tuple(tensor.shape)
        assert array.dtype == names[name].dtype
        np.testing.assert_array_equal(np.asarray(array, np.float32), tensor.float().numpy())


def _sharded(directory, suffix):
    """Writes TENSORS as two shards with their index, as transformers does."""
    name = {"safetensors": "model-{}.safetensors", "bin": "pytorch_model-{}.bin"}[suffix]
    where = {}
    for number, keys in enumerate(("ab", "cde")):
        part = {key: TENSORS[key] for key in keys}
        file = directory / name.format(number)
        if suffix == "bin":
            torch.save(part, file)
        else:
            save_file(part, file)
        where |= dict.fromkeys(part, file.name)
    index = "pytorch_model.bin.index.json" if suffix == "bin" else "model.safetensors.index.json"
    (directory / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return directory / index


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    _check(open_weights(tmp_path / "model.safetensors"))
    _check(open_weights(tmp_path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {
            "epoch": 3,
            "model_state_dict": {f"module.{name}": t for name, t in tensors.items()},
        },
        lambda tensors: {"state_dict": tensors, "name": "x"},
    ],
    ids=["bare", "of a training run", "state_dict"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_torch(tmp_path, wrap, zipped):
    torch.save(wrap(TENSORS), tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=zipped)
    _check(open_weights(tmp_path))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path, suffix):
    _check(open_weights(_sharded(tmp_path, suffix)))
    _check(open_weights(tmp_path))


def test_merged_files_have_their_prefixes():
    merged = Merged(("x.", InMemory({"a": np.zeros(1)})), ("", InMemory({"a": np.ones(2)})))
    assert {name: leaf.shape for name, leaf in merged.names().items()} == {"x.a": (1,), "a": (2,)}
    np.testing.assert_array_equal(merged.read("a"), [1, 1])
    with pytest.raises(ConversionError, match=r"Two files hold a weight 'x\.a'"):
        Merged(("x.", InMemory({"a": np.zeros(1)})), ("", InMemory({"x.a": np.ones(2)})))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path, suffix):
    index = _sharded(tmp_path, suffix)
    next(file for file in tmp_path.iterdir() if file.stem.endswith("-1")).unlink()
    with pytest.raises(
        ConversionError,
        match=rf"1 of 2 shards that .* are missing: \S*-1\.{suffix}\. Put them next to it",
    ):
        open_weights(index)


def test_shards_that_do_not_hold_what_the_index_says(tmp_path):
    index = _sharded(tmp_path, "safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["z"] = content["weight_map"].pop("a")
    index.write_text(json.dumps(content))
    with pytest.raises(
        ConversionError, match=r"Only in the index \(1\): z\. Only in the shards \(1\): a\."
    ):
        open_weights(index)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_an_error(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConversionError, match="is no index of shards"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.7, 0.99])
def test_a_truncated_file_is_an_error(tmp_path, name, kept):
    save_file(TENSORS, tmp_path / name) if name.endswith("safetensors") else torch.save(
        TENSORS, tmp_path / name
    )
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ConversionError,
        match=f"{name} is damaged, cut off or of another kind: .* Download it again",
    ):
        open_weights(tmp_path)


class _Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_a_malicious_checkpoint_is_refused_and_nothing_ran(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"w": _Malicious(canary)}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"x\.pt holds more than tensors, and is not read"):
        open_weights(tmp_path / "x.pt")
    assert not canary.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; expected a dictionary of tensors"),
        ({"a": torch.zeros(1), "step": 3}, "holds 1 things that are no tensors: step"),
        ({}, "expected a dictionary of tensors"),
    ],
)
def test_other_content_than_tensors_is_an_error(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=message):
        open_weights(tmp_path / "x.pt")


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match="There is nothing at"):
        open_weights(tmp_path / "x.pt")
    with pytest.raises(
        ConversionError, match=r"holds no weights: none; expected \*\.safetensors or"
    ):
        open_weights(tmp_path)
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ConversionError, match=r"weights\.h5 is no file of weights"):
        open_weights(tmp_path / "weights.h5")
    for name in ("a.safetensors", "b.safetensors"):
        save_file({name: torch.zeros(1)}, tmp_path / name)
    with pytest.raises(
        ConversionError,
        match=r"holds 2 files of weights and no index: a\.safetensors, b\.safetensors",
    ):
        open_weights(tmp_path)
    with pytest.raises(ConversionError, match="not on a file system: copy it"):
        open_weights(Path("gs://bucket/model.safetensors"))


def test_config(tmp_path):
    with pytest.raises(
        ConversionError, match=r"There is no file .*config\.json.*shape is read from it"
    ):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert read_config(tmp_path) == {"hidden_size": 8}
    (tmp_path / "model.safetensors").touch()
    assert read_config(tmp_path / "model.safetensors") == {"hidden_size": 8}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConversionError, match="holds a list; expected an object"):
        read_config(tmp_path)


@pytest.mark.parametrize(("package", "name"), [("safetensors", "x.safetensors"), ("torch", "x.pt")])
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, package, name):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConversionError,
        match=rf"needs the package '{package}': pip install 'flamingo_jax\[conversion\]'",
    ):
        open_weights(tmp_path / name)
