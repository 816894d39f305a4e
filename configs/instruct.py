r"""Fine-tuning on instruction data: conversations about images, and of text alone.

The language model and the vision encoder are frozen; the resampler, the cross-attention layers and
the new tokens learn from the answers alone.

    COMMAND
        python -m data_pipelines.run --pipeline=instruct --input=llava_v1_5_mix665k.json \
            --images=/data/images --output=/data/instructions
        python -m flamingo_jax.train --config=configs/instruct.py:/data,3b --workdir=runs/instruct \
            --config.initial=/data/3b/export
        python -m flamingo_jax.generate --checkpoint=runs/instruct --chat
    EXPECTED
        A loss that falls, and a dialogue in the form of the training: the export says how a
        dialogue is written, so that --chat has no example turns. Nothing was measured at this
        size: the paper does not train on instructions.

The argument is [DIRECTORY[,SIZE]]: the directory of the tokenizer and of the records, which are in
`instructions`; and 3b (default), 9b or 80b. MIMIC-IT is written with --format=mimic_it, and further
datasets are added by --config.data.datasets.NAME.path=... and its other fields.

The numbers are ours. 665,000 conversations in batches of 64 are 10,400 updates; this is about one
pass. A row has 1024 tokens and up to 8 images: what is longer is cut off.
"""

from ml_collections import config_dict

from configs import finetune
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DatasetConfig


def get_config(argument: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        argument: DIRECTORY or DIRECTORY,SIZE.

    Raises:
        ValueError: if there is no such size.
    """
    directory, _, size = argument.partition(",")
    size = size or "3b"
    if size not in finetune.SIZES:
        raise ValueError(
            f"configs/instruct.py got {argument!r}; expected DIRECTORY[,SIZE] with a size of "
            f"{', '.join(finetune.SIZES)}, as in --config=configs/instruct.py:/data,3b"
        )
    config = finetune.SIZES[size].get_config(directory)
    config.name = f"instruct_{size}"
    config.steps = 10_400
    # A tenth of the paper's rate for Flamingo; it falls to a tenth of itself.
    config.optimizer.update(
        learning_rate=1e-5, warmup_steps=300, schedule="exponential", final_fraction=0.1
    )
    conversations = DatasetConfig(
        "conversations",
        f"{directory}/instructions",
        batch_size=64,
        length=1024,
        max_images=8,
        loss_on="answers",
    )
    config.data.datasets = editable({"instructions": conversations})
    config.hooks.update(save_every=500)
    config.mesh.update(replica=1, data=64)
    return config
