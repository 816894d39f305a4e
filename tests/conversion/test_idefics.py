"""Conversion of IDEFICS: the table at published sizes, the config, and files of other models."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

from flamingo_jax.conversion import idefics, mapping, published_tokenizer
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.data.interleave import IMAGE, attend_next, tag_of, tokenise
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from flamingo_jax.training.config import TrainConfig
from tests.conversion.described import Described, shapes_of

PUBLISHED = {  # config.json of the hub, without fields that have the default of their class
    "model_type": "idefics",
    "additional_vocab_size": 2,
    "cross_layer_interval": 4,
    "qk_layer_norms": True,
    "use_resampler": True,
    "perceiver_config": {"qk_layer_norms_perceiver": True, "use_resampler": True},
    "vision_config": {"embed_dim": 1280},
}
LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 22_016,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
SIZES = {
    "idefics_9b": (PUBLISHED, 8_929_677_072),
    "idefics_80b": (PUBLISHED | LARGE, 79_967_841_064),
}
ADDED = {0: "<unk>", 32_000: idefics.AROUND, 32_001: "<image>"}


def their_shapes(config):
    import transformers

    return shapes_of(transformers.IdeficsForVisionText2Text, config)


@pytest.mark.parity
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_map_one_to_one_and_count_exactly(name):
    """All weights but CLIP's last norm are read; the model is that of our config for IDEFICS."""
    config, count = SIZES[name]
    shapes = their_shapes(config)
    described = idefics.describe(config, Described(shapes), ADDED)
    plan = mapping.plan(described)
    assert sorted(plan.skipped) == [
        f"model.vision_model.post_layernorm.{part}" for part in ("bias", "weight")
    ]
    assert sum(np.prod(weight.shape) for weight in plan.weights) == count
    assert sum(np.prod(leaf.shape) for leaf in shapes.values()) == count + 2 * 1280
    assert {str(weight.dtype) for weight in plan.weights} == {"bfloat16"}
    further = from_dict(TrainConfig, importlib.import_module(f"configs.{name}").get_config()).model
    assert dataclasses.replace(
        described.model, lm=dataclasses.replace(described.model.lm, remat=further.lm.remat)
    ) == (further.of_stage("flamingo"))


TINY = {
    "model_type": "idefics",
    "vocab_size": 32,
    "additional_vocab_size": 3,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "use_resampler": True,
    "perceiver_config": {
        "resampler_n_latents": 2,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 4,
    },
    "vision_config": {
        "embed_dim": 8,
        "image_size": 28,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
TINY_ADDED = {32: idefics.AROUND, 33: "<image>", 34: idefics.END_OF_UTTERANCE}


@pytest.fixture(scope="module")
def tiny_shapes():
    return their_shapes(TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; supported is 'idefics'"),
        ({"use_resampler": False}, "use_resampler is False; supported is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; supported is False"),
        ({"alpha_type": "matrix"}, "alpha_type is 'matrix'; supported is 'float' or 'vector'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported is 'silu'"),
        (
            {"cross_layer_interval": 3},
            "cross_layer_interval is 3, which does not divide num_hidden_layers 2",
        ),
        ({"vision_config": TINY["vision_config"] | {"hidden_act": "swish"}}, "hidden_act 'swish'"),
        ({"additional_vocab_size": 0}, "'<fake_token_around_image>' is not among them"),
    ],
)
def test_another_config_is_refused(tiny_shapes, change, message):
    with pytest.raises(ConversionError, match=message):
        idefics.describe(TINY | change, Described(tiny_shapes), TINY_ADDED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qk_layer_norms": True},
            r"Only expected \(4\): .*gated_cross_attn_layers.0.cross_attn.k_layer_norm.weight",
        ),
        ({"num_hidden_layers": 1}, r"Only in the files \(\d+\): .*gated_cross_attn_layers.1"),
        ({"intermediate_size": 16}, "other shapes than the model"),
        ({"alpha_type": "vector"}, r"alpha_cross_attn \(1,\): .*expected \(8,\)"),
    ],
)
def test_a_config_of_other_weights_is_refused_with_names_on_both_sides(
    tiny_shapes, change, message
):
    with pytest.raises(ConversionError, match=message):
        mapping.plan(idefics.describe(TINY | change, Described(tiny_shapes), TINY_ADDED))


