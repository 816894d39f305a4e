"""The 1.4B language model of Flamingo's LM tower, trained on packed text as Chinchilla was (Hoffmann et al. 2022).

    COMMAND  python -m flamingo_jax.plan --config=configs/lm_1b4.py --topology=v4:4x4x4
             launch/tpu_pod.sh train --name=NAME -- --config=configs/lm_1b4.py:/data --workdir=gs://BUCKET/lm_1b4
    EXPECTED The plan says "fits".

24 blocks of width 2048 with 16 heads of 128: 1.375B weights (models/sizes.py). Chinchilla's 70B took a learning rate of 1e-4 and batches of 1.5M, then 3M
tokens; for the smaller ones its paper gives no row, and learning rate and batch here are our choice.
"""

from ml_collections import config_dict

from configs import base

SHAPE = {"vocab_size": 32_000, "num_layers": 24, "width": 2_048, "num_heads": 16}


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory of the tokenizer and of the records of text.
    """
    config = base.get_config()
    config.name = "lm_1b4"
    config.stage = "language_model"
    config.model.lm.update(SHAPE)
    config.data.tokenizer = f"{data}/tokenizer"
    # Documents of 512 tokens or more fill the rows; `--pipeline=pool --rows_per_group=16` says what suits the data.
    config.data.datasets = {
        "text": base.dataset(
            "text", f"{data}/text", batch_size=1024, length=2048, documents_per_row=4, rows_per_group=16
        )
    }
    config.steps = 500_000
    config.optimizer.update(learning_rate=2e-4, warmup_steps=1_500, schedule="cosine", final_fraction=0.1)
    config.mesh.update(data=64)
    return config
