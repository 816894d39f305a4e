"""CLIP whole, both towers, against transformers and open_clip.

Random weights and a small tokenizer, through the publishers' own files.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

pytest.importorskip("scipy")

from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.publishers import Inputs, describe
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.conversion.writing import write
from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.run import run
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.dual_encoder import DualEncoder
from tests.evaluation.fixtures import coco, imagenet
from tests.parity import stand_ins

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

SIZE, LENGTH, JOINT = 32, 8, 12
WORDS = (
    "a",
    "photo",
    "of",
    "cat",
    "dog",
    "red",
    "[unknown]",
    "<start>",
    "<end>",
)  # <end> has the highest id, as in CLIP
# one too long, one without words
TEXTS = ("a photo of a cat", "red dog", "a red photo of a red dog and of a cat", "")
VISION = {
    "image_size": SIZE,
    "patch_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
}
TEXT = {
    "vocab_size": 9,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
OPEN_VISION = {
    "image_size": SIZE,
    "patch_size": 8,
    "layers": 2,
    "width": 16,
    "head_width": 8,
    "mlp_ratio": 4.0,
}
OPEN_TEXT = {"context_length": LENGTH, "vocab_size": 9, "width": 24, "heads": 3, "layers": 2}


@pytest.fixture(scope="module")
def frames():
    torch.set_num_threads(1)
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def write_tokenizer(directory):
    """Lower-cased words, with CLIP's manner of padding: with what ends a text."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[unknown]")
    )
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<start>", "<end>"])
    made.save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<end>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))


def ids():
    """TEXTS as CLIP's tokenizers make them: cut so that the end stays, filled with ends."""
    rows = [
        [7, *(WORDS.index(word) if word in WORDS else 6 for word in text.split()), 8]
        for text in TEXTS
    ]
    rows = [row if len(row) <= LENGTH else [*row[: LENGTH - 1], 8] for row in rows]
    return torch.tensor([row + [8] * (LENGTH - len(row)) for row in rows])