def test_weights_of_an_older_transformers_are_named_and_left(tiny_shapes):
    """It stored values that follow from the config: rotary frequencies and position ids."""
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": jax.ShapeDtypeStruct((2,), np.float32),
        "model.gated_cross_attn_layers.1.cross_attn.rotary_emb.inv_freq": jax.ShapeDtypeStruct(
            (2,), np.float32
        ),
        "model.vision_model.embeddings.position_ids": jax.ShapeDtypeStruct((1, 5), np.int64),
    }
    plan = mapping.plan(idefics.describe(TINY, Described(tiny_shapes | old), TINY_ADDED))
    assert set(old) <= set(plan.skipped)


def test_added_tokens_are_read_from_each_of_the_publishers_files(tmp_path):
    forms = {
        "tokenizer.json": {"added_tokens": [{"id": 32, "content": "<a>", "special": True}]},
        "tokenizer_config.json": {
            "added_tokens_decoder": {"33": {"content": "<b>"}},
            "bos_token": "<s>",
        },
        "added_tokens.json": {"<c>": 34},
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert published_tokenizer.added_tokens(Path(tmp_path)) == {32: "<a>", 33: "<b>", 34: "<c>"}
    (tmp_path / "added_tokens.json").write_text("[1]")
    with pytest.raises(ConversionError, match="added_tokens.json holds a list; expected an object"):
        published_tokenizer.added_tokens(Path(tmp_path))


def test_an_option_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="unseen is 'none'; expected one of zero, average"):
        idefics.conversion(Inputs(Path(tmp_path), options={"unseen": "none"}))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of letters and bytes, with LLaMA's piece for a line break."""
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    train_sentencepiece(["User: what is it? a cat Assistant:"] * 4, path, 290, model_type="bpe")
    return path.read_bytes()


def tokenizer(content, added):
    return SentencePieceTokenizer(content, added, idefics.markers(added, 0))


def test_an_answer_ends_with_the_line_or_with_the_utterance(words):
    base = tokenizer(words, (idefics.AROUND, "<image>"))
    instruct = tokenizer(words, (idefics.AROUND, "<image>", idefics.END_OF_UTTERANCE))
    assert base.eoc_id == base.encode("a cat\n")[-1] == base.encode("a cat<EOC>")[-1]
    assert base.encode("a cat<EOC>") == base.encode("a cat\n")
    assert (
        instruct.eoc_id
        == instruct.id(idefics.END_OF_UTTERANCE)
        == instruct.encode("a cat<EOC>")[-1]
    )


def test_adjacent_images_share_a_sign_and_no_chunk_is_closed(words):
    pieces = tokenizer(words, (idefics.AROUND, "<image>"))
    tokens, phi = tokenise(["what", IMAGE, IMAGE, "is it?"], pieces)
    around, image = pieces.id(idefics.AROUND), pieces.id("<image>")
    start = 1 + len(pieces.encode("what"))
    assert (
        tokens[0] == pieces.bos_id and tokens[-1] == pieces.eos_id and pieces.eoc_id not in tokens
    )
    assert tokens[start : start + 5].tolist() == [around, image, around, image, around]
    assert phi[: start + 6].tolist() == [0] * (start + 1) + [1, 1, 2, 2, 2]
    # If text attends to the next image, so does the token that opens a tag.
    following = attend_next(phi, len(tag_of(pieces).own))
    assert following[: start + 6].tolist() == [1] * (start + 1) + [1, 1, 2, 2, 0]
