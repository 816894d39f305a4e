"""The 70B language model of Flamingo's LM tower, trained on packed text as Chinchilla was (Hoffmann et al. 2022).

    COMMAND  python -m flamingo_jax.plan --config=configs/lm_70b.py --topology=v4:8x12x16
             launch/tpu_pod.sh train --name=NAME -- --config=configs/lm_70b.py:/data --workdir=gs://BUCKET/lm_70b
    EXPECTED The plan says "fits".

80 blocks of width 8192 with 64 heads of 128: 70.06B weights (models/sizes.py). Chinchilla's 70B took a learning rate of 1e-4 and batches of 1.5M, then 3M
tokens; this is the 1.5M tokens twice, 3.1M.
"""

from ml_collections import config_dict

from configs import base

SHAPE = {"vocab_size": 32_000, "num_layers": 80, "width": 8_192, "num_heads": 64}


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory of the tokenizer and of the records of text.
    """
    config = base.get_config()
    config.name = "lm_70b"
    config.stage = "language_model"
    config.model.lm.update(SHAPE)
    config.data.tokenizer = f"{data}/tokenizer"
    # Documents of 512 tokens or more fill the rows; `--pipeline=pool --rows_per_group=16` says what suits the data.
    config.data.datasets = {
        "text": base.dataset(
            "text", f"{data}/text", batch_size=1536, length=2048, documents_per_row=4, rows_per_group=16
        )
    }
    config.steps = 500_000
    config.optimizer.update(learning_rate=1e-4, warmup_steps=1_500, schedule="cosine", final_fraction=0.1)
    config.mesh.update(replica=3, data=32, model=16)
    return config
