r"""Few-shot evaluation: one setting for all tasks (paper, B.1.5).

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py \
                 --checkpoint=runs/demo/flamingo --output=runs/demo/report \
                 --config.data.world=runs/demo/world [--task=format,bind2] [--shots=0,4]
    EXPECTED of the tiny Flamingo: `format` exact match at most 0.45 at 0 shots, at least 0.90 from
             1 shot on; `bind2` at least 0.70 at 4 shots, 0.75 at 8; shuffled labels and hidden
             images at what guessing gives.

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper \
                 --checkpoint=DIR --output=DIR \
                 --config.data.coco=DIR --config.data.okvqa=DIR --task=coco,okvqa \
                 [--shots=0,4,8,16,32] [--config.mesh.data=-1]
    EXPECTED the rows of the paper's Table 1, next to the paper's values in the report. The paper's
             choices were made on `--config.split=validation`.

    Table 7  --task=imagenet,kinetics700 --shots=8,16 --config.selection=rices \
                 --config.num_support_per_class=5
             and the last row with --config.ensemble=6

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py:contrastive \
                 --checkpoint=DIR --output=DIR --config.data.coco=DIR --task=coco_retrieval \
                 [--config.templates=FILE] [--config.mesh.data=-1]
    EXPECTED of a contrastive model: the rows of Table 9, and zero-shot classification as in the
             first row of Table 7. The tiny one: --task=world_retrieval, at least 0.9 recall at 1
             both ways among 64 pictures.

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py --task=embed \
                 --checkpoint=DIR --output=DIR --config.data.embed=DIR
             writes image features, which data_pipelines.run --pipeline=dedup reads.

The tasks of the tiny world are decoded greedily; the paper decodes with 3 beams.
"""

import dataclasses

from ml_collections import config_dict

from flamingo_jax.core.config import editable
from flamingo_jax.evaluation.config import (
    CONTRASTIVE_TASKS,
    DIRECTORIES,
    FEW_SHOT_TASKS,
    EvaluateConfig,
)
from flamingo_jax.inference.config import InferenceConfig

# Each family of tasks with its controls: the same queries, with one thing changed.
TASKS = (
    "format",
    "format_shuffled",
    "format_hidden",
    "format_held_out",
    "bind2",
    "bind2_shuffled",
    "bind2_hidden",
    "bind2_held_out",
    "bind4",
)

DEMO = EvaluateConfig(
    tasks=TASKS,
    n=400,  # standard error at most (.25 / 400)**.5 = 0.025
    data={**DIRECTORIES, "world": "runs/demo/world"},
    towers={"lm": None, "vision": None},
    # An answer of the tiny world is one word and <EOC>. Prompts have two shapes: 8 shots of bind2
    # are 8 x 6 + 5 = 53 tokens and 9 images; 4 shots are 29 tokens and 5 images.
    inference=InferenceConfig(max_new_tokens=8),
)


def get_config(setting: str = "demo") -> config_dict.ConfigDict:
    """Returns the config; setting: "demo", "paper" or "contrastive".

    Raises:
        ValueError: the setting is another one.
    """
    if setting not in ("demo", "paper", "contrastive"):
        raise ValueError(
            f"configs/evaluate.py:{setting} is not known: take demo, paper or contrastive."
        )
    config = DEMO
    if setting == "paper":
        config = dataclasses.replace(
            config,
            tasks=FEW_SHOT_TASKS,
            shots=(0, 4, 8, 16, 32),
            n=0,  # all queries
            batch_size=32,
            inference=InferenceConfig(
                decoding="beam",
                max_new_tokens=20,  # the paper gives no bound
                compute="bfloat16",
                # VisDial, 16 shots: 16 * 21 sentences
                lengths=(32, 64, 128, 256, 512, 1024, 2048, 4096),
                num_images=(1, 5, 9, 17, 33),
                # 2048 supports * 64 latents * 8192 channels * 2 bytes = 2 GiB
                latents_megabytes=4096,
            ),
        )
    if setting == "contrastive":
        inference = dataclasses.replace(config.inference, compute="bfloat16")
        # n = 0: retrieval among fewer images would be easier.
        config = dataclasses.replace(config, tasks=CONTRASTIVE_TASKS, n=0, inference=inference)
    return editable(config)
