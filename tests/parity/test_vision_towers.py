"""SigLIP, SigLIP 2 and DINOv2 against transformers, through the publishers' own files."""

import json

import numpy as np
import pytest

from flamingo_jax.conversion import writing
from flamingo_jax.conversion.publishers import Inputs, describe
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.paths import Path
from flamingo_jax.data.images.read import fit
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.vision_features import VisionEncoder
from tests.parity import test_vit as clip

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

SIZE, PATCH = clip.SIZE, clip.PATCH
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIGLIP = {**WIDTH, "patch_size": PATCH, "intermediate_size": 64}
DINO = {**WIDTH, "patch_size": PATCH, "image_size": SIZE, "mlp_ratio": 2}
MODELS = {
    "siglip": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SIGLIP, image_size=SIZE)
    ),
    "siglip2": lambda: transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(**SIGLIP, num_patches=16, hidden_act="gelu")
    ),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3, use_swiglu_ffn=True)
    ),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """{name: (transformers' model, directory of its files)}."""
    torch.set_num_threads(1)
    made = {}
    for name, make in MODELS.items():
        directory = tmp_path_factory.mktemp(name)
        model = clip._randomised(make())
        model.save_pretrained(directory)
        made[name] = model, directory
    return made


def source_of(name):
    """The name of the importer."""
    return name.split("_")[0].removesuffix("2" if name == "siglip2" else "")


def converted(towers, name, features="patches"):
    inputs = Inputs(Path(towers[name][1]), options={"features": features})
    return describe(source_of(name), inputs)


def theirs(towers, name, frames):
    """(all tokens after the last norm, the pooled output) of transformers."""
    model, config = towers[name][0], converted(towers, name).model.vit
    pixels = clip._normalised(frames, config.mean, config.std)
    if name == "siglip2":  # a row for each patch: its pixels, row by row, of three colours each
        side = frames.shape[1] // PATCH
        patches = pixels.reshape(len(pixels), 3, side, PATCH, side, PATCH)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), side**2, -1)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32)
        shapes = torch.tensor([[side, side]] * len(pixels))
        output = model(patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    elif name == "siglip":
        output = model(pixels, interpolate_pos_encoding=True)
    else:
        output = model(pixels)
    return output.last_hidden_state, output.pooler_output


@pytest.mark.parametrize("name", MODELS)
def test_patches_are_those_of_transformers_at_the_trained_size_and_at_another(towers, name):
    """They come after the last norm. The table of positions is resized as each model does it."""
    before = {"dinov2": 1, "dinov2_with_registers": 4}.get(name, 0)
    for size in (SIZE, 40):
        frames = clip._frames(size)
        expected, _ = theirs(towers, name, frames)
        clip._close(clip._ours(converted(towers, name), frames), expected[:, before:])


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_the_pooled_output_is_that_of_transformers(towers, name):
    frames = clip._frames(SIZE)
    _, expected = theirs(towers, name, frames)
    clip._close(clip._ours(converted(towers, name, "pooled"), frames), expected[:, None])


def test_registers_are_no_output_and_the_class_token_may_be(towers):
    frames, name = clip._frames(SIZE), "dinov2_with_registers"
    tokens, pooled = theirs(towers, name, frames)
    both = torch.cat([tokens[:, :1], tokens[:, 4:]], dim=1)
    clip._close(clip._ours(converted(towers, name, "class_and_patches"), frames), both)
    clip._close(clip._ours(converted(towers, name, "class"), frames), pooled[:, None])


def test_a_whole_siglip_gives_its_image_tower_alone_and_an_export(towers, tmp_path):
    """From the publisher's files, with their text tower, to the features of an image."""
    text = {"hidden_size": 32, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 8}
    text |= {"num_hidden_layers": 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = {**SIGLIP, "image_size": SIZE}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = clip._randomised(transformers.SiglipModel(config))
    model.save_pretrained(tmp_path)
    pixels = {"image_mean": clip.MEAN, "image_std": clip.STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    conversion = describe("siglip", Inputs(Path(tmp_path), options={"features": "pooled"}))
    assert conversion.preprocessing == {
        "image_size": SIZE,
        "image_fit": "squash",
        "background": "white",
    }
    export = writing.write(conversion, tmp_path / "export")
    encoder = VisionEncoder.load(str(export), config=InferenceConfig(images_per_pass=2))
    picture = np.random.default_rng(5).integers(0, 256, (40, 48, 3), np.uint8)
    seen = clip._normalised(fit(picture, SIZE, "squash")[None], clip.MEAN, clip.STD)
    clip._close(encoder([picture]), model.vision_model(seen).pooler_output)


BAD = {
    "no SigLIP": ("siglip", {"model_type": "clip"}, "model_type is 'clip'; supported is 'siglip'"),
    "no DINOv2": ("dinov2", {"model_type": "vit"}, "model_type is 'vit'; supported is 'dinov2'"),
    "no square": (
        "siglip",
        {"model_type": "siglip2_vision_model", "num_patches": 12},
        "num_patches is 12; expected a square",
    ),
    "no head": (
        "siglip",
        {"model_type": "siglip_vision_model", "vision_use_head": False},
        "vision_use_head is False",
    ),
    "another activation": ("dinov2", {"model_type": "dinov2", "hidden_act": "relu"}, "hidden_act"),
    "no biases": ("dinov2", {"model_type": "dinov2", "qkv_bias": False}, "qkv_bias is False"),
}


@pytest.mark.parametrize("case", BAD)
def test_another_model_is_refused(tmp_path, case):
    source, config, message = BAD[case]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    features = {"siglip": "pooled", "dinov2": "class"}[source]
    with pytest.raises(ConversionError, match=message):
        describe(source, Inputs(Path(tmp_path), options={"features": features}))


@pytest.mark.parametrize(("source", "features"), [("siglip", "class"), ("dinov2", "pooled")])
def test_an_output_that_a_tower_lacks_is_refused(tmp_path, source, features):
    with pytest.raises(ConversionError, match=f"features is '{features}'; expected"):
        describe(source, Inputs(Path(tmp_path), options={"features": features}))
