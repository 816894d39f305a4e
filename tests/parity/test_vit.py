"""ViT and its importers against transformers, open_clip and timm.

Random weights, carried over through the publishers' own files.
"""

import dataclasses
import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import open_clip, writing
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.publishers import Inputs, describe
from flamingo_jax.conversion.reading import ConversionError, InMemory
from flamingo_jax.core.paths import Path
from flamingo_jax.data.images.read import fit
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.models.vision import encode_frames
from flamingo_jax.models.vit import ViTConfig
from tests.parity import stand_ins

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

SIZE, PATCH = 32, 8  # 4 x 4 patches
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "width": 32,
    "layers": 2,
    "head_width": 8,
    "mlp_ratio": 2.0,
}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def frames():
    torch.set_num_threads(1)
    return _frames(SIZE)


def _frames(size):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


def _normalised(frames, mean, std):
    """The same images as the others' code has them: channels first, mean 0, deviation 1."""
    pixels = (frames / 255 - np.array(mean)) / np.array(std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def _randomised(model):
    """Every weight random and none small: a wrong order, a lost bias or norm would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if name.endswith("weight") and weight.ndim == 1 else 0.0
            scale = 0.3 if weight.ndim < 2 else 2 * weight[0].numel() ** -0.5
            weight.copy_(around + scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def _ours(conversion, frames, **changes):
    config = dataclasses.replace(conversion.model.vit, **changes)
    model = hk.without_apply_rng(
        hk.transform(lambda frames: encode_frames(config, frames, jnp.float32))
    )
    return np.asarray(jax.jit(model.apply)(load_params(conversion), frames))


def _close(ours, theirs):
    """1e-4 of the largest value: float32 through two blocks, the sums in another order."""
    theirs = np.asarray(theirs.detach())
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def _differs(one, other, *, by):
    assert np.abs(one - other).max() > by * np.abs(one).max()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """{activation: (transformers' model, our conversion of its files)}."""

    def make(activation):
        directory = tmp_path_factory.mktemp(activation)
        config = transformers.CLIPVisionConfig(
            image_size=SIZE, patch_size=PATCH, hidden_act=activation, **SHAPE
        )
        model = _randomised(transformers.CLIPVisionModel(config))
        model.save_pretrained(directory)
        return model, describe("clip", Inputs(Path(directory)))

    return {activation: make(activation) for activation in ("quick_gelu", "gelu")}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_those_of_transformers_before_the_last_norm(clip, frames, activation):
    """OpenFlamingo takes patch tokens before the last norm; the activation is the config's."""
    model, conversion = clip[activation]
    config = conversion.model.vit
    assert (config.features, config.final_norm) == ("patches", False)
    assert config.activation == {"quick_gelu": "quick_gelu", "gelu": "gelu_exact"}[activation]
    hidden = model(_normalised(frames, config.mean, config.std)).last_hidden_state
    ours = _ours(conversion, frames)
    _close(ours, hidden[:, 1:])
    # The two traps: either gives features without complaint, and measurably others.
    other = {"quick_gelu": "gelu_exact", "gelu_exact": "quick_gelu"}[config.activation]
    _differs(ours, _ours(conversion, frames, activation=other), by=1e-3)
    _differs(ours, model.post_layernorm(hidden[:, 1:]).detach().numpy(), by=0.1)


def test_class_token_comes_first_where_it_is_wanted(clip, frames):
    model, conversion = clip["gelu"]
    config = conversion.model.vit
    hidden = model(_normalised(frames, config.mean, config.std)).last_hidden_state
    _close(_ours(conversion, frames, features="class_and_patches"), hidden)


@pytest.mark.parametrize("size", [16, 40])
def test_another_image_size_interpolates_the_positions_as_transformers(clip, size):
    model, conversion = clip["quick_gelu"]
    frames = _frames(size)
    config = conversion.model.vit
    pixels = _normalised(frames, config.mean, config.std)
    _close(
        _ours(conversion, frames),
        model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:],
    )


def test_whole_clip_gives_its_image_tower_alone(tmp_path, frames):
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 8,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = {"image_size": SIZE, "patch_size": PATCH, **SHAPE}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    )
    _randomised(model).save_pretrained(tmp_path)
    fit = {"do_center_crop": False, "image_mean": MEAN, "image_std": STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fit))
    conversion = describe("clip", Inputs(Path(tmp_path), options={"features": "class"}))
    assert conversion.kind == "vision"
    assert conversion.preprocessing == {
        "image_size": SIZE,
        "image_fit": "squash",
        "background": "white",
    }
    pooled = model.vision_model(_normalised(frames, MEAN, STD)).pooler_output
    _close(_ours(conversion, frames), pooled[:, None])


@pytest.fixture(scope="module")
def open_clips():
    """{quick_gelu: open_clip's model}."""
    library = stand_ins.load("open_clip")
    torch.set_num_threads(1)
    make = lambda quick, size: library.CLIP(
        8, {**VISION, "image_size": size}, TEXT, quick_gelu=quick, output_dict=True
    )
    return {quick: _randomised(make(quick, SIZE)) for quick in (True, False)}, make


