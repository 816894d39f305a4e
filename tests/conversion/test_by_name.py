"""Publishers' files and exports by their names, from a stand-in of the Hub: only what is read."""

import json
import pathlib

import pytest

from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.checkpoint.hub import HubError
from flamingo_jax.conversion import publishers
from flamingo_jax.conversion.files import by_name
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.core.paths import Path
from flamingo_jax.inference.model import Flamingo
from tests.evaluation.test_programs import write_export
from tests.hub import Repository, served

JUNK = {
    "README.md": b"A model.",
    "pytorch_model.bin": b"the same weights",
    "optimizer.pt": b"state",
    "onnx/model.onnx": b"the same weights",
    "cat.png": b"a picture",
}


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with served(monkeypatch, tmp_path / "cache") as found:
        yield found


def contents(directory):
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in pathlib.Path(directory).rglob("*")
        if file.is_file()
    }


def put(site, *names, **files):
    site.repositories["org/name"] = Repository(dict.fromkeys(names, b"{}") | files)


def test_a_language_model_by_its_name(site, published):
    site.repositories["org/name"] = Repository(contents(published) | JUNK)
    local = publishers.describe("hf_lm", Inputs(Path(published)))
    found = publishers.describe("hf_lm", Inputs(Path("org/name@v1")))
    assert found.files.names() == local.files.names() and found.model == local.model
    assert site.fetched() == ["config.json", "model.safetensors", "tokenizer.model"]


def test_a_directory_of_that_name_wins(site, published, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to(published)
    assert publishers.describe("hf_lm", Inputs(Path("org/name"))).files.names()
    assert not site.asked


def test_shards_of_an_index_and_the_files_that_a_source_prefers(site):
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    site.repositories["org/name"] = Repository(
        {
            **{f"part-{n}.safetensors": bytes([n]) for n in (1, 2, 3)},
            "model.safetensors.index.json": json.dumps(index).encode(),
            "config.json": b"{}",
            "tokenizer.json": b"{}",
        }
        | JUNK
    )
    folder = by_name.local(Path("org/name"))
    assert sorted(contents(folder)) == [
        *("config.json", "model.safetensors.index.json"),
        *("part-1.safetensors", "part-2.safetensors", "tokenizer.json"),
    ]
    put(site, "open_clip_config.json", "open_clip_model.safetensors", "pytorch_model.bin")
    site.repositories["org/clip"] = site.repositories.pop("org/name")
    folder = by_name.local(Path("org/clip"))
    assert "open_clip_model.safetensors" in contents(folder)
    assert "pytorch_model.bin" not in contents(folder)


def test_one_file(site):
    put(site, "F0_haiku.npz", "README.md")
    assert by_name.local(Path("org/name")).name == "F0_haiku.npz"
    put(site, "F0_haiku.npz", "F1_haiku.npz")
    with pytest.raises(ConversionError, match="org/name holds no weights: F0_haiku.npz, F1"):
        by_name.local(Path("org/name"))
    assert by_name.local(Path("org/name:F1_haiku.npz")).name == "F1_haiku.npz"
    with pytest.raises(HubError, match="has no file 'F2_haiku.npz'; it has F0_haiku.npz"):
        by_name.local(Path("org/name:F2_haiku.npz"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.safetensors", "b.safetensors"), "org/name holds 2 files of weights and no index"),
        (("adapter_model.safetensors",), "org/name holds an adapter"),
        (("README.md",), "org/name holds no weights: README.md"),
        (("m-00001-of-00002.safetensors",), "1 of 2 shards .* in org/name are missing"),
    ],
)
def test_a_repository_that_is_no_model_is_refused_before_a_download(site, files, message):
    put(site, *files)
    with pytest.raises(ConversionError, match=message):
        by_name.local(Path("org/name"))
    assert not site.fetched()


def test_an_export_by_its_name(site, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    export = write_export(base / "named" / "tiny", "flamingo", base)
    site.repositories["org/tiny"] = Repository(contents(export) | JUNK)
    found, local = open_checkpoint("org/tiny"), open_checkpoint(export)
    assert fingerprint(found.params) == fingerprint(local.params)
    assert {line.split()[0] for line in site.fetched()} == set(contents(export))
    assert Flamingo.load("org/tiny@v1").step == 7
    site.repositories["org/tiny"].is_gated = True
    site.repositories["org/tiny"].revisions += ("v2",)
    site.repositories["org/tiny"].files["tokenizer.txt"] = b"new"
    with pytest.raises(HubError, match="org/tiny at .* is gated"):
        Flamingo.load("org/tiny@v2")


def test_what_is_no_export(site):
    put(site, "config.json", "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no export .* Convert a publisher's weights"):
        open_checkpoint("org/name")
    with pytest.raises(HubError, match="no file or directory 'runs/demo' here, and no repository"):
        open_checkpoint("runs/demo")
    assert not site.fetched()
