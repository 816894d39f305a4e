"""The Perceiver Resampler against numpy: masked frames, interpolated time, sizes; other kinds."""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, FieldError
from flamingo_jax.core.params import axes_of
from flamingo_jax.core.precision import Policy
from flamingo_jax.models.resampler import Resampler, ResamplerConfig

CONFIG = ResamplerConfig(
    num_layers=2, width=8, num_heads=2, head_dim=6, num_latents=3, num_time_embeddings=4
)
E = 10  # channels of the encoder


def _network(config=CONFIG):
    return hk.without_apply_rng(hk.transform(lambda x, mask: Resampler(config)(x, mask)))


def _random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.2, 0.5, size=leaf.shape), jnp.float32), tree
    )


@pytest.fixture(scope="module")
def features():
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, 4, 5, E)), jnp.float32)


@pytest.fixture(scope="module")
def frame_mask():
    return jnp.array([[True, True, True, False], [True, False, False, False]])


@pytest.fixture(scope="module")
def params(features, frame_mask):
    return _random(jax.eval_shape(_network().init, jax.random.key(0), features, frame_mask))


@pytest.fixture(scope="module")
def apply():
    return jax.jit(_network().apply)


def _reference(w, x, frame_mask):
    """Numpy float64, one video, one head and one latent at a time."""

    def norm(x, name):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w[
            f"{name}/scale"
        ] + w[f"{name}/offset"]

    weights, out = w, []
    for video, mask in zip(x, frame_mask, strict=True):
        w = weights
        media = video @ w["input/w"] + w["input/b"] + w["time_embeddings"][: len(video), None]
        media = media[mask].reshape(-1, CONFIG.width)  # masked frames do not exist at all here
        latents = w["latents"]
        for layer in range(CONFIG.num_layers):
            w = {
                path.removeprefix("layers/"): leaf[layer]
                for path, leaf in weights.items()
                if path.startswith("layers/")
            }
            queries = norm(latents, "latents_norm")
            attended = np.concatenate([norm(media, "media_norm"), queries])
            update = np.zeros_like(latents)
            for head in range(CONFIG.num_heads):
                q, k, v = (
                    a @ w[f"{name}/w"][:, head]
                    for name, a in (("query", queries), ("key", attended), ("value", attended))
                )
                for r in range(CONFIG.num_latents):
                    scores = np.exp(k @ q[r] / np.sqrt(CONFIG.head_dim))
                    update[r] += (scores / scores.sum()) @ v @ w["output/w"][head]
            latents = latents + update
            hidden = np.maximum(norm(latents, "ffw_norm") @ w["ffw/up/w"] + w["ffw/up/b"], 0) ** 2
            latents = latents + hidden @ w["ffw/down/w"] + w["ffw/down/b"]
        out.append(latents)
    return np.stack(out)


def test_parity_with_numpy(features, frame_mask, params, apply):
    """Tolerance 1e-5 of the largest value.

    Float32 through two layers against float64 (2^-24 a step, some hundred terms).
    """
    weights = {
        path.removeprefix("resampler/"): np.asarray(leaf, np.float64)
        for path, leaf in trees.flatten(params).items()
    }
    expected = _reference(weights, np.asarray(features, np.float64), np.asarray(frame_mask))
    got = apply(params, features, frame_mask)
    assert got.shape == (2, CONFIG.num_latents, CONFIG.width)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_masked_frames_have_no_influence_and_others_do(features, frame_mask, params, apply):
    before = apply(params, features, frame_mask)
    np.testing.assert_array_equal(
        apply(params, jnp.where(frame_mask[:, :, None, None], features, 100.0), frame_mask), before
    )
    assert np.abs(apply(params, features.at[:, 0].add(1.0), frame_mask) - before).max() > 1e-3


def test_an_input_without_any_frame_stays_finite(features, params, apply):
    """Padding of the pool: its latents still attend themselves."""
    assert np.isfinite(apply(params, features, jnp.zeros((2, 4), bool))).all()


def test_frames_are_told_apart_by_time_alone(features, params, apply):
    """Swapping two frames changes the output; swapping positions within a frame does not."""
    mask = jnp.ones((2, 4), bool)
    before = apply(params, features, mask)
    np.testing.assert_allclose(
        apply(params, features[:, :, ::-1], mask), before, atol=1e-5 * np.abs(before).max()
    )
    assert np.abs(apply(params, features[:, ::-1], mask) - before).max() > 1e-3


