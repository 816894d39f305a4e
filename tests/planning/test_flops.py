"""Model FLOPs against arithmetic by hand and against the paper's numbers."""

import dataclasses

import pytest

from configs import mixture
from flamingo_jax.core.config import from_dict
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.models import sizes
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.contrastive import ContrastiveConfig
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.nn.lora import LoRAConfig
from flamingo_jax.planning import flops
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import build_objective


def run(stage, model, datasets, image_size=320):
    config = TrainConfig(stage, 1, model, DataConfig("", image_size, datasets)).resolved(32_000)
    return config, build_objective(config, num_shards=1)


def of_flamingo(name, datasets, fills=None):
    parts = sizes.FLAMINGOS[name]
    model = ModelConfig(
        vision=parts.vision, lm=parts.lm, resampler=parts.resampler, xattn=parts.xattn
    )
    config, objective = run("flamingo", model, datasets)
    fills = fills or {key: flops.Fill.full(dataset, 1) for key, dataset in datasets.items()}
    return flops.of_update(config, objective, fills)


@pytest.mark.parametrize(
    ("variant", "size", "giga"),
    [
        ("F6", 320, 116.55),
        ("F6", 288, 94.44),
        ("F6", 576, 377.28),
        ("F0", 288, 15.67),
        ("F0", 320, 19.34),
    ],
)
def test_nfnet_as_its_authors_count(variant, size, giga):
    """Multiply-adds by the counter of the authors' repository, to the printed digits.

    The counter includes the classifier.
    """
    classifier = 3072 * 1000 / 1e9
    encoder = flops.vision_forward(sizes.NFNETS[variant], size) / 2e9
    assert encoder + classifier == pytest.approx(giga, abs=0.005)


def test_80b_on_the_ablation_batches():
    """(4 * 70.06 + 6 * 9.66) GFLOP for each of 100,352 tokens, and 2,816 frames.

    These are 33.9 PF and 0.66 PF, together 34.6 PF. In this rule of thumb all weights of
    cross-attention count per text token, and attention and the resampler do not count. Here keys
    and values count per visual token (2,368 inputs of 64), and attention and the resampler count.
    """
    datasets = from_dict(
        DataConfig, {"tokenizer": "", "image_size": 320, "datasets": mixture.datasets("", scale=1)}
    ).datasets
    found = of_flamingo("80B", datasets)
    assert (found.tokens, found.images) == (100_352, 2_368)
    assert found.flops["vision"] == pytest.approx(0.656e15, rel=1e-3)
    # Per pair of tokens: scores and values, and the scores of the relative positions.
    attention = 80 * 64 * 128 * 2 * (2 * 3 + 2)
    pairs = 256 * 256 * 257 / 2 + 1088 * 32 * 33 / 2
    assert found.flops["lm"] == pytest.approx(100_352 * 4 * 70.06e9 + pairs * attention, rel=1e-3)
    visual = 2_368 * 64
    matrix = 12 * 8192**2  # a layer has 12 D^2 weights, 2 D^2 of them for keys and values
    weights = 6 * matrix * (10 * 100_352 + 2 * visual)
    attended = 100_352 * 64 * 12 * 64 * 128 * 2 * 2 * 3
    projected = visual * 6 * 1536 * 8192
    assert found.flops["xattn"] == pytest.approx(weights + attended + projected, rel=1e-3)
    rule_of_thumb = 100_352 * (4 * 70.06e9 + 6 * 9.66e9) + found.flops["vision"]
    assert rule_of_thumb == pytest.approx(34.6e15, rel=2e-3)
    assert rule_of_thumb < found.total < 1.04 * rule_of_thumb


def test_language_model_by_hand():
    lm = dataclasses.replace(
        sizes.LMS["1.4B"],
        vocab_size=1000,
        num_layers=2,
        width=64,
        num_heads=4,
        position="rotary",
        mlp_bias=False,
    )
    dataset = DatasetConfig("text", "", batch_size=3, length=8)
    config, objective = run("language_model", ModelConfig(lm=lm), {"text": dataset})
    found = flops.of_update(config, objective, {"text": flops.Fill.full(dataset, 1)})
    # Matrices and norms, and the head without the 24 rows of padding.
    weights = 2 * (12 * 64**2 + 2 * 64) + 64 + 1000 * 64
    pairs = 3 * 8 * 9 / 2
    assert found.total == 6 * weights * 24 + pairs * 2 * 64 * 2 * 2 * 3


