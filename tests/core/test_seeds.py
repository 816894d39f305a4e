"""Seeds are whole numbers of 32 bits, wherever a user gives one."""

import dataclasses

import pytest

from configs import tiny
from data_pipelines.pool import PoolRequest
from data_pipelines.sample_page import InspectRequest
from data_pipelines.world import WorldOptions
from flamingo_jax.core import seeds
from flamingo_jax.core.config import from_dict
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.inference.methods import Sample
from flamingo_jax.training.config import TrainConfig

MAKERS = {
    "train": lambda seed: dataclasses.replace(from_dict(TrainConfig, tiny.get_config()), seed=seed),
    "evaluate": lambda seed: EvaluateConfig(seed=seed),
    "sample": lambda seed: Sample(seed=seed),
    "world": lambda seed: WorldOptions(seed=seed).request(),
    "pool": lambda seed: PoolRequest(dataset="a", tokenizer="b", seed=seed),
    "inspect": lambda seed: InspectRequest(dataset="a", tokenizer="b", seed=seed),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("seed", [-1, 1 << 32, 1 << 70])
def test_what_is_no_seed(maker, seed):
    """JAX would take 2**32 for 0, and -1 for 2**32 - 1; NumPy refuses -1 in the middle of a run."""
    with pytest.raises(
        ValueError, match=rf"seed is {seed}; expected a whole number from 0 to 4294967295"
    ):
        MAKERS[maker](seed)


@pytest.mark.parametrize("maker", MAKERS)
def test_the_largest_seed(maker):
    MAKERS[maker]((1 << 32) - 1)
    assert seeds.generator((1 << 32) - 1, "a").random() != seeds.generator(0, "a").random()
