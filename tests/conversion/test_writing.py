"""Writing of a conversion: the export has the weights of the files; one slice is in memory."""

import dataclasses
import json
import tracemalloc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint import streamed
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import mapping, nfnet_deepmind, writing
from flamingo_jax.conversion.mapping import Conversion, load_params
from flamingo_jax.conversion.reading import ConversionError, InMemory
from flamingo_jax.core import trees
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.nfnet import NFNetConfig

NFNET = NFNetConfig(
    widths=(8, 16),
    depths=(1, 3),
    strides=(1, 2),
    stem_channels=(4, 6),
    stem_strides=(2, 1),
    group_width=4,
)


def _files(config, model):
    """Returns random arrays with the publisher's names and the shapes of the model."""
    rng = np.random.default_rng(0)
    targets = mapping.targets("vision", model)
    arrays = {
        "NFNet/~/linear/w": np.zeros((3, 2), np.float32),
        "NFNet/~/linear/b": np.zeros(2, np.float32),
    }
    for rule in nfnet_deepmind.rules(config):
        if isinstance(rule, mapping.Rule):
            shape = targets[rule.target].shape
            numbers = rule.layers or (None,)
            for number in numbers:
                name = rule.source.replace("{layer}", str(number))
                arrays[name] = rng.normal(size=shape[1:] if rule.is_stacked else shape).astype(
                    np.float32
                )
    return InMemory(arrays)


@pytest.fixture(scope="module")
def conversion():
    model = ModelConfig(vision=NFNET, new_tokens=())
    rules = nfnet_deepmind.rules(NFNET)
    return Conversion(
        "vision", model, rules, _files(NFNET, model), preprocessing={"image_size": 32}
    )


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_export_holds_what_was_converted(conversion, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(streamed, "_CHUNK_BYTES", 600)  # so that weights have several chunks
    said = []
    output = writing.write(conversion, tmp_path / "out", dtype=dtype, report=said.append)
    opened = open_checkpoint(output)  # which verifies the hash
    expected = trees.flatten(load_params(conversion, dtype=dtype))
    got = trees.flatten(opened.params)
    assert list(got) == list(expected)
    for path, array in expected.items():
        assert got[path].dtype == array.dtype == (jnp.bfloat16 if dtype else jnp.float32)
        np.testing.assert_array_equal(got[path], array)
    assert (opened.kind, opened.step, opened.preprocessing) == ("vision", 0, {"image_size": 32})
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    assert card["content_hash"] == trees.content_hash(load_params(conversion, dtype=dtype))
    assert card["parameters"] == sum(array.size for array in expected.values())
    assert len(said) == len(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class _Counting:
    """Weights of 2 MiB a layer, made when they are read; counts those that are in memory."""

    def __init__(self, num_layers):
        self._shape, self._num_layers, self.alive, self.most = (1024, 512), num_layers, 0, 0

    def names(self):
        return {
            f"{i}": jax.ShapeDtypeStruct(self._shape, np.float32) for i in range(self._num_layers)
        }

    def read(self, name):
        array = np.full(self._shape, float(name), np.float32)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._gone)
        return array

    def _gone(self):
        self.alive -= 1


def _memory(num_layers, directory, monkeypatch):
    """Converts a stack; returns the largest number of bytes, and of sources, in memory at once."""
    files = _Counting(num_layers)
    target = {"m/w": jax.ShapeDtypeStruct((num_layers, 512, 1024), np.float32)}
    monkeypatch.setattr(mapping, "targets", lambda kind, model: target)
    rules = (mapping.Rule("{layer}", "m/w", lambda x: x.T + 1),)
    tracemalloc.start()
    try:
        writing.write(Conversion("vision", ModelConfig(), rules, files), directory)
        return tracemalloc.get_traced_memory()[1], files.most
    finally:
        tracemalloc.stop()


def test_memory_is_that_of_a_few_layers_and_not_of_all(tmp_path, monkeypatch):
    """There are 48 MiB in 24 layers.

    The bound is as high as half of them, because other threads free the data that wait for the
    disk (4 MiB here).
    """
    monkeypatch.setattr(streamed, "PENDING_BYTES", 4 * 2**20)
    memory, most_sources = _memory(24, tmp_path / "many", monkeypatch)
    assert most_sources == 1
    # At least one layer and its copy: tracemalloc measures numpy's arrays.
    assert 4 * 2**20 < memory < 24 * 2**20
    layer = open_checkpoint(tmp_path / "many").params["m"]["w"][7]
    np.testing.assert_array_equal(layer, np.full((512, 1024), 8.0))


def test_what_fails_on_the_way_leaves_nothing(conversion, tmp_path, caplog):
    class Damaged(InMemory):
        def read(self, name):
            if name.endswith("final_conv/w"):
                raise ConversionError(f"{name} is damaged")
            return super().read(name)

    files = Damaged({name: conversion.files.read(name) for name in conversion.files.names()})
    with pytest.raises(ConversionError, match="final_conv/w is damaged"):
        writing.write(dataclasses.replace(conversion, files=files), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    # orbax prints the traceback of an error that it sees
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("kept", ["w", "b"])
def test_what_does_not_fit_is_found_before_anything_is_written(conversion, tmp_path, kept):
    files = InMemory({kept: np.zeros(1)})
    with pytest.raises(
        ConversionError,
        match=rf"Only in the files \(1\): {kept}\. Only expected \(\d+\): NFNet/~/final_conv",
    ):
        writing.write(dataclasses.replace(conversion, files=files), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_is_replaced_and_nothing_else(conversion, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConversionError, match="holds other things than an export"):
        writing.write(conversion, tmp_path / "other")
    with pytest.raises(ConversionError, match="is a file"):
        writing.write(conversion, tmp_path / "file")
    assert (tmp_path / "other" / "thesis.txt").exists()
    (tmp_path / "out").mkdir()  # an empty directory may be filled
    first = writing.write(conversion, tmp_path / "out")
    writing.write(dataclasses.replace(conversion, preprocessing={"image_size": 64}), first)
    assert open_checkpoint(first).preprocessing == {"image_size": 64}


def test_streamed_and_ordinary_arrays_do_not_mix(tmp_path):
    from flamingo_jax.checkpoint import arrays

    there = {
        "a": np.zeros(2, np.float32),
        "b": streamed.Streamed((2,), np.dtype(np.float32), lambda: iter(())),
    }
    with pytest.raises(CheckpointError, match="Cannot write arrays"):
        arrays.write(tmp_path / "x", there)


def test_the_table_of_a_dry_run(conversion):
    lines = writing.table(conversion).splitlines()
    assert lines[-1].endswith("are skipped.")
    words = [line.split() for line in lines]
    assert [
        "NFNet/~/nf_block/~/conv1/w",
        "->",
        "vision/stage0/first/conv1/w",
        "(3,",
        "3,",
        "4,",
        "4)",
        "float32",
    ] in words
    source = "NFNet/~/nf_block_{layer}/~/conv1/w (2..3)"
    target = "vision/stage1/rest/conv1/w (2, 3, 3, 4, 8) float32"
    assert f"{source} -> {target}".split() in words
    assert "NFNet/~/linear/w -- skipped: the classifier of ImageNet".split() in words