def _saved(directory, model, quick):
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    described = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT} | (
        {"quick_gelu": True} if quick else {}
    )
    described = {"model_cfg": described, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (directory / "open_clip_config.json").write_text(json.dumps(described))


@pytest.mark.parametrize("quick", [True, False])
def test_features_are_those_of_open_clip(tmp_path, open_clips, frames, quick):
    """open_clip returns tokens after the last norm since release 2.23, before it until then."""
    model = open_clips[0][quick]
    _saved(tmp_path, model, quick)
    visual, pixels = model.visual, _normalised(frames, MEAN, STD)
    visual.output_tokens = True
    with_norm = visual(pixels)[1]
    norm, visual.ln_post = visual.ln_post, torch.nn.Identity()
    without = visual(pixels)[1]
    visual.ln_post, visual.output_tokens = norm, False

    conversion = describe("open_clip", Inputs(Path(tmp_path)))
    assert conversion.preprocessing == {
        "image_size": SIZE,
        "image_fit": "crop",
        "background": "none",
    }
    _close(_ours(conversion, frames), without)
    behind = describe("open_clip", Inputs(Path(tmp_path), options={"features": "class"}))
    _close(_ours(behind, frames, features="patches"), with_norm)


@pytest.mark.parametrize("size", [16, 40])
def test_another_image_size_interpolates_the_positions_as_open_clip(tmp_path, open_clips, size):
    models, make = open_clips
    _saved(tmp_path, models[True], quick=True)
    resized, state = make(True, size).eval(), models[True].state_dict()  # noqa: FBT003
    stand_ins.load("open_clip.model").resize_pos_embed(state, resized)
    resized.load_state_dict(state)
    resized.visual.output_tokens, frames = True, _frames(size)
    conversion = describe("open_clip", Inputs(Path(tmp_path), options={"features": "class"}))
    _close(
        _ours(conversion, frames, features="patches"),
        resized.visual(_normalised(frames, MEAN, STD))[1],
    )


def test_weights_without_a_config_need_the_activation(open_clips):
    """OpenAI's layout, with numbers in the file that are not weights."""
    make = stand_ins.load("open_clip").CLIP
    model = make(8, {**VISION, "width": 64, "head_width": 64}, TEXT)
    files = InMemory({name: weight.numpy() for name, weight in model.state_dict().items()})
    with pytest.raises(ConversionError, match="activation = None, expected quick_gelu"):
        open_clip.config_of_weights(files, None, features="patches")
    expected = ViTConfig(PATCH, 64, 2, 1, 128, SIZE, interpolation="antialiased")
    made = open_clip.config_of_weights(files, "quick_gelu", features="patches", heads=1)
    assert made == expected
    with pytest.raises(ConversionError, match=r"no visual\.transformer in them"):
        open_clip.config_of_weights(InMemory({}), "quick_gelu", features="patches")


@pytest.mark.parametrize("form", ["", "quickgelu_"])
def test_features_are_those_of_timm(tmp_path, frames, form):
    timm, architecture = stand_ins.load("timm"), f"vit_base_patch16_clip_{form}224"
    shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 2, "num_classes": 3}
    model = _randomised(timm.create_model(architecture, **shape))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    described = {"architecture": architecture, "pretrained_cfg": {"mean": MEAN, "std": STD}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    conversion = describe("timm_vit", Inputs(Path(tmp_path), options={"features": "class"}))
    tokens = model.forward_features(_normalised(frames, MEAN, STD))
    _close(_ours(conversion, frames, features="class_and_patches"), tokens)


def test_a_converted_tower_gives_the_features_of_images(clip, tmp_path):
    """From the publisher's files to the features that retrieval compares.

    Cropped, normalised, encoded, the mean over patches.
    """
    model, conversion = clip["quick_gelu"]
    export = writing.write(conversion, tmp_path / "export")
    encoder = VisionEncoder.load(str(export), config=InferenceConfig(images_per_pass=2))
    picture = np.random.default_rng(5).integers(0, 256, (40, 48, 3), np.uint8)
    seen = fit(picture, SIZE, "crop")[None]
    config = conversion.model.vit
    hidden = model(_normalised(seen, config.mean, config.std)).last_hidden_state
    _close(encoder([picture]), hidden[:, 1:].mean(1))


BAD = {
    "another model": ("clip", {"model_type": "siglip"}, "model_type 'siglip'"),
    "another activation": (
        "clip",
        {"model_type": "clip_vision_model", "hidden_act": "relu"},
        "hidden_act 'relu'",
    ),
    "another architecture": ("timm_vit", {"architecture": "resnet50"}, "architecture 'resnet50'"),
    "another tower": (
        "open_clip",
        {"model_cfg": {"vision_cfg": {"timm_model_name": "x"}}},
        "timm_model_name",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_another_model_is_refused(tmp_path, case):
    source, config, message = BAD[case]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    name = "open_clip_config.json" if source == "open_clip" else "config.json"
    (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=message):
        describe(source, Inputs(Path(tmp_path)))
