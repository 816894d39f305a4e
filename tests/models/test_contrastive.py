"""The two-tower model and its two-term loss."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.models.contrastive import (
    Contrastive,
    ContrastiveConfig,
    contrastive_loss,
    same_caption,
)
from flamingo_jax.models.nfnet import NFNet, NFNetConfig, normalise
from flamingo_jax.models.text_encoder import TextEncoder, TextEncoderConfig

VISION = NFNetConfig(
    widths=(8,),
    depths=(1,),
    strides=(2,),
    stem_channels=(4,),
    stem_strides=(2,),
    se_ratio=None,
    final_multiplier=None,
)
TEXT = TextEncoderConfig(vocab_size=8, num_layers=1, width=6, num_heads=2, max_length=4)
CONFIG = ContrastiveConfig(joint_dim=5, initial_temperature=8.0)
TOKENS = jnp.array([[1, 2, 0, 0], [3, 4, 5, 6], [1, 2, 0, 0]])
SEGMENT = (TOKENS > 0).astype(jnp.int32)
FRAMES = jnp.asarray(np.random.default_rng(0).integers(256, size=(3, 1, 8, 8, 3)), jnp.uint8)


@pytest.fixture(scope="module")
def network():
    return hk.without_apply_rng(
        hk.transform(lambda *batch: Contrastive(VISION, TEXT, CONFIG)(*batch))
    )


@pytest.fixture(scope="module")
def params(network):
    """Random weights, nothing at its initial value but the temperature."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(network.init, jax.random.key(0), FRAMES, TOKENS, SEGMENT)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.2, 0.5, size=leaf.shape), jnp.float32), shapes
    )
    return {**params, "contrastive": {"log_temperature": jnp.log(8.0)}}


@pytest.fixture(scope="module")
def apply(network):
    return jax.jit(network.apply)


@pytest.fixture(scope="module")
def embeddings():
    """Four pairs on the unit sphere."""
    v, t = np.random.default_rng(1).normal(size=(2, 4, 6))
    return v / np.linalg.norm(v, axis=-1, keepdims=True), t / np.linalg.norm(
        t, axis=-1, keepdims=True
    )


def test_embeddings_are_the_projected_means_of_the_two_towers(params, apply):
    """Tolerance 1e-5: float32 values below 1."""
    v, t, beta = apply(params, FRAMES, TOKENS, SEGMENT)

    def tower(name, function):
        weights = {
            m.removeprefix("contrastive/"): w
            for m, w in params.items()
            if m.startswith(f"contrastive/{name}")
        }
        return np.asarray(
            jax.jit(hk.without_apply_rng(hk.transform(function)).apply)(weights), np.float64
        )

    grid = tower("vision", lambda: NFNet(VISION)(normalise(FRAMES[:, 0])))
    words = tower("text", lambda: TextEncoder(TEXT)(TOKENS, SEGMENT))
    expected_v = grid.mean((1, 2)) @ params["contrastive/vision_projection"]["w"]
    expected_t = (
        np.stack([words[0, :2].mean(0), words[1].mean(0), words[2, :2].mean(0)])
        @ params["contrastive/text_projection"]["w"]
    )
    np.testing.assert_allclose(
        v, expected_v / np.linalg.norm(expected_v, axis=-1, keepdims=True), atol=1e-5
    )
    np.testing.assert_allclose(
        t, expected_t / np.linalg.norm(expected_t, axis=-1, keepdims=True), atol=1e-5
    )
    np.testing.assert_allclose(beta, 8.0, rtol=1e-6)


def test_padding_of_the_caption_has_no_influence(params, apply):
    _, t, _ = apply(params, FRAMES, TOKENS, SEGMENT)
    _, other, _ = apply(params, FRAMES, TOKENS.at[0, 2:].set(7), SEGMENT)
    np.testing.assert_array_equal(t, other)


def test_loss_is_the_sum_of_the_papers_two_terms(embeddings):
    """Tolerance 1e-5: float32 against float64 on values of order 1."""
    v, t = embeddings
    terms = []
    for queries, keys in ((t, v), (v, t)):
        probabilities = np.exp(7.0 * queries @ keys.T)
        probabilities /= probabilities.sum(1, keepdims=True)
        terms.append(-np.log(np.diag(probabilities)).mean())
    loss, metrics = contrastive_loss(*map(jnp.float32, (v, t, 7.0)), label_smoothing=0.0)
    np.testing.assert_allclose(metrics["text_to_image_loss"], terms[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["image_to_text_loss"], terms[1], rtol=1e-5)
    np.testing.assert_allclose(loss, sum(terms), rtol=1e-5)


def test_smoothed_labels_and_equal_captions_set_the_targets(embeddings):
    """The gradient of a cross-entropy by its logits is softmax - target.

    Read the targets off with all logits equal.

    Tolerance 1e-6: float32 on values of order 0.1.
    """
    same = jnp.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    basis = jnp.eye(4)  # image j is the j-th axis: a text is its own row of logits

    def loss(t):
        return contrastive_loss(basis, t, jnp.float32(1), label_smoothing=0.1, same=same)[1][
            "text_to_image_loss"
        ]

    targets = 0.25 - 4 * jax.grad(loss)(jnp.zeros((4, 4)))
    expected = (
        0.9 * np.array([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]) + 0.1 / 4
    )
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_recall_counts_rows_whose_best_match_is_a_positive():
    v = jnp.eye(3)
    # text 1 is closest to image 0; image 1 has equal distances
    t = jnp.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    _, metrics = contrastive_loss(v, t, jnp.float32(1), label_smoothing=0.0)
    np.testing.assert_allclose(metrics["text_to_image_recall"], 2 / 3, rtol=1e-6)
    same = jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    _, metrics = contrastive_loss(v, t, jnp.float32(1), label_smoothing=0.0, same=same)
    np.testing.assert_allclose(metrics["text_to_image_recall"], 1.0)


def test_same_caption_compares_all_tokens():
    tokens = TOKENS.at[1].set(jnp.array([1, 2, 0, 3]))
    np.testing.assert_array_equal(same_caption(tokens), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_every_weight_and_the_temperature_get_a_gradient(network, params):
    def loss(params):
        v, t, beta = network.apply(params, FRAMES, TOKENS, SEGMENT)
        return contrastive_loss(v, t, beta, label_smoothing=0.1, same=same_caption(TOKENS))[0]

    gradient = jax.jit(jax.grad(loss))(params)
    # The bias of the keys shifts all scores of a softmax alike: its gradient is 0 but for rounding.
    silent = {path for path, leaf in trees.flatten(gradient).items() if np.abs(leaf).max() < 1e-8}
    assert silent <= {"contrastive/text/layers/key/b"}


def test_temperature_starts_at_its_configured_value():
    init = hk.transform(lambda *batch: Contrastive(VISION, TEXT, CONFIG)(*batch)).init
    start = jax.jit(
        lambda key: init(key, FRAMES, TOKENS, SEGMENT)["contrastive"]["log_temperature"]
    )(jax.random.key(0))
    np.testing.assert_allclose(start, np.log(8.0), rtol=1e-6)


def test_config_is_what_the_paper_says_by_default():
    assert dataclasses.asdict(ContrastiveConfig()) == {
        "joint_dim": 1376,
        "initial_temperature": 10.0,
        "label_smoothing": 0.1,
        "duplicates": "negatives",
        "text_pooling": "mean",
        "chunk": 0,
    }