def test_a_grafted_stack_is_trained_and_counts_with_cross_attention():
    """Two layers and two blocks on the 3B's LM; pairs of 32 tokens, with one image of 64 tokens.

    Blocks have 13 D^2 weights and vectors, layers 12 D^2, of which 2 D^2 count per visual token.
    Without new tokens no gradient reaches the LM, in which only the head passes them on.
    """
    parts, width = sizes.FLAMINGOS["3B"], 2048
    dataset = DatasetConfig("pairs", "", batch_size=4, length=32)
    model = ModelConfig(
        vision=parts.vision,
        lm=parts.lm,
        resampler=parts.resampler,
        xattn=XattnConfig(grafted_layers=2),
    )
    found = {}
    for new_tokens in ((), ("<EOC>",)):
        changed = dataclasses.replace(model, new_tokens=new_tokens)
        config, objective = run("flamingo", changed, {"a": dataset})
        fills = {"a": flops.Fill.full(dataset, 1)}
        found[new_tokens] = flops.of_update(config, objective, fills).flops
    tokens, visual = 4 * 32, 4 * 64
    weights = 6 * width**2 * (2 * 13 * tokens + 2 * (10 * tokens + 2 * visual))
    pairs = 4 * 32 * 33 / 2
    attention = 2 * 2 * width * (pairs * (2 * 3 + 3) + tokens * 64 * 2 * 3)
    media = 6 * visual * 1536 * width
    for each in found.values():
        assert each["xattn"] == pytest.approx(weights + attention + media, rel=1e-3)
    frozen = 13 * width**2 * 24
    assert found[()]["lm"] / tokens == pytest.approx(2 * frozen + 4 * 32_000 * width, rel=2e-2)
    assert found["<EOC>",]["lm"] / tokens == pytest.approx(4 * (frozen + 32_000 * width), rel=2e-2)


def test_a_sliding_window_counts_the_pairs_within_it():
    """Rows of 8 tokens, without and with 2 tokens that were read before; a window of 3.

    Without the window a token attends 1 to 8 tokens, or 3 to 10. The window may be that of one of
    the two layers.
    """
    lm = dataclasses.replace(
        sizes.LMS["1.4B"], vocab_size=1000, num_layers=2, width=64, num_heads=4, position="rotary"
    )
    dataset = DatasetConfig("text", "", batch_size=3, length=8)
    found = []
    for window, every in ((0, 0), (3, 0), (3, 2)):
        options = {"sliding_window": window, "global_every": every}
        model = ModelConfig(lm=dataclasses.replace(lm, **options))
        config, objective = run("language_model", model, {"text": dataset})
        fill = flops.Fill.full(dataset, 1)
        update = flops.of_update(config, objective, {"text": fill})
        found.append((update.total, flops.of_inference(config, objective, fill, cached=2).total))
    pair = 2 * 64 * 2 * 2  # both layers, scores and values
    assert found[0][0] - found[1][0] == 3 * sum(max(t - 3, 0) for t in range(1, 9)) * pair * 3
    assert found[0][1] - found[1][1] == 3 * sum(max(t - 3, 0) for t in range(3, 11)) * pair
    for whole, windowed, half in zip(*found, strict=True):
        assert whole - windowed == 2 * (whole - half) > 0


def test_only_real_tokens_and_images_count():
    pairs = {"pairs": DatasetConfig("pairs", "", batch_size=8, length=32)}
    full = of_flamingo("3B", pairs)
    half = of_flamingo("3B", pairs, {"pairs": flops.Fill(rows=8, tokens=16, images=4, frames=1)})
    assert half.tokens == full.tokens / 2
    assert half.flops["vision"] == full.flops["vision"] / 2
    assert half.flops["resampler"] == full.flops["resampler"] / 2
    assert 0.49 < half.flops["lm"] / full.flops["lm"] < 0.5  # attention falls faster


def test_text_among_flamingos_datasets_needs_the_dense_parts_alone():
    """The language model, and 8 D^2 weights of each layer with their norm and gate."""
    found = of_flamingo("3B", {"text": DatasetConfig("text", "", batch_size=4, length=64)})
    assert (found.tokens, found.images) == (256, 0)
    assert found.flops["vision"] == found.flops["resampler"] == 0
    lm = sizes.FLAMINGOS["3B"].lm
    dense = lm.num_layers * (8 * lm.width**2 + 2 * lm.width + 1)
    assert found.flops["xattn"] == 6 * 256 * dense
    pairs = of_flamingo("3B", {"pairs": DatasetConfig("pairs", "", batch_size=4, length=64)})
    assert found.flops["lm"] == pairs.flops["lm"]


def test_frozen_towers_have_no_backward_and_no_recomputation():
    """A text token of 3B needs 4 FLOPs per frozen weight; twice the rows need twice the FLOPs."""
    one = of_flamingo("3B", {"a": DatasetConfig("pairs", "", batch_size=4, length=32)})
    two = of_flamingo("3B", {"a": DatasetConfig("pairs", "", batch_size=8, length=32)})
    assert two.total == pytest.approx(2 * one.total)
    assert one.flops["vision"] == 4 * flops.vision_forward(sizes.NFNETS["F6"], 320)
    lm = sizes.FLAMINGOS["3B"].lm
    weights = 13 * lm.width**2 * lm.num_layers + 32_000 * lm.width
    assert one.flops["lm"] / (4 * 32 * weights) == pytest.approx(4.0, rel=3e-3)


