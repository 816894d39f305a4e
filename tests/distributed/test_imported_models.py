"""Imported models on eight chips: training steps and answers equal those of one chip.

The models have the options of their configs, in small sizes. OpenFlamingo has ALiBi, a tied table
and norms over all heads; IDEFICS has SwiGLU, norms on each head of the cross-attention and an
untied head. Neither maps visual tokens to the language model's width. Llama 3.2 Vision has two
heads of keys and values, which four chips do not divide, and images in tiles.
"""

import dataclasses

import jax
import numpy as np
import pytest

from configs import idefics_9b, mllama_11b, open_flamingo_3b
from flamingo_jax.checkpoint.export import export
from flamingo_jax.conversion import idefics, mllama
from flamingo_jax.core import trees
from flamingo_jax.core.config import editable, from_dict, to_dict
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.to_device import to_device
from flamingo_jax.inference.model import Flamingo, InferenceConfig
from flamingo_jax.inference.request import Request
from flamingo_jax.models import api
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh, num_batch_shards
from flamingo_jax.tokenizers.markers import Markers
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.inference import tiny
from tests.training import small

ONE, MESH = (1, 1, 1), (1, 2, 4)
INFERENCE = InferenceConfig(
    lengths=(32,), num_images=(4,), images_per_pass=8, max_new_tokens=4, xattn_chunk=0
)
PROMPTS = [
    [tiny.image(0, small.SIZE), "output : red<EOC>", tiny.image(1, small.SIZE), "output :"],
    [tiny.image(2, small.SIZE), "this is a"],
    ["question : red circle answer :"],
]


def described(name):
    """Returns a public Flamingo's options, with four heads: one per chip of a model group."""
    config = small.get_config("flamingo")
    if name == "open_flamingo":
        config.model = parts = editable(open_flamingo_3b.model(lm="mpt_1b", every=2))
        parts.xattn.update(num_heads=4, head_dim=8)
    elif name == "mllama":
        config.model = parts = editable(mllama_11b.model("11b"))
        parts.xattn.update(every=2, offset=1, num_kv_heads=2, mlp_width=48)
        parts.lm.num_kv_heads = 2
        parts.tiled_vit.update(num_global_layers=1, kept=(0,))
        for dataset in config.data.datasets.values():
            dataset.update(num_frames=parts.tiled_vit.max_tiles, p_next=0.0)
    else:
        config.model = parts = editable(idefics_9b.model("9b"))
        parts.xattn.update(every=2, mlp_width=48)
        parts.new_tokens = (*parts.new_tokens, idefics.END_OF_UTTERANCE)
    parts.lm.update(vocab_size=0, num_layers=2, width=32, num_heads=4, mlp_width=48)
    (parts.tiled_vit if name == "mllama" else parts.vit).update(
        patch_size=8, image_size=small.SIZE, width=16, num_layers=2, num_heads=2, mlp_width=24
    )
    if name != "mllama":
        parts.resampler.update(num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=0, eps=1e-3)
    return from_dict(TrainConfig, config)


def step_on(name, *sizes, initial=None):
    """Returns (state before, weights after, metrics) of the first update, as numpy arrays."""
    config = described(name).resolved(small.VOCABULARY)
    config = dataclasses.replace(config, mesh=MeshConfig(*sizes), precision=Policy("float32"))
    mesh = make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    run = run_lib.compile(config, mesh)
    batch = small.batch(rows=8, length=16, images=2, seed=3, num_shards=num_batch_shards(mesh))
    # Some are the new tokens.
    batch.tokens[::2, 3], batch.tokens[::3, 5] = small.VOCABULARY, small.VOCABULARY + 1
    batch = {"pages": to_device(batch, mesh)}
    if initial is None:  # with open gates: with closed ones only the gates would move
        state = jax.tree.map(np.asarray, run.layout.init(jax.random.key(1)))
        weights = trees.flatten(state.trainable)
        opened = {
            path: np.full_like(x, 0.5) if path.endswith("_gate") else x
            for path, x in weights.items()
        }
        initial = dataclasses.replace(state, trainable=trees.unflatten(opened))
    state, key = jax.device_put(initial, run.layout.shardings), jax.random.key(2)
    step = run.step.lower(state, batch, key).compile({"xla_backend_optimization_level": 0})
    after, metrics = step(state, batch, key)
    return initial, trees.flatten(jax.device_get(after.trainable)), jax.device_get(metrics)


@pytest.mark.parametrize("name", ["open_flamingo", pytest.param("idefics", marks=pytest.mark.slow)])
def test_a_step_of_further_training_is_the_same_on_a_mesh_as_on_one_device(name):
    """1e-5: float32 sums in another order.

    In AdamW an error of a gradient moves a weight by up to 1e-2 / 1e-3 times as much.
    """
    initial, expected, reference = step_on(name, *ONE)
    _, weights, metrics = step_on(name, *MESH, initial=initial)
    for metric, number in reference.items():
        np.testing.assert_allclose(metrics[metric], number, rtol=1e-5, atol=1e-7, err_msg=metric)
    before = trees.flatten(initial.trainable)
    for path, leaf in expected.items():
        # It adds the same to all scores of a query, which softmax ignores.
        stays = path.endswith("/key_head_norm/offset")
        assert stays or np.max(np.abs(leaf - before[path])) > 1e-6, f"{path} does not move"
        np.testing.assert_allclose(weights[path], leaf, rtol=1e-5, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(
    "name",
    [
        "idefics",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("open_flamingo", "mllama")),
    ],
)
def test_answers_of_a_mesh_are_those_of_one_device(name, tmp_path):
    """Tokens are equal, log-likelihoods (about 10) within 1e-4: float32 sums in another order."""
    words = tiny.tokenizer(tmp_path)
    model = described(name).resolved(words.vocab_size).model.of_stage("flamingo")
    params = tiny.weights(jax.eval_shape(api.flamingo(model.flamingo()).init, jax.random.key(0)))
    prompt = {
        "open_flamingo": Markers(bos=False),
        "idefics": idefics.markers(model.new_tokens, 0),
        "mllama": mllama.markers("base", 0),
    }[name]
    about = {
        "tokenizer": tmp_path / "tokenizer.model",
        "preprocessing": {"image_size": small.SIZE},
        "step": 0,
    }
    place = export(
        tmp_path / "export", params, kind="flamingo", config=to_dict(model), markers=prompt, **about
    )

    def answers(mesh):
        loaded = Flamingo.load(place, config=INFERENCE, mesh=mesh)
        return loaded.engine.answer([Request(loaded.read(prompt)) for prompt in PROMPTS])

    alone, found = answers(None), answers(make_mesh(MeshConfig(*MESH)))
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    different = {(one.tokens, round(one.log_likelihood, 2)) for one in alone}
    assert len(different) == len(PROMPTS)
    numbers = [[one.log_likelihood for one in group] for group in (found, alone)]
    np.testing.assert_allclose(*numbers, atol=1e-4)
