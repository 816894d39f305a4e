"""Flamingo-3B (Tables 4 and 5): a 1.4B language model, a cross-attention layer before every block; no model sharding, as in the paper.

    COMMAND  python -m flamingo_jax.plan --config=configs/flamingo_3b.py --topology=v4:4x4x4
             launch/tpu_pod.sh train --name=NAME -- --config=configs/flamingo_3b.py:/data --workdir=gs://BUCKET/3b --config.towers.lm=gs://BUCKET/lm/export --config.towers.vision=gs://BUCKET/vision/export
    EXPECTED The plan says "fits". The paper: 0-shot COCO CIDEr 73.0, 32-shot 99.0 (Table 1); its private data are not to be had.

The argument is the directory of the tokenizer and of the records. Batches are the ablation's (B.3.1); those of the paper's final run
are not stated. `mesh.data` is the number of chips: change it with the topology.
"""

from ml_collections import config_dict

from configs import base, lm_1b4, mixture


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory of the tokenizer and of the datasets.
    """
    config = base.get_config()
    config.name = "flamingo_3b"
    config.model.lm.update(lm_1b4.SHAPE)
    config.model.xattn.every = 1  # 24 layers
    config.data.tokenizer = f"{data}/tokenizer"
    config.data.datasets = mixture.datasets(data, scale=1)
    config.mesh.data = 64  # divides the smallest batch, VTP's 64
    return config
