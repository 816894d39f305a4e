"""Linear maps, norms, feed-forward layers, masks and positions against their formulas in numpy."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import axes, trees
from flamingo_jax.nn import embed, masks
from flamingo_jax.nn.feedforward import ACTIVATIONS, feed_forward
from flamingo_jax.nn.linear import einsum_float32, fused_linear, linear
from flamingo_jax.nn.norm import layer_norm, rms_norm, standardise

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def run(function, x):
    transformed = hk.transform(function)
    params = transformed.init(jax.random.key(0), x)
    return transformed.apply(params, None, x), trees.flatten(params)


def test_linear_contracts_and_adds_axes():
    x = draw(2, 3, 4, 5)
    y, params = run(
        lambda x: linear(
            x, (6, 7), axes=("heads", "head_dim", "embed", None), num_in=2, bias=True, name="map"
        ),
        x,
    )
    assert params["map/w"].shape == (4, 5, 6, 7)
    np.testing.assert_allclose(
        y, np.einsum("abcd,cdef->abef", x, params["map/w"]), rtol=1e-5, atol=1e-5
    )
    y, params = run(
        lambda x: linear(x, (6,), axes=("embed", "mlp"), name="map"), x.astype(jnp.bfloat16)
    )
    assert (y.dtype, params["map/w"].dtype) == (jnp.bfloat16, jnp.float32)


def test_fused_linear_has_the_contracted_axis_last():
    x = draw(2, 3, 5)
    y, params = run(
        lambda x: fused_linear(x, (2, 6, 7), axes=(None, "heads", "head_dim", "embed"), name="map"),
        x,
    )
    assert params["map/w"].shape == (2, 6, 7, 5)
    np.testing.assert_allclose(
        y, np.einsum("abd,shkd->abshk", x, params["map/w"]), rtol=1e-5, atol=1e-5
    )
    # of the fan-in, as in `linear`
    assert np.std(params["map/w"]) == pytest.approx(5**-0.5, rel=0.2)
    y, params = run(
        lambda x: fused_linear(x, (6,), axes=("mlp", "embed"), name="map"), x.astype(jnp.bfloat16)
    )
    assert (y.dtype, params["map/w"].dtype) == (jnp.bfloat16, jnp.float32)


def test_einsum_float32_rounds_nothing_but_what_flows_back():
    """bfloat16 operands: the result is the float32 sum.

    Gradients are those of the sum for a gradient rounded to bfloat16.
    """
    a, b, g = draw(4, 8).astype(jnp.bfloat16), draw(8, 5).astype(jnp.bfloat16), draw(4, 5)
    y, transpose = jax.vjp(lambda a, b: einsum_float32("ik,kj->ij", a, b), a, b)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-6)  # float32 sums of 8
    # bfloat16 would lose this
    assert np.max(np.abs(np.asarray(y.astype(jnp.bfloat16), np.float64) - exact)) > 1e-3
    da, db = transpose(g)
    assert (y.dtype, da.dtype, db.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    rounded = np.asarray(g.astype(jnp.bfloat16), np.float64)
    for found, expected in (
        (da, rounded @ np.asarray(b, np.float64).T),
        (db, np.asarray(a, np.float64).T @ rounded),
    ):
        # bfloat16 results
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=2**-8)
    whole = [x.astype(jnp.float32) for x in (a, b)]
    plain = jax.vjp(lambda a, b: jnp.einsum("ik,kj->ij", a, b), *whole)
    mine = jax.vjp(lambda a, b: einsum_float32("ik,kj->ij", a, b), *whole)
    # float32: the same
    jax.tree.map(np.testing.assert_array_equal, (mine[0], mine[1](g)), (plain[0], plain[1](g)))


def test_norms():
    x = draw(3, 8) * 4 + 2
    y, _ = run(lambda x: layer_norm(x, name="norm"), x)
    deviation = np.sqrt(np.var(x, axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        y, (x - np.mean(x, axis=-1, keepdims=True)) / deviation, rtol=1e-5, atol=1e-5
    )
    y, _ = run(lambda x: rms_norm(x, name="norm"), x)
    np.testing.assert_allclose(
        y, x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-5), rtol=1e-5, atol=1e-5
    )


def test_a_standardised_array_needs_only_the_norms_weights():
    """LayerNorm(x) = standardise(x) * scale + offset, at birth standardise(x) itself.

    Its statistics are float32.
    """
    x = draw(3, 8) * 4 + 2
    y, _ = run(lambda x: layer_norm(x, name="norm"), x)
    np.testing.assert_array_equal(standardise(x), y)
    far = (draw(2, 512) + 64).astype(jnp.bfloat16)
    exact = np.asarray(far, np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    assert standardise(far).dtype == jnp.bfloat16
    # the output is rounded
    np.testing.assert_allclose(np.asarray(standardise(far), np.float64), expected, atol=2e-2)


def test_norm_statistics_are_float32():
    """The mean of 300 + noise would be lost in bf16, which rounds 300.5 to 300."""
    x = jnp.asarray(RNG.normal(size=(1, 512)) + 64, jnp.bfloat16)
    y, _ = run(lambda x: layer_norm(x, name="norm"), x)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean()) / exact.std()
    # the output alone is rounded to bf16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=2e-2)


def test_feed_forward_and_swiglu():
    x = draw(2, 3, 4)
    y, p = run(lambda x: feed_forward(x, 8, activation="squared_relu", bias=False, name="mlp"), x)
    np.testing.assert_allclose(
        y, np.maximum(x @ p["mlp/up/w"], 0) ** 2 @ p["mlp/down/w"], rtol=1e-4, atol=1e-5
    )
    y, p = run(lambda x: feed_forward(x, 8, activation="swiglu", bias=False, name="mlp"), x)
    gate = np.asarray(x @ p["mlp/gate/w"], np.float64)
    np.testing.assert_allclose(
        y,
        (gate / (1 + np.exp(-gate)) * (x @ p["mlp/up/w"])) @ p["mlp/down/w"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_quick_gelu_is_clips():
    x = np.linspace(-3, 3, 7)
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](jnp.asarray(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-5
    )


SEGMENT = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 3]], np.int32)


def test_masks_of_packed_rows():
    index = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32)[None], SEGMENT.shape)
    mask = np.asarray(masks.causal(index, 7) & masks.same_segment(jnp.asarray(SEGMENT)))
    for b, i, j in np.ndindex(mask.shape):
        assert mask[b, i, j] == (j <= i and SEGMENT[b, i] == SEGMENT[b, j] and SEGMENT[b, i] > 0)


def test_positions_restart_in_each_document():
    positions = np.asarray(masks.positions_in_segment(jnp.asarray(SEGMENT)))
    assert positions[0, :5].tolist() == [0, 1, 2, 0, 1]
    assert positions[1].tolist() == [0, 0, 0, 1, 2, 3, 4]


def test_rotary_scores_depend_on_the_distance_alone_and_a_fraction_may_rest():
    q, k = draw(1, 1, 2, 8), draw(1, 1, 2, 8)

    def score(i, j, fraction=1.0):
        angles = embed.rotary_frequencies(8, base=100.0, fraction=fraction)
        turn = lambda x, p: embed.rotary(x, jnp.full((1, 1), p), angles)
        return np.asarray(jnp.einsum("bthk,bthk->h", turn(q, i), turn(k, j)))

    np.testing.assert_allclose(score(5, 3), score(12, 10), rtol=1e-4)
    assert not np.allclose(score(5, 3), score(5, 4), rtol=1e-3)
    half = embed.rotary_frequencies(8, fraction=0.5)
    np.testing.assert_array_equal(embed.rotary(q, jnp.full((1, 1), 9), half)[..., 4:], q[..., 4:])


def test_alibi_slopes_are_the_published_ones():
    np.testing.assert_allclose(embed.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    assert embed.alibi_slopes(6) == [2.0 ** (-8 * h / 8) for h in (2, 4, 6, 8, 1, 3)]
    bias = embed.alibi_bias(2, jnp.asarray([[[0, -1], [1, 0]]], jnp.int32))
    np.testing.assert_allclose(bias[0, :, 1, 0], [-(2.0**-4), -(2.0**-8)])


def test_relative_bias_picks_the_embedding_of_each_distance():
    q, r = draw(1, 3, 2, 4), draw(5, 2, 4)
    distances = (
        jnp.arange(3, dtype=jnp.int32)[None, :, None]
        + 2
        - jnp.arange(5, dtype=jnp.int32)[None, None, :]
    )
    bias = np.asarray(embed.relative_bias(q, r, distances))
    for t, s, h in np.ndindex(3, 5, 2):
        if t + 2 >= s:
            np.testing.assert_allclose(
                bias[0, h, t, s], q[0, t, h] @ r[t + 2 - s, h] / 2, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("on_tpu", [False, True])
def test_the_aligned_relative_bias_is_the_gathered_one_where_it_is_seen(monkeypatch, on_tpu):
    """Queries and keys at the same positions: the shift gives what the gather gives.

    On and below the diagonal; above it is the future. A TPU has another form of the shift.
    """
    monkeypatch.setattr(axes, "on_tpu", lambda: on_tpu)
    q, r = draw(2, 5, 3, 4), draw(5, 3, 4)
    index = jnp.arange(5, dtype=jnp.int32)
    distances = jnp.broadcast_to((index[:, None] - index[None, :])[None], (2, 5, 5))
    gathered, shifted = embed.relative_bias(q, r, distances), embed.aligned_relative_bias(q, r)
    assert shifted.shape == gathered.shape == (2, 3, 5, 5) and shifted.dtype == jnp.float32
    seen = np.tril(np.ones((5, 5), bool))
    np.testing.assert_allclose(shifted[..., seen], gathered[..., seen], rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(shifted))
    sums = [
        jax.grad(lambda q, f=f: jnp.sum(jnp.where(seen, f(q), 0) ** 2))(q)
        for f in (
            lambda q: embed.relative_bias(q, r, distances),
            lambda q: embed.aligned_relative_bias(q, r),
        )
    ]
    np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-5)


def test_time_embeddings_interpolate_to_other_frame_counts():
    """8 learnt embeddings serve 30 frames at evaluation (paper, B.1.2).

    Linear in between, the ends stay, 8 are themselves.
    """
    table = draw(8, 4)
    np.testing.assert_array_equal(embed.interpolate_time(table, 8), table)
    np.testing.assert_array_equal(embed.interpolate_time(table, 3), table[:3])
    out = np.asarray(embed.interpolate_time(table, 30))
    expected = np.stack(
        [np.interp(np.linspace(0, 7, 30), np.arange(8), np.asarray(table)[:, i]) for i in range(4)],
        -1,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_shifted_stops_at_the_border_of_documents(lag):
    x = draw(2, 7, 3)
    out = np.asarray(embed.shifted(x, lag, jnp.asarray(SEGMENT)))
    for b, i in np.ndindex(2, 7):
        inside = i >= lag and SEGMENT[b, i - lag] == SEGMENT[b, i]
        np.testing.assert_array_equal(out[b, i], x[b, i - lag] if inside else np.zeros(3))