def normalised(frames, config):
    pixels = (frames / 255 - np.array(config.mean)) / np.array(config.std)
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def randomised(model):
    """No weight small or at its initial value: a lost bias, norm or scale would show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            around = 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0
            scale = 0.3 if weight.ndim < 2 else 2 * weight[0].numel() ** -0.5
            weight.copy_(around + scale * torch.randn(weight.shape, generator=generator))
    return model.eval()


def encoder(conversion):
    tokenizer = conversion.tokenizer.loaded
    config = InferenceConfig(images_per_pass=4)
    params = load_params(conversion)
    return DualEncoder(
        conversion.model, params, tokenizer, preprocessing=conversion.preprocessing, config=config
    )


def check(model, frames, *, images, texts, logits):
    """1e-4: float32 through two blocks each.

    Embeddings have length 1, logits are up to 3 times a cosine here.
    """
    v, t = model.images(list(frames)), model.texts(TEXTS)
    np.testing.assert_allclose(v, images.detach(), atol=1e-4)
    np.testing.assert_allclose(t, texts.detach(), atol=1e-4)
    np.testing.assert_allclose(model.inverse_temperature * v @ t.T, logits.detach(), atol=1e-4)
    assert np.abs(t - t[0]).max(axis=1)[1:].min() > 0.1  # the texts are told apart


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """{activation: (transformers' CLIPModel, the directory of its files)}."""

    def make(activation):
        directory = tmp_path_factory.mktemp(activation)
        vision = transformers.CLIPVisionConfig(
            **VISION, intermediate_size=64, hidden_act=activation
        )
        special = {"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 8}
        text = transformers.CLIPTextConfig(
            **TEXT, max_position_embeddings=LENGTH, hidden_act=activation, **special
        )
        both = {
            "text_config": text.to_dict(),
            "vision_config": vision.to_dict(),
            "projection_dim": JOINT,
        }
        model = randomised(transformers.CLIPModel(transformers.CLIPConfig(**both)))
        model.save_pretrained(directory)
        write_tokenizer(directory)
        return model, directory

    return {activation: make(activation) for activation in ("quick_gelu", "gelu")}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_and_logits_are_those_of_transformers(clip, frames, activation):
    model, directory = clip[activation]
    conversion = describe("clip", Inputs(Path(directory), options={"towers": "both"}))
    assert conversion.kind == "contrastive"
    theirs = model(input_ids=ids(), pixel_values=normalised(frames, conversion.model.vit))
    found = {
        "images": theirs.image_embeds,
        "texts": theirs.text_embeds,
        "logits": theirs.logits_per_image,
    }
    check(encoder(conversion), frames, **found)


def test_the_export_is_evaluated_like_the_files(clip, frames, tmp_path):
    """Tokenizer and preprocessing come along; bfloat16 is close.

    0.05 of embeddings of length 1, its 8 bits through two blocks.
    """
    _, directory = clip["gelu"]
    conversion = describe("clip", Inputs(Path(directory), options={"towers": "both"}))
    loaded = DualEncoder.load(
        write(conversion, tmp_path / "export"), config=InferenceConfig(images_per_pass=4)
    )
    own = encoder(conversion)
    np.testing.assert_array_equal(loaded.texts(TEXTS), own.texts(TEXTS))
    np.testing.assert_array_equal(loaded.images(list(frames)), own.images(list(frames)))
    half = DualEncoder.load(
        tmp_path / "export", config=InferenceConfig(images_per_pass=4, compute="bfloat16")
    )
    np.testing.assert_allclose(half.texts(TEXTS), own.texts(TEXTS), atol=0.05)
    assert jnp.isclose(half.inverse_temperature, own.inverse_temperature)


def test_an_imported_clip_is_evaluated(clip, tmp_path):
    """Files of the publisher -> export -> results.json.

    Classification and retrieval, with CLIP's own cut of the image.
    """
    _, directory = clip["quick_gelu"]
    conversion = describe("clip", Inputs(Path(directory), options={"towers": "both"}))
    assert conversion.preprocessing == {
        "image_size": SIZE,
        "image_fit": "crop",
        "background": "white",
    }
    imagenet.make_imagenet(tmp_path / "imagenet")
    coco.make_coco(tmp_path / "coco")
    data = {name: str(tmp_path / name) for name in ("imagenet", "coco")}
    tasks = ("imagenet_zero_shot", "coco_retrieval")
    config = EvaluateConfig(
        tasks=tasks, n=0, data=data, inference=InferenceConfig(images_per_pass=4)
    )
    run(
        config,
        str(write(conversion, tmp_path / "export")),
        str(tmp_path / "report"),
        Cluster("off"),
    )
    rows = paths.read_json(tmp_path / "report" / "results.json")
    assert [(row["task"], row["n"]) for row in rows] == [("imagenet_zero_shot", 3)] * 2 + [
        ("coco_retrieval", 3)
    ] * 6
    values = {row["metric"]: row["value"] for row in rows}
    # there are three images, and four classes
    assert values["text_to_image_recall_at_5"] == values["top5"] == 1.0
    assert "contrastive NFNet-F6 | 77.9 | -" in (tmp_path / "report" / "table.md").read_text()


@pytest.mark.parametrize("quick", [True, False])
def test_embeddings_and_logits_are_those_of_open_clip(tmp_path, frames, quick):
    library = stand_ins.load("open_clip")
    model = randomised(library.CLIP(JOINT, OPEN_VISION, OPEN_TEXT, quick_gelu=quick))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    described = {
        "embed_dim": JOINT,
        "vision_cfg": OPEN_VISION,
        "text_cfg": OPEN_TEXT,
        "quick_gelu": quick,
    }
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": described, "preprocess_cfg": {}})
    )
    write_tokenizer(tmp_path)
    conversion = describe("open_clip", Inputs(Path(tmp_path), options={"towers": "both"}))
    images = model.encode_image(normalised(frames, conversion.model.vit), normalize=True)
    texts = model.encode_text(ids(), normalize=True)
    check(
        encoder(conversion),
        frames,
        images=images,
        texts=texts,
        logits=model.logit_scale.exp() * images @ texts.T,
    )


def test_what_both_towers_need_is_said(clip, tmp_path):
    _, directory = clip["gelu"]
    with pytest.raises(ConversionError, match="towers is 'text'; expected vision or both"):
        describe("clip", Inputs(Path(directory), options={"towers": "text"}))
    with pytest.raises(ConversionError, match="features is an option of the image tower alone"):
        describe("clip", Inputs(Path(directory), options={"towers": "both", "features": "patches"}))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    with pytest.raises(
        ConversionError, match=r"There is no tokenizer\.json in .*, and the text tower needs it"
    ):
        describe("clip", Inputs(Path(tmp_path), options={"towers": "both"}))
