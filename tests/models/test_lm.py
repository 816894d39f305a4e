"""The language model and its options: causality, packing, cache, losses."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.core import trees
from flamingo_jax.core.axes import with_layout
from flamingo_jax.data.schema import Batch
from flamingo_jax.models import api, self_attention
from flamingo_jax.models.lm_config import LMConfig
from flamingo_jax.models.losses import next_token_losses
from flamingo_jax.models.self_attention import SelfAttention, packed_context
from flamingo_jax.nn.attention import attend
from flamingo_jax.nn.embed import RotaryScaling
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh

V, B, L = 20, 2, 9
TINY = {"vocab_size": V, "num_layers": 2, "width": 16, "num_heads": 4, "vocab_multiple": 8}
OPTIONS = {
    "chinchilla": {},
    "tiny_world": {"norm": "layer", "position": "rotary", "mlp_bias": False, "qkv_conv_width": 3},
    "mpt": {
        "norm": "layer", "position": "alibi", "norm_bias": False, "qk_norm": True,
        "activation": "gelu_exact",
    },
    "llama": {
        "position": "rotary", "activation": "swiglu", "mlp_bias": False, "num_kv_heads": 2,
        "tied_head": False,
    },
    "neox": {
        "norm": "layer", "position": "rotary", "rotary_fraction": 0.5, "parallel_residual": True,
        "attention_bias": True,
    },
    "mistral": {
        "position": "rotary", "activation": "swiglu", "mlp_bias": False, "num_kv_heads": 2,
        "sliding_window": 4,
    },
    "qwen2": {
        "position": "rotary", "rotary_scaling": RotaryScaling(4.0, 1.0, 4.0, 8), "num_kv_heads": 1,
        "qkv_bias": True,
    },
    "opt": {
        "norm": "layer", "position": "learned", "max_length": 16, "activation": "relu",
        "attention_bias": True,
    },
    "olmo2": {
        "position": "rotary", "norm_place": "after", "qk_norm": True, "num_kv_heads": 2,
        "mlp_bias": False,
    },
    "gemma": {
        "position": "rotary", "norm_place": "both", "norm_from_one": True, "head_norm": True,
        "sliding_window": 4, "global_every": 2, "local_rotary_base": 50.0, "activation": "geglu",
        "score_size": 6, "score_cap": 2.0, "logit_cap": 3.0, "scaled_embedding": True,
        "mlp_bias": False,
    },
}  # fmt: skip
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, V, (B, L)), jnp.int32)
SEGMENT = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]], jnp.int32)


@functools.cache
def model(name):
    """(functions, weights, jitted losses, jitted extend) of one family.

    Compiled once for all tests.
    """
    functions = api.language_model(LMConfig(**TINY, **OPTIONS[name]))
    params = jax.jit(functions.init)(jax.random.key(1))
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape)
    params = jax.tree.map(noise, params)  # no bias stays 0, no kernel the identity
    losses = jax.jit(
        lambda p, tokens, segment: functions.token_losses(p, Batch.of_text(tokens, segment))
    )
    return functions, params, losses, jax.jit(functions.extend)


def positions(start, count):
    return jnp.broadcast_to(jnp.arange(start, start + count, dtype=jnp.int32)[None], (B, count))


def extend(name, cache, tokens, start):
    _, params, _, call = model(name)
    return call(params, cache, tokens, positions(start, tokens.shape[1]), jnp.zeros_like(tokens))


@pytest.mark.parametrize("name", OPTIONS)
def test_cached_decoding_equals_the_uncached_forward(name):
    """Prefill of 6 tokens, then one by one: the losses of the whole row (float32: 1e-5)."""
    functions, params, losses, _ = model(name)
    whole = losses(params, TOKENS, jnp.ones_like(SEGMENT))
    logits, cache = extend(name, functions.empty_cache(B, 12, jnp.float32), TOKENS[:, :6], 0)
    steps = [logits]
    for t in range(6, L):
        logits, cache = extend(name, cache, TOKENS[:, t : t + 1], t)
        steps.append(logits)
    logits = jnp.concatenate(steps, axis=1)[:, :-1]
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], axis=-1)[
        ..., 0
    ]
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["chinchilla", "mpt", "mistral"])
def test_a_cpu_reads_a_long_prompt_in_blocks(name, monkeypatch):
    """Blocks of 4, 4 and 1 tokens attend 4, 8 and 9 keys; what follows attends the whole cache."""
    functions, params, _, _ = model(name)
    empty = functions.empty_cache(B, 12, jnp.float32)
    expected, cache = extend(name, empty, TOKENS, 0)
    following, _ = extend(name, cache, TOKENS[:, :3], L)
    keys = []

    def noted(q, k, *others, **options):
        keys.append(k.shape[1])
        return attend(q, k, *others, **options)

    monkeypatch.setattr(self_attention, "_BLOCK", 4)
    monkeypatch.setattr(self_attention, "attend", noted)
    zeros = jnp.zeros_like(TOKENS)
    with with_layout(Layout(make_mesh(MeshConfig(), jax.devices()[:1]))):
        found, cache = jax.jit(lambda *inputs: functions.extend(*inputs))(
            params, empty, TOKENS, positions(0, L), zeros
        )
        assert set(keys) == {4, 8, 9}
        keys.clear()
        found_following, _ = jax.jit(lambda *inputs: functions.extend(*inputs))(
            params, cache, TOKENS[:, :3], positions(L, 3), zeros[:, :3]
        )
        assert set(keys) == {12}
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found_following, following, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_past_alone_counts_and_documents_are_blind_to_each_other(name):
    _, params, losses, _ = model(name)
    before = np.asarray(losses(params, TOKENS, SEGMENT))
    changed = TOKENS.at[0, 2].set((TOKENS[0, 2] + 1) % V)
    after = np.asarray(losses(params, changed, SEGMENT))
    np.testing.assert_array_equal(after[0, 4:7], before[0, 4:7])  # the second document of the row
    # the tokens before (loss l predicts token l + 1)
    np.testing.assert_array_equal(after[0, :1], before[0, :1])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.all(after[0, 1:3] != before[0, 1:3])


@pytest.mark.parametrize("name", OPTIONS)
def test_a_document_has_the_same_losses_wherever_it_stands_in_a_row(name):
    """1e-5: float32."""
    _, params, losses, _ = model(name)
    packed = losses(params, TOKENS, SEGMENT)[0, 4:7]
    alone = losses(params, jnp.roll(TOKENS, -4, axis=1), jnp.ones_like(SEGMENT))[0, :3]
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)


def test_relative_attention_is_transformer_xls():
    """One head against the four terms of Dai et al. 2019 (3.3) in float64 (float32: 1e-5)."""
    config = LMConfig(vocab_size=V, num_layers=1, width=4, num_heads=1)
    segment = jnp.ones((1, 5), jnp.int32)
    layer = hk.transform(
        lambda x: SelfAttention(config, packed_context(segment), name="attention")(x, None)[0]
    )
    x = jnp.asarray(RNG.normal(size=(1, 5, 4)), jnp.float32)
    params = jax.tree.map(lambda leaf: leaf + 0.3, layer.init(jax.random.key(0), x))
    p = {path: np.asarray(leaf, np.float64) for path, leaf in trees.flatten(params).items()}
    q, k, v = (
        np.asarray(x[0], np.float64) @ p[f"attention/{name}/w"][:, 0]
        for name in ("query", "key", "value")
    )
    out = np.zeros((5, 4))
    for i in range(5):
        scores = []
        for j in range(i + 1):
            angles = (i - j) * 10_000.0 ** -(np.arange(0, 4, 2) / 4)
            r = np.concatenate([np.sin(angles), np.cos(angles)]) @ p["attention/relative/w"][:, 0]
            content, position = p["attention/content_bias"][0], p["attention/position_bias"][0]
            scores.append(q[i] @ k[j] + q[i] @ r + content @ k[j] + position @ r)
        weights = np.exp(np.array(scores) / 2)
        out[i] = weights @ v[: i + 1] / weights.sum()
    expected = out @ p["attention/out/w"][0]
    np.testing.assert_allclose(layer.apply(params, None, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_the_tables_padding_is_never_predicted_and_new_tokens_enter_the_softmax():
    """20 pieces in a table of 24 rows, 2 new tokens: the probabilities of 22 ids sum to 1."""
    base = jnp.asarray(RNG.normal(size=(1, 2, 24)), jnp.float32).at[..., V:].set(-1e30)
    new = jnp.asarray(RNG.normal(size=(1, 2, 2)), jnp.float32)
    every = [
        next_token_losses(base, new, jnp.full((1, 2), i, jnp.int32), V)[0, 0] for i in range(V + 2)
    ]
    assert abs(sum(np.exp(-np.array(every))) - 1) < 1e-5
    joined = jax.nn.log_softmax(jnp.concatenate([base[..., :V], new], -1))[0, 0]
    np.testing.assert_allclose(every, -joined, rtol=1e-5, atol=1e-5)


def test_shapes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="not divisible by num_heads"):
        LMConfig(vocab_size=8, num_layers=1, width=10, num_heads=4)
    with pytest.raises(ValueError, match="num_kv_heads"):
        LMConfig(vocab_size=8, num_layers=1, width=16, num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="sliding_window is -1"):
        LMConfig(vocab_size=8, num_layers=1, width=16, num_heads=4, sliding_window=-1)
    for options, message in (
        ({"norm": "layer", "norm_from_one": True}, "only an RMSNorm has such a weight"),
        ({"qk_norm": True, "head_norm": True}, "qk_norm and head_norm are both True"),
        ({"global_every": 2}, "sliding_window is 0: no layer has a window"),
        ({"sliding_window": 4, "local_rotary_base": 1.0}, "expected 'rotary'"),
    ):
        with pytest.raises(ValueError, match=message):
            LMConfig(**TINY, **options)
    with pytest.raises(ValueError, match="0 < low < high"):
        RotaryScaling(factor=8.0, low=4.0, high=1.0, original_length=16)


def test_a_sliding_window_hides_what_is_further_back():
    """One layer, a window of 4: the loss of token l + 1 depends on tokens l - 3 .. l only."""
    config = LMConfig(**{**TINY, "num_layers": 1}, position="rotary", sliding_window=4)
    functions = api.language_model(config)
    params = jax.jit(functions.init)(jax.random.key(0))
    losses = jax.jit(
        lambda tokens: functions.token_losses(params, Batch.of_text(tokens, jnp.ones_like(tokens)))
    )
    before, after = losses(TOKENS), losses(TOKENS.at[:, 2].set((TOKENS[:, 2] + 1) % V))
    changed = np.asarray(before != after)
    assert np.all(changed[:, 1:6]) and not np.any(changed[:, 6:]) and not np.any(changed[:, :1])


def test_stretched_rotary_positions_are_llama_3s():
    """The publisher's three cases.

    Waves longer than L / low are stretched by the factor, shorter than L / high are not, between by
    share.
    """
    scaling = RotaryScaling(factor=8.0, low=1.0, high=4.0, original_length=100)
    lengths = np.array([10.0, 25.0, 50.0, 100.0, 400.0])
    share = (100 / 50 - 1) / (4 - 1)
    between = (1 - share) / 8 + share
    np.testing.assert_allclose(
        scaling.scale(2 * np.pi / lengths) * lengths / (2 * np.pi),
        [1, 1, between, 1 / 8, 1 / 8],
        rtol=1e-12,
    )
    np.testing.assert_allclose(RotaryScaling(factor=2.0).scale(lengths), lengths / 2)
