"""Llama 3.2 Vision's encoder against transformers, through the publisher's own files."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from flamingo_jax.conversion import mllama_vision, writing
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.publishers import Inputs, describe
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.paths import Path
from flamingo_jax.data.images.tiles import arrangements
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.models.vision import encode_visuals
from tests.parity import test_vit as clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

TILE, TILES, PATCH = 24, 4, 8  # 3 x 3 patches and the class token: 10 places, and 6 that pad them
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_global_layers": 2,
    "attention_heads": 4,
    "intermediate_size": 64,
    "image_size": TILE,
    "patch_size": PATCH,
    "vision_output_dim": 32 * 3,
    "intermediate_layers_indices": [0, 2],
}
# Every arrangement once: 1, 2, 3, 4, 2, 4, 3 and 4 tiles.
NUMBERS = np.arange(1, 1 + len(arrangements(TILES)))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """(transformers' model, directory of its files)."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("mllama_vision")
    model = clip._randomised(
        transformers.MllamaVisionModel(transformers.MllamaVisionConfig(**SHAPE))
    )
    model.save_pretrained(directory)
    pixels = {"image_mean": clip.MEAN, "image_std": clip.STD}
    (directory / "preprocessor_config.json").write_text(json.dumps(pixels))
    return model, directory


@pytest.fixture(scope="module")
def images():
    """(frames of one image of each arrangement, the mask that says so)."""
    counts = np.array([rows * columns for rows, columns in arrangements(TILES)])
    real = np.arange(TILES)[None] < counts[:, None]
    frames = np.random.default_rng(0).integers(
        0, 256, (len(counts), TILES, TILE, TILE, 3), np.uint8
    )
    return frames, np.where(real, NUMBERS[:, None], 0).astype(np.int8)


def theirs(model, frames, mask, images_per_prompt):
    """Transformers' features; tiles that an image lacks are 0, as its processor leaves them."""
    pixels = clip._normalised(frames.reshape(-1, TILE, TILE, 3), clip.MEAN, clip.STD)
    pixels = pixels.reshape(*frames.shape[:2], 3, TILE, TILE)
    pixels = pixels * torch.tensor(mask != 0)[:, :, None, None, None]
    ids = torch.tensor(mask.max(axis=1), dtype=torch.int64)
    split = lambda x: x.reshape(-1, images_per_prompt, *x.shape[1:])
    out = model(split(pixels), split(ids), split(torch.tensor((mask != 0).astype(np.int64))))
    return out.last_hidden_state.reshape(*mask.shape, *out.last_hidden_state.shape[3:])


def ours(conversion, frames, mask):
    config = conversion.model.tiled_vit
    model = hk.without_apply_rng(
        hk.transform(lambda frames, mask: encode_visuals(config, frames, mask, jnp.float32))
    )
    return np.asarray(jax.jit(model.apply)(load_params(conversion), frames, mask))


@pytest.mark.parametrize("images_per_prompt", [1, 4])
def test_features_of_each_arrangement_are_those_of_transformers(tower, images, images_per_prompt):
    """1 to 4 tiles, the padding tiles too, which text never sees: each place of each image.

    Within 1e-5 of the largest feature: float32 through 6 layers, the sums in another order.
    """
    model, directory = tower
    found = ours(describe("mllama_vision", Inputs(Path(directory))), *images)
    expected = theirs(model, *images, images_per_prompt).detach().numpy()
    assert found.shape == expected.shape == (8, TILES, 10, 96)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_encoder_and_its_projection_are_taken_out_of_a_whole_model(tower, tmp_path):
    """The files of a whole model have prefixes, and other parts."""
    model, directory = tower
    projector = torch.nn.Linear(96, 16)
    of_projector = {f"multi_modal_projector.{n}": w for n, w in projector.state_dict().items()}
    weights = {f"vision_model.{name}": w.contiguous() for name, w in model.state_dict().items()}
    others = {"language_model.lm_head.weight": torch.zeros(2, 2)}
    save_file(weights | of_projector | others, tmp_path / "model.safetensors")
    content = {"model_type": "mllama", "vision_config": SHAPE, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    whole = load_params(describe("mllama_vision", Inputs(Path(tmp_path))))
    alone = load_params(describe("mllama_vision", Inputs(Path(directory))))
    jax.tree.map(np.testing.assert_array_equal, whole, alone)
    made = {
        rule.target: rule.transform(of_projector[f"multi_modal_projector.{rule.source}"].numpy())
        for rule in mllama_vision.projector_rules()
    }
    x = np.random.default_rng(3).normal(size=(2, 96)).astype(np.float32)
    expected = projector(torch.tensor(x)).detach()
    np.testing.assert_allclose(x @ made["w"] + made["b"][None], expected, atol=1e-5)


def test_an_export_sees_images_as_transformers_does(tower, tmp_path):
    """From files of any shape, through their tiles, to the mean of the features of these."""
    model, directory = tower
    export = writing.write(describe("mllama_vision", Inputs(Path(directory))), tmp_path / "export")
    encoder = VisionEncoder.load(str(export), config=InferenceConfig(images_per_pass=8))
    rng = np.random.default_rng(5)
    sizes = [(60, 20), (20, 60), (10, 10), (50, 45), (40, 22)]  # all numbers of tiles
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    processor = transformers.MllamaImageProcessorPil(
        size={"height": TILE, "width": TILE}, image_mean=clip.MEAN, image_std=clip.STD
    )
    seen = processor([[each] for each in pictures], return_tensors="pt")
    real = seen.pop("num_tiles")
    expected = [
        features[0, : tiles[0]].mean((0, 1))
        for features, tiles in zip(model(**seen).last_hidden_state, real, strict=True)
    ]
    assert {tiles[0] for tiles in real} == {1, 2, 3, 4}
    clip._close(encoder(pictures), torch.stack(expected))


BAD = {
    "no mllama": ({"model_type": "clip"}, {}, "model_type is 'clip'; supported is 'mllama'"),
    "another list": (
        {"supported_aspect_ratios": [[1, 1], [2, 1]]}, {}, "supported_aspect_ratios is"
    ),
    "another width": ({"vision_output_dim": 64}, {}, "vision_output_dim is 64, and 3 layers"),
    "an activation": ({"hidden_act": "silu"}, {}, "hidden_act is 'silu'"),
    "another processor": ({}, {"max_image_tiles": 2}, "max_image_tiles is 2; supported is 4"),
    "another size": ({}, {"size": {"height": 9, "width": 9}}, "size is {'height': 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_another_model_is_refused(tmp_path, case):
    content, pixels, message = BAD[case]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    content = {"model_type": "mllama_vision_model", **SHAPE, **content}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    with pytest.raises(ConversionError, match=message):
        describe("mllama_vision", Inputs(Path(tmp_path)))
