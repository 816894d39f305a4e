"""`python -m flamingo_jax.convert`: other programs open its export; a mistake is one message."""

import pickle

import numpy as np
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import mapping, nfnet_deepmind, publishers, writing
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core import trees
from flamingo_jax.core.paths import Path
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.nfnet import NFNetConfig

CONFIG = NFNetConfig(
    widths=(8, 16),
    depths=(1, 2),
    strides=(1, 2),
    stem_channels=(4, 6),
    stem_strides=(2, 1),
    group_width=4,
)


def write(directory, monkeypatch):
    """Writes a file in DeepMind's layout, of a network with three blocks in place of F0.

    Returns (the file, its weights).
    """
    monkeypatch.setattr(nfnet_deepmind, "NFNETS", {"F0": CONFIG})
    monkeypatch.setattr(nfnet_deepmind, "IMAGE_SIZES", {"F0": 32})
    targets = mapping.targets("vision", ModelConfig(vision=CONFIG))
    rng = np.random.default_rng(0)
    tree = {"NFNet/~/linear": {"w": np.zeros((32, 5), np.float32), "b": np.zeros(5, np.float32)}}
    for rule in nfnet_deepmind.rules(CONFIG):
        if isinstance(rule, mapping.Rule):
            module, _, name = rule.source.replace("{layer}", "2").rpartition("/")
            shape = targets[rule.target].shape[rule.is_stacked :]
            tree.setdefault(module, {})[name] = rng.normal(0.5, 0.5, size=shape).astype(np.float32)
    path = directory / "F0_haiku.npz"
    path.write_bytes(pickle.dumps(tree))
    return path, tree


@pytest.fixture
def published(tmp_path, monkeypatch):
    return write(tmp_path, monkeypatch)


def test_a_published_file_becomes_an_encoder(published, tmp_path):
    path, tree = published
    writing.write(publishers.describe("nfnet_deepmind", Inputs(Path(path))), tmp_path / "out")
    opened = open_checkpoint(tmp_path / "out")
    assert opened.kind == "vision"
    weights = trees.flatten(opened.params)
    np.testing.assert_array_equal(
        weights["vision/stage1/rest/conv1b/w"][0], tree["NFNet/~/nf_block_2/~/conv1b"]["w"]
    )
    np.testing.assert_array_equal(
        weights["vision/stage1/first/shortcut/gain"],
        tree["NFNet/~/nf_block_1/~/conv_shortcut"]["gain"],
    )
    np.testing.assert_array_equal(
        weights["vision/stage0/first/skip/gain"], tree["NFNet/~/nf_block"]["skip_gain"]
    )
    image = np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)
    (features,) = VisionEncoder.load(tmp_path / "out", config=InferenceConfig(compute="float32"))(
        [image]
    )
    assert features.shape == (CONFIG.width,)
    assert np.isfinite(features).all()
    assert np.std(features) > 0


def test_the_table_of_a_dry_run_is_the_mapping(published, tmp_path):
    path, _ = published
    out = writing.table(publishers.describe("nfnet_deepmind", Inputs(Path(path))))
    assert "-> vision/stem_conv0/w (3, 3, 3, 4) float32" in " ".join(out.split())
    assert out.splitlines()[-1].endswith("; 2 are skipped.")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree.pop("NFNet/~/nf_block_2"),
            r"holds 2 blocks of an NFNet; expected F0: 3\. Check --source",
        ),
        (
            lambda tree: tree.pop("NFNet/~/stem_conv1"),
            r"Only expected \(3\): NFNet/~/stem_conv1/bias, NFNet/~/stem_conv1/gain",
        ),
        (
            lambda tree: tree.update(extra={"w": np.zeros(1)}),
            r"Only in the files \(1\): extra/w\. Only expected \(0\)",
        ),
        (
            lambda tree: tree["NFNet/~/final_conv"].update(bias=np.zeros(3)),
            r"bias \(3,\): got shape \(3,\), expected \(32,\)",
        ),
        (
            lambda tree: tree["NFNet/~/final_conv"].update(w=np.zeros(3, int)),
            r"not floating point: NFNet/~/final_conv/w",
        ),
    ],
    ids=["blocks", "missing", "extra", "shape", "dtype"],
)
def test_another_models_file_is_one_message(published, tmp_path, change, message):
    path, tree = published
    change(tree)
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(ConversionError, match=message):
        writing.write(publishers.describe("nfnet_deepmind", Inputs(Path(path))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


def test_a_mistake_ends_the_program_with_one_line(run_program, tmp_path):
    done = run_program(
        *(
            "-m",
            "flamingo_jax.convert",
            "--source=timm_nfnet",
            f"--input={tmp_path / 'x.pth'}",
            "--output=out",
        ),
        status=1,
    )
    assert (
        done.stderr.strip()
        == f"ConversionError: There is nothing at {tmp_path / 'x.pth'}. Check --input."
    )


def test_every_source_has_its_module():
    for source in publishers.SOURCES:
        with pytest.raises(ConversionError):
            publishers.describe(source, Inputs(Path("/nowhere")))
    with pytest.raises(
        ConversionError, match="no source 'clipp'; expected one of nfnet_deepmind, timm_nfnet"
    ):
        publishers.describe("clipp", Inputs(Path("/nowhere")))


def test_what_a_source_does_not_take_is_refused():
    with pytest.raises(ConversionError, match="takes no lm, size; it takes the input alone"):
        publishers.describe(
            "timm_nfnet", Inputs(Path("x.pth"), lm=Path("y"), options={"size": "3"})
        )