def test_more_frames_than_in_training_interpolate_the_time_embedding(params):
    """7 frames over 4 embeddings.

    Frames 0, 2, 4, 6 have the learnt ones, those between them the mean of two neighbours.

    So the same network with the 7 embeddings written out gives the same (tolerance 1e-6 of the
    largest value: rounding).
    """
    features = jnp.asarray(np.random.default_rng(5).normal(size=(1, 7, 5, E)), jnp.float32)
    mask = jnp.ones((1, 7), bool)
    time = params["resampler"]["time_embeddings"]
    written = jnp.stack(
        [time[i // 2] if i % 2 == 0 else (time[i // 2] + time[i // 2 + 1]) / 2 for i in range(7)]
    )
    longer = _network(dataclasses.replace(CONFIG, num_time_embeddings=7))
    expected = jax.jit(longer.apply)(
        {**params, "resampler": {**params["resampler"], "time_embeddings": written}}, features, mask
    )
    got = jax.jit(_network().apply)(params, features, mask)
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


def test_an_image_has_the_first_time_embedding(features, params, apply):
    """One frame equals a video with a real first frame and padding.

    Tolerance 1e-6 of the largest value: rounding.
    """
    image = jax.jit(_network().apply)(params, features[:, :1], jnp.ones((2, 1), bool))
    video = apply(params, features, jnp.tile(jnp.array([[True, False, False, False]]), (2, 1)))
    np.testing.assert_allclose(image, video, atol=1e-6 * np.abs(video).max())


def test_bfloat16_is_close_to_float32(features, frame_mask, params, apply):
    """Tolerance 3 % of the largest value.

    Two layers with 8 bits of mantissa (2^-8 = 0.4 % an operation).
    """
    high = apply(params, features, frame_mask)
    low = apply(Policy("bfloat16").cast(params), features.astype(jnp.bfloat16), frame_mask)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), high, atol=0.03 * np.abs(high).max())


def test_rematerialised_layers_have_the_same_gradient(features, frame_mask, params):
    """Tolerance 1e-5 of the largest value: the compiler orders the sums otherwise."""

    def gradient(config):
        loss = lambda p: jnp.mean(jnp.square(_network(config).apply(p, features, frame_mask)))
        return trees.flatten(jax.jit(jax.grad(loss))(params))

    expected, got = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat="full"))
    for path in expected:
        np.testing.assert_allclose(
            got[path], expected[path], atol=1e-5 * np.abs(expected[path]).max(), err_msg=path
        )
        assert np.abs(expected[path]).max() > 0, path


def test_options_add_their_weights_only(features, frame_mask):
    def paths(**change):
        return set(
            axes_of(
                _network(dataclasses.replace(CONFIG, **change)).init,
                jax.random.key(0),
                features,
                frame_mask,
            )
        )

    plain = paths()
    assert paths(final_norm=True) - plain == {
        "resampler/final_norm/scale",
        "resampler/final_norm/offset",
    }
    assert paths(attention_bias=True) - plain == {
        f"resampler/layers/{n}/b" for n in ("query", "key", "value", "output")
    }
    assert plain - paths(mlp_bias=False) == {
        "resampler/layers/ffw/up/b",
        "resampler/layers/ffw/down/b",
    }


