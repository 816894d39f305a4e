"""The families of open language models against transformers.

Random weights, all positions, with padding, with a cache.

1e-5 of the largest logit: float32, sums in another order; measured are at most 8e-7, and the wrong
GeLU gives 7e-5.
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import lm_families, mapping
from flamingo_jax.conversion.reading import InMemory
from flamingo_jax.models import api
from flamingo_jax.models.lm import LM
from flamingo_jax.models.self_attention import packed_context

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

V, B, L, PREFILL = 50, 2, 9, 5
LENGTHS = (L, 6)  # the second row is padded at its end
WIDTH = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": V,
    "rms_norm_eps": 1e-2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": V,
    "max_position_embeddings": 16,
    "word_embed_proj_dim": 32,
}
NEOX = {
    **WIDTH,
    "layer_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 16,
    "vocab_size": V,
    "layer_norm_epsilon": 1e-2,
}
MPT = {
    "d_model": 32,
    "n_heads": 6,
    "n_layers": 2,
    "vocab_size": V,
    "max_seq_len": 16,
    "layer_norm_epsilon": 1e-2,
}
GEMMA = {
    **WIDTH,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 3,
}
FAMILIES = {
    "llama": (
        transformers.LlamaConfig,
        {**WIDTH, "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": LLAMA3},
    ),
    "llama_tied_with_biases": (
        transformers.LlamaConfig,
        {
            **WIDTH,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        },
    ),
    "mistral": (
        transformers.MistralConfig,
        {**WIDTH, "num_key_value_heads": 2, "sliding_window": 3},
    ),
    "qwen2": (
        transformers.Qwen2Config,
        {**WIDTH, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "qwen3": (transformers.Qwen3Config, {**WIDTH, "num_key_value_heads": 2, "head_dim": 16}),
    "olmo2": (transformers.Olmo2Config, {**WIDTH, "num_key_value_heads": 2}),
    "gemma2": (
        transformers.Gemma2Config,
        {**GEMMA, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            **GEMMA,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    ),
    "gpt_neox": (transformers.GPTNeoXConfig, NEOX),
    "gpt_neox_in_sequence": (
        transformers.GPTNeoXConfig,
        {**NEOX, "use_parallel_residual": False, "hidden_act": "gelu_fast"},
    ),
    "mpt": (transformers.MptConfig, {**MPT, "d_model": 48}),
    "mpt_1b": (transformers.MptConfig, {**MPT, "n_heads": 4}),
    "opt": (transformers.OPTConfig, OPT),
    "gpt2": (transformers.GPT2Config, GPT2),
}  # fmt: skip


class NormedProjection(torch.nn.Module):
    """MPT-1B's queries, keys and values, with norms that transformers' class lacks."""

    def __init__(self, projection, config):
        super().__init__()
        self.projection = projection
        self.q_ln, self.k_ln = (
            torch.nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=False)
            for _ in "qk"
        )

    def forward(self, x):
        q, k, v = self.projection(x).chunk(3, dim=-1)
        return torch.cat([self.q_ln(q), self.k_ln(k), v], dim=-1)


MOSAIC_NAMES = {
    "Wqkv.projection": "Wqkv",
    "Wqkv.q_ln": "q_ln",
    "Wqkv.k_ln": "k_ln",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "norm_f": "ln_f",
    "ffn.up_proj": "mlp.mlp_up",
    "ffn.down_proj": "mlp.mlp_down",
}
MOSAIC_FIELDS = {"model_type": "mosaic_gpt", "attn_qk_ln": True, "alibi": True, "mlp_ratio": 4}


def as_mosaic(name):
    """The names that the 1B's files have."""
    for theirs, mosaic in MOSAIC_NAMES.items():
        name = name.replace(theirs, mosaic)
    return name


def randomised(model):
    """No bias stays 0 and no scale 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = "norm" in name or "ln_" in name
            weight.copy_(
                torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim < 2 else 0.2)
                + scale
            )
    return model.eval()


@functools.cache
def theirs(name):
    """(config.json, {name: array} of the files, tokens, logits of the real tokens)."""
    torch.set_num_threads(1)
    kind, fields = FAMILIES[name]
    config = kind(**fields, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config)
    if name == "mpt_1b":
        for block in model.transformer.blocks:
            block.attn.Wqkv = NormedProjection(block.attn.Wqkv, config)
    randomised(model)
    content = config.to_dict()  # as config.json has it
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    if name == "mpt_1b":
        arrays = {as_mosaic(key): value for key, value in arrays.items()}
        content = {
            key: value for key, value in content.items() if key != "attn_config"
        } | MOSAIC_FIELDS
    tokens = np.random.default_rng(0).integers(0, V, (B, L))
    mask = np.arange(L)[None] < np.asarray(LENGTHS)[:, None]
    with torch.no_grad():
        logits = model(
            torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask).long(), use_cache=False
        ).logits
    return content, arrays, tokens, mask, logits.numpy()


@functools.cache
def ours(name):
    """(the language model's config, its weights) as converted from transformers' ones."""
    content, arrays, *_ = theirs(name)
    files = InMemory(arrays)
    lm, rules = lm_families.describe(content, files.names())
    plan = mapping.check(
        rules,
        files.names(),
        mapping.targets("language_model", mapping.ModelConfig(lm=lm, new_tokens=())),
    )
    return lm, mapping.assemble(plan, files)


def jit(function):
    """What takes time here is compilation alone."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_equal_logits(got, expected, mask):
    got, expected = np.asarray(got)[mask], expected[mask]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name):
    """All positions of a batch of which one row is padded."""
    _, _, tokens, mask, expected = theirs(name)
    lm, params = ours(name)

    def logits(tokens, segment):
        model, context = LM(lm), packed_context(segment)
        x, _ = model.run(model.embed(tokens, context.positions), context)
        return model.logits(x)[0]

    got = jit(hk.without_apply_rng(hk.transform(logits)).apply)(
        params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.int32)
    )
    assert np.all(np.asarray(got)[..., V:] < -1e29)  # the rows that pad the table
    assert_equal_logits(got[..., :V], expected, mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_decoding_gives_the_logits_of_transformers_without_a_cache(name):
    """Five tokens, then one by one, in a cache that is longer than the text."""
    _, _, tokens, mask, expected = theirs(name)
    lm, params = ours(name)
    functions = api.language_model(lm)
    cache, steps = functions.empty_cache(B, 12, jnp.float32), []
    extend = jit(functions.extend)
    for start, stop in [(0, PREFILL), *((t, t + 1) for t in range(PREFILL, L))]:
        positions = jnp.broadcast_to(jnp.arange(start, stop, dtype=jnp.int32), (B, stop - start))
        part = jnp.asarray(tokens[:, start:stop], jnp.int32)
        logits, cache = extend(params, cache, part, positions, jnp.zeros_like(part))
        steps.append(logits)
    assert_equal_logits(np.concatenate(steps, axis=1), expected, mask)
