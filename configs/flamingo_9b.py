"""Flamingo-9B (Table 5): a 7.1B language model, a cross-attention layer before every 4th block; no model sharding, as in the paper.

    COMMAND  python -m flamingo_jax.plan --config=configs/flamingo_9b.py --topology=v4:4x4x8
    EXPECTED The plan says "fits".

Table 4 gives 40 blocks and 10 cross-attention layers, which are 8.86B + 2.01B weights; 32 blocks and 8 layers give the 7.1B + 1.6B
of Table 5, and are taken here (models/sizes.py has both). Batches: twice the ablation's; those of the paper's run are not stated.
"""

from ml_collections import config_dict

from configs import base, lm_7b, mixture


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory of the tokenizer and of the datasets.
    """
    config = base.get_config()
    config.name = "flamingo_9b"
    config.model.lm.update(lm_7b.SHAPE)
    config.model.xattn.every = 4  # 8 layers
    config.data.tokenizer = f"{data}/tokenizer"
    config.data.datasets = mixture.datasets(data, scale=2)
    config.mesh.data = 128
    return config
