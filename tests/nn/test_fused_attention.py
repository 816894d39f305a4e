"""cuDNN's attention is the function of `nn.attention.attend`, and is used on NVIDIA GPUs alone.

Here JAX's own form of the function stands in for the kernel, and the call of the kernel is lowered
for a GPU without one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from flamingo_jax.core.axes import with_layout
from flamingo_jax.nn import attention
from flamingo_jax.nn.fused_attention import attend_fused, fits, has_kernel
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.sharding.chips import Single


def arrays(dtype=jnp.bfloat16, *, length=6, keys=10, heads=4, kv_heads=4, size=8, seed=0):
    """Queries, keys, values, mask and bias; queries 0 and 1 of row 0 see nothing."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    mask = rng.random((2, length, keys)) < 0.6
    mask[0, :2] = False
    return (
        draw(2, length, heads, size).astype(dtype),
        draw(2, keys, kv_heads, size).astype(dtype),
        draw(2, keys, kv_heads, size).astype(dtype),
        jnp.asarray(mask),
        3 * draw(2, heads, length, keys),
    )


@pytest.mark.parametrize(
    ("masked", "biased", "kv_heads"), [(True, True, 2), (True, False, 4), (False, True, 1)]
)
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_it_is_the_function_of_attend(dtype, bound, masked, biased, kv_heads):
    """Values and gradients, relative to the largest of each.

    1e-5: float32 sums in another order. 4e-2: bfloat16 has 8 bits, and a bias of up to 10 is
    rounded to them (an error of 0.02 in a score).
    """
    q, k, v, mask, bias = arrays(jnp.dtype(dtype), kv_heads=kv_heads)
    mask, bias = mask if masked else None, bias if biased else None

    def run(attend):
        def loss(q, k, v, bias):
            out = attend(q, k, v, mask, bias)
            return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

        which = (0, 1, 2, 3) if biased else (0, 1, 2)
        return jax.jit(jax.grad(loss, which, has_aux=True))(q, k, v, bias)

    (gradients, out) = run(lambda *a: attend_fused(*a, implementation="xla"))
    (expected_gradients, expected) = run(attention._attend)
    if masked:
        assert np.all(np.asarray(out, np.float32)[0, :2] == 0)  # exactly
        assert np.all(np.asarray(gradients[0], np.float32)[0, :2] == 0)
    for ours, theirs in zip((expected, *expected_gradients), (out, *gradients), strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=bound * np.abs(ours).max())


@pytest.mark.parametrize(
    ("changed", "plain", "masked"),
    [
        ({}, True, True),
        ({"dtype": jnp.float16}, True, True),
        ({"dtype": jnp.float32}, False, False),
        ({"size": 128}, True, True),
        ({"size": 12}, False, False),
        ({"size": 136}, False, False),
        ({"kv_heads": 2}, True, True),
        ({"length": 1}, True, False),
        ({"keys": 7}, True, False),
    ],
)
def test_what_fits(changed, plain, masked):
    q, k, v, mask, bias = arrays(**changed)
    assert fits(q, k, v, None, None) == plain
    assert fits(q, k, v, mask, None) == fits(q, k, v, None, bias) == masked


def test_operands_of_different_dtypes_do_not_fit():
    q, k, v, *_ = arrays()
    assert not fits(q, k.astype(jnp.float16), v.astype(jnp.float16), None, None)


def test_split_heads_do_not_fit():
    q, k, v, *_ = arrays()
    for shape, fitting in (((1, 2, 1), True), ((1, 1, 2), False)):
        with with_layout(Layout(make_mesh(MeshConfig(*shape), jax.devices()[:2]))):
            assert fits(q, k, v, None, None) == fitting


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Single(), True),
        (Single(capability="8.0"), True),
        (Single(capability="7.5"), False),
        (Single(version="rocm 6"), False),
        (Single("cpu"), False),
        (Single("tpu"), False),
        (None, False),
    ],
)
def test_kernel_is_there_on_nvidia_gpus_from_ampere_on(kind, expected):
    assert has_kernel(kind) == expected


@pytest.mark.parametrize("layout", [None, Single("tpu").layout, Single(version="rocm 6").layout])
def test_elsewhere_the_program_is_that_of_the_plain_form(layout):
    with with_layout(layout):
        found = jax.make_jaxpr(lambda *a: attention.attend(*a))(*arrays())
    assert str(found) == str(jax.make_jaxpr(lambda *a: attention._attend(*a))(*arrays()))


@pytest.mark.parametrize("masked", [False, True])
def test_a_gpu_gets_calls_of_cudnn_forward_and_backward(masked, monkeypatch):
    """Lowered for CUDA in a process without it: only the version of cuDNN is made up."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    q, k, v, mask, bias = arrays(kv_heads=2)
    rest = (mask, bias) if masked else (None, None)

    def loss(q, k, v):
        with with_layout(Single().layout):
            return jnp.sum(attention.attend(q, k, v, *rest).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kind = "ScaleBias" if masked else ""
    assert f"__cudnn$fmha{kind}Softmax(" in text
    assert f"__cudnn$fmha{kind}SoftmaxBackward(" in text