def test_a_language_model_that_is_trained_needs_the_gradients_of_its_weights():
    """2 FLOPs more for each token and weight; the rest of the model needs what it needed."""
    parts, dataset = sizes.FLAMINGOS["3B"], DatasetConfig("pairs", "", batch_size=4, length=32)
    model = ModelConfig(
        vision=parts.vision, lm=parts.lm, resampler=parts.resampler, xattn=parts.xattn
    )
    needed = []
    for unfrozen in ((), ("lm",)):
        config = TrainConfig("flamingo", 1, model, DataConfig("", 320, {"a": dataset}))
        config = dataclasses.replace(config, unfrozen=unfrozen).resolved(32_000)
        objective = build_objective(config, num_shards=1)
        found = flops.of_update(config, objective, {"a": flops.Fill.full(dataset, 1)})
        needed.append(dict(found.flops))
    frozen, trained = needed
    lm = parts.lm
    # Matrices with that of relative positions, biases and norms of a block, the last norm.
    weights = lm.num_layers * (13 * lm.width**2 + 9 * lm.width) + lm.width + 32_000 * lm.width
    relative = 4 * 32 * 33 / 2 * 2 * lm.num_layers * lm.width
    assert trained.pop("lm") - frozen.pop("lm") == 4 * 32 * 2 * weights + relative
    assert trained == frozen


def test_adapters_are_trained_and_the_weights_that_they_are_for_are_not():
    """6 FLOPs for each token and weight of an adapter; the rest needs what it needed."""
    parts, dataset = sizes.FLAMINGOS["3B"], DatasetConfig("pairs", "", batch_size=4, length=32)
    needed = []
    for lora in (None, LoRAConfig(rank=4, targets=("query", "down"))):
        lm = dataclasses.replace(parts.lm, lora=lora)
        model = ModelConfig(
            vision=parts.vision, lm=lm, resampler=parts.resampler, xattn=parts.xattn
        )
        config = TrainConfig(
            "flamingo",
            1,
            model,
            DataConfig("", 320, {"a": dataset}),
            unfrozen=("lm.lora",) if lora else (),
        ).resolved(32_000)
        objective = build_objective(config, num_shards=1)
        found = flops.of_update(config, objective, {"a": flops.Fill.full(dataset, 1)})
        needed.append(dict(found.flops))
    frozen, adapted = needed
    adapters = parts.lm.num_layers * 4 * (2 + 5) * parts.lm.width
    assert adapted.pop("lm") - frozen.pop("lm") == 4 * 32 * 6 * adapters
    assert adapted == frozen


def test_pool_of_images_bounds_what_is_real():
    pages = DatasetConfig("interleaved", "", batch_size=16, length=256, max_images=5, pool=6)
    assert flops.Fill.full(pages, num_shards=4).images == 4 * 6  # of 16 x 5 slots
    assert flops.Fill.full(dataclasses.replace(pages, pool=None), num_shards=4).images == 80


def test_contrastive_trains_both_towers():
    text = dataclasses.replace(sizes.TEXT_ENCODERS["tiny"], num_layers=2, width=32, num_heads=2)
    model = ModelConfig(
        vision=sizes.NFNETS["tiny"], text_encoder=text, contrastive=ContrastiveConfig(joint_dim=8)
    )
    dataset = DatasetConfig("captions", "", batch_size=6, length=10)
    config, objective = run("contrastive", model, {"captions": dataset}, image_size=32)
    found = flops.of_update(config, objective, {"captions": flops.Fill.full(dataset, 1)})
    assert found.flops["vision"] == 3 * 6 * flops.vision_forward(sizes.NFNETS["tiny"], 32)
    # Matrices, biases of q, k, v and out, biases of the feed-forward layer, two norms.
    block = 12 * 32**2 + 4 * 32 + (4 + 1) * 32 + 4 * 32
    assert found.flops["text"] == 6 * 60 * (2 * block + 2 * 32) + 6 * 10**2 * 2 * 2 * 32 * 2 * 3
    projections, similarities = 6 * 6 * 8 * (32 + sizes.NFNETS["tiny"].width), 3 * 2 * 6**2 * 8
    assert found.flops["contrastive"] == projections + similarities


def test_inference_is_forward_only():
    parts = sizes.FLAMINGOS["3B"]
    model = ModelConfig(
        vision=parts.vision, lm=parts.lm, resampler=parts.resampler, xattn=parts.xattn
    )
    dataset = DatasetConfig("pairs", "", batch_size=4, length=32)
    config, objective = run("flamingo", model, {"a": dataset})
    fill = flops.Fill(rows=4, tokens=32, images=4, frames=1)
    read = flops.of_inference(config, objective, fill)
    trained = flops.of_update(config, objective, {"a": fill})
    assert read.flops["vision"] == trained.flops["vision"]
    assert read.flops["xattn"] == pytest.approx(trained.flops["xattn"] / 3)
    assert read.flops["lm"] == pytest.approx(trained.flops["lm"] / 2, rel=1e-2)
    token = flops.Fill(rows=4, tokens=1, images=0, frames=1)
    one = flops.of_inference(config, objective, token, cached=32)
    assert one.flops["vision"] == one.flops["resampler"] == 0
    assert one.flops["lm"] == pytest.approx(read.flops["lm"] / 32, rel=1e-2)
