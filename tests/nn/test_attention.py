"""Attention against loops in float64; the two forms of own-image attention are one function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.nn.attention import attend, attend_own_image, attend_own_image_chunked

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def reference(q, k, v, mask, bias):
    """One query at a time."""
    out = np.zeros(q.shape)
    groups = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(mask[b, i])
        if keys.size:
            scores = k[b, keys, h // groups] @ q[b, i, h] / q.shape[-1] ** 0.5 + bias[b, h, i, keys]
            weights = np.exp(scores - scores.max())
            out[b, i, h] = weights @ v[b, keys, h // groups] / weights.sum()
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attend_equals_a_loop(kv_heads):
    """Tolerance 1e-5: float32 against float64."""
    q, k, v = draw(2, 3, 4, 8), draw(2, 5, kv_heads, 8), draw(2, 5, kv_heads, 8)
    mask, bias = RNG.random((2, 3, 5)) < 0.6, draw(2, 4, 3, 5)
    mask[0, 0] = False
    out = attend(*map(jnp.asarray, (q, k, v, mask, bias)))
    np.testing.assert_allclose(out, reference(q, k, v, mask, bias), rtol=1e-5, atol=1e-5)
    assert np.all(np.asarray(out)[0, 0] == 0)  # exactly


def test_bf16_stays_close_to_float32_and_keeps_its_dtype():
    """2e-2: bf16 has 8 bits of mantissa; the softmax itself is float32."""
    q, k, v = (jnp.asarray(draw(2, 6, 2, 8)) for _ in range(3))
    low = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), attend(q, k, v), atol=2e-2)


PHI = np.array(
    [[0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 0], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2], [0] * 12], np.int32
)


@pytest.mark.parametrize(("chunk", "span"), [(12, 4), (4, 3), (3, 2), (2, 2), (1, 1), (4, 9)])
def test_the_chunked_form_equals_the_full_form(chunk, span):
    """Bit for bit would depend on the order of sums; 1e-6 is a few rounding steps of float32."""
    q, k, v = draw(3, 12, 2, 4), draw(3, 4, 5, 2, 4), draw(3, 4, 5, 2, 4)
    full = attend_own_image(*map(jnp.asarray, (q, k, v, PHI)))
    chunked = attend_own_image_chunked(*map(jnp.asarray, (q, k, v, PHI)), chunk=chunk, span=span)
    np.testing.assert_allclose(chunked, full, atol=1e-6)
    assert np.all(np.asarray(full)[PHI == 0] == 0)
    assert np.all(np.asarray(chunked)[PHI == 0] == 0)


@pytest.mark.parametrize(("chunk", "span"), [(12, 4), (4, 3), (3, 3)])
def test_the_chunked_form_equals_the_full_form_with_runs_and_padding(chunk, span):
    """Images 2 and 3 of the first row are attended together; heads of keys are shared by two."""
    q, k, v = draw(3, 12, 4, 4), draw(3, 4, 5, 2, 4), draw(3, 4, 5, 2, 4)
    first, real = np.where(PHI == 3, 2, PHI), RNG.random((3, 4, 5)) < 0.7
    first[1] = np.where(PHI[1] > 0, 1, 0)
    given = {"first": jnp.asarray(first), "real": jnp.asarray(real)}
    inputs = [*map(jnp.asarray, (q, k, v, PHI))]
    full = attend_own_image(*inputs, **given)
    chunked = attend_own_image_chunked(*inputs, chunk=chunk, span=span, **given)
    np.testing.assert_allclose(chunked, full, atol=1e-6)
    flat = real[:, None] & (np.arange(1, 5) >= first[..., None])[..., None]
    flat &= (np.arange(1, 5) <= PHI[..., None])[..., None]
    joined = [x.reshape(3, 20, 2, 4) for x in (k, v)]
    expected = reference(q, *joined, flat.reshape(3, 12, 20), np.zeros((3, 4, 12, 20)))
    np.testing.assert_allclose(full, expected, atol=1e-5)


def test_a_token_depends_on_its_own_image_alone():
    """Every other image is perturbed: no change, not in one bit; its own: a change (paper, 2.3)."""
    q, k, v = (
        jnp.asarray(x) for x in (draw(3, 12, 2, 4), draw(3, 4, 5, 2, 4), draw(3, 4, 5, 2, 4))
    )
    before = np.asarray(attend_own_image(q, k, v, jnp.asarray(PHI)))
    for image in range(1, 5):
        after = np.asarray(
            attend_own_image(
                q, k.at[:, image - 1].add(1.7), v.at[:, image - 1].mul(-2.0), jnp.asarray(PHI)
            )
        )
        changed = np.any(after != before, axis=(2, 3))
        np.testing.assert_array_equal(changed, image == PHI)


def test_chunks_must_divide_the_text():
    x = jnp.zeros((1, 12, 2, 4))
    kv = jnp.zeros((1, 2, 3, 2, 4))
    with pytest.raises(ValueError, match="do not divide"):
        attend_own_image_chunked(x, kv, kv, jnp.zeros((1, 12), jnp.int32), chunk=5, span=1)


def test_a_masked_row_has_no_gradient():
    q, k, v = (jnp.asarray(draw(1, 2, 1, 4)) for _ in range(3))
    mask = jnp.asarray([[[False, False], [True, True]]])
    gradient = jax.grad(lambda q: jnp.sum(attend(q, k, v, mask) ** 2))(q)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[0, 0] == 0)