def test_parity_with_numpy_where_the_options_are_those_of_idefics(features, frame_mask):
    """No input map, no time, norms on each head's queries and keys, ReLU, a last norm.

    Tolerance as above.
    """
    config = dataclasses.replace(
        CONFIG, num_layers=1, width=E, input_projection=False, num_time_embeddings=0,
        activation="relu", mlp_bias=False, qk_norm=True, final_norm=True, epsilon=1e-3,
    )  # fmt: skip
    params = _random(jax.eval_shape(_network(config).init, jax.random.key(0), features, frame_mask))
    w = {
        path.removeprefix("resampler/"): np.asarray(leaf, np.float64)
        for path, leaf in trees.flatten(params).items()
    }
    w = {
        path.removeprefix("layers/"): leaf[0] if path.startswith("layers/") else leaf
        for path, leaf in w.items()
    }

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + config.epsilon
        )
        return scaled * w[f"{name}/scale"] + w[f"{name}/offset"]

    expected = []
    for video, mask in zip(np.asarray(features, np.float64), np.asarray(frame_mask), strict=True):
        queries = norm(w["latents"], "latents_norm")
        attended = np.concatenate([norm(video[mask].reshape(-1, E), "media_norm"), queries])
        q, k, v = (
            np.einsum("sd,dhk->shk", y, w[f"{name}/w"])
            for name, y in (("query", queries), ("key", attended), ("value", attended))
        )
        q, k = norm(q, "query_head_norm"), norm(k, "key_head_norm")
        scores = np.exp(np.einsum("rhk,shk->hrs", q, k) / np.sqrt(config.head_dim))
        seen = np.einsum("hrs,shk->rhk", scores / scores.sum(-1, keepdims=True), v)
        latents = w["latents"] + np.einsum("rhk,hkd->rd", seen, w["output/w"])
        hidden = np.maximum(norm(latents, "ffw_norm") @ w["ffw/up/w"], 0)
        expected.append(norm(latents + hidden @ w["ffw/down/w"], "final_norm"))
    got = jax.jit(_network(config).apply)(params, features, frame_mask)
    np.testing.assert_allclose(got, np.stack(expected), rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_of_another_width_need_the_input_projection(features, frame_mask):
    network = _network(dataclasses.replace(CONFIG, input_projection=False))
    with pytest.raises(
        ValueError, match="features are 10 wide, the resampler 8, and there is no input projection"
    ):
        jax.eval_shape(network.init, jax.random.key(0), features, frame_mask)


OTHERS = {
    "transformer": dataclasses.replace(CONFIG, kind="transformer"),
    "mlp": dataclasses.replace(CONFIG, kind="mlp", num_latents=9),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_frames_that_are_padding_are_not_seen(kind, frame_mask):
    network = _network(OTHERS[kind])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 16, E)), jnp.float32)
    params = _random(jax.eval_shape(network.init, jax.random.key(0), x, frame_mask))
    apply = jax.jit(network.apply)
    out = apply(params, x, frame_mask)
    assert out.shape == (2, OTHERS[kind].num_latents, CONFIG.width)
    other = jnp.where(frame_mask[..., None, None], x, 7.0)
    np.testing.assert_array_equal(apply(params, other, frame_mask), out)
    assert not np.allclose(apply(params, x, jnp.ones_like(frame_mask)), out)


def test_the_mlp_gives_the_mean_of_the_frames(frame_mask):
    """A video of equal frames is its frame, and a grid of R points is not resized."""
    config = dataclasses.replace(OTHERS["mlp"], num_time_embeddings=0)
    network = _network(config)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 9, E)), jnp.float32)
    params = _random(jax.eval_shape(network.init, jax.random.key(0), x, frame_mask[:, :1]))
    one = network.apply(params, x, frame_mask[:, :1])
    video = network.apply(params, jnp.repeat(x, 4, axis=1), frame_mask)
    np.testing.assert_allclose(video, one, rtol=1e-5, atol=1e-5)
    permuted = network.apply(params, x[:, :, ::-1], frame_mask[:, :1])
    np.testing.assert_allclose(permuted, one[:, ::-1], rtol=1e-5, atol=1e-5)


def test_the_transformer_is_the_perceiver_whose_features_are_updated(features, frame_mask):
    """After one block the latents are equal but for the LayerNorm of the features."""
    config = dataclasses.replace(OTHERS["transformer"], num_layers=1)
    network, perceiver = _network(config), _network(dataclasses.replace(config, kind="perceiver"))
    params = _random(jax.eval_shape(network.init, jax.random.key(0), features, frame_mask))
    renamed = {
        path.replace("attention_norm", name): leaf
        for path, leaf in trees.flatten(params).items()
        for name in ("latents_norm", "media_norm")
    }
    np.testing.assert_allclose(
        network.apply(params, features, frame_mask),
        perceiver.apply(trees.unflatten(renamed), features, frame_mask),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("layers", "kind"), [(6, "transformer"), (10, "mlp")])
def test_the_others_have_as_many_weights(layers, kind):
    """Within 1 % of the 194M of Table 5: the paper compares them on one budget."""
    config = ResamplerConfig(kind=kind, num_layers=layers)
    x, mask = jnp.zeros((1, 1, 100, 3072)), jnp.ones((1, 1), bool)
    shapes = jax.eval_shape(_network(config).init, jax.random.key(0), x, mask)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(193.7e6, rel=0.01)


def test_an_mlp_needs_square_grids(features, frame_mask):
    with pytest.raises(FieldError, match="num_latents is 3; expected a square"):
        dataclasses.replace(CONFIG, kind="mlp")
    with pytest.raises(ConfigError, match="gives 5 features for a frame; expected a square grid"):
        jax.eval_shape(_network(OTHERS["mlp"]).init, jax.random.key(0), features, frame_mask)
