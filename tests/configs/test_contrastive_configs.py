"""The contrastive stage and the rows of Table 11 are as in the paper."""

import dataclasses

import pytest

from configs import contrastive_f6
from configs.ablations import contrastive_data
from flamingo_jax.core import config as core_config
from flamingo_jax.models import sizes
from flamingo_jax.training.config import TrainConfig


def test_contrastive_stage_is_the_papers():
    """Paper, B.1.3; the size of BERT is not stated."""
    config = core_config.from_dict(TrainConfig, contrastive_f6.get_config("/records"))
    assert dataclasses.replace(config.model.vision, remat="none") == sizes.NFNETS["F6"]
    assert config.steps == 1_200_000
    assert config.data.image_size == 288
    assert config.model.contrastive.joint_dim == 1376
    assert {name: dataset.batch_size for name, dataset in config.data.datasets.items()} == {
        "align": 16384,
        "ltip": 16384,
    }
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-3, 0)
    assert (optimizer.schedule, optimizer.final_fraction) == ("linear", 0)
    # Adam is AdamW without decay.
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.vision.agc) == (0.0, 10.0, 1e-2)
    assert config.model.contrastive.label_smoothing == 0.1
    assert config.mixing == "accumulate"
    assert config.mesh.replica * config.mesh.data * config.mesh.model == 512


@pytest.mark.parametrize("row", contrastive_data.ROWS)
def test_rows_of_table_11(row):
    """NFNet-F0 and BERT-mini, batches of 2,048, a million gradients (paper, B.3.2)."""
    config = core_config.from_dict(TrainConfig, contrastive_data.get_config(f"{row},/records"))
    assert config.model.vision == sizes.NFNETS["F0"]
    mini = sizes.TEXT_ENCODERS["bert_mini"]
    text = config.model.text_encoder
    assert (text.num_layers, text.width) == (mini.num_layers, mini.width)
    datasets = config.data.datasets
    expected = {row} if row in ("align", "ltip") else {"align", "ltip"}
    assert set(datasets) == expected
    rows = [dataset.batch_size for dataset in datasets.values()]
    at_once = {"accumulate": len(rows), "merged": 1, "round_robin": 1}[config.mixing]
    assert config.steps * at_once == 1_000_000
    assert (sum(rows) if config.mixing == "merged" else rows[0]) == 2_048
    assert all(dataset.path.startswith("/records/") for dataset in datasets.values())


def test_table_11_knows_its_rows():
    with pytest.raises(ValueError, match="accumulation"):
        contrastive_data.get_config("alternate")


def test_a_merged_contrastive_batch_takes_no_weights():
    config = contrastive_data.get_config("merged")
    config.data.datasets.align.weight = 0.5
    with pytest.raises(ValueError, match="all rows count alike"):
        core_config.from_dict(TrainConfig, config)
