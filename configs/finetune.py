r"""Fine-tuning on one benchmark, at 480 pixels (paper, B.2.2).

The language model is frozen; the vision encoder is trained too.

    COMMAND
        python -m data_pipelines.run --pipeline=benchmark --task=vqav2 \
            --input=/official/vqav2 --output=/data/vqav2
        python -m flamingo_jax.plan --config=configs/finetune.py:vqav2 --topology=v4:4x4x8
        launch/tpu_pod.sh train --name=NAME --mount=BUCKET:/data -- \
            --config=configs/finetune.py:vqav2,/data --workdir=gs://BUCKET/vqav2 \
            --config.initial=gs://BUCKET/80b/export
    EXPECTED
        The plan of vqav2 (libtpu 0.0.42.1): 23.4 GiB per chip, 0.23 s per update.
        Scores: Tables 2 and 8 of the paper, with its Flamingo-80B and the best point of the grid
        for each task: see TASKS below.

The argument is TASK[,DIRECTORY[,SIZE]]: one of TASKS; the directory of the tokenizer and of the
records, with one directory for each task; and 80b (default), 9b or 3b. A record is an image or
video, its prompt in the form of the few-shot prompts, and all right answers. The loss is over the
whole text, as for all pairs; --config.data.datasets.TASK.loss_on=answers counts the answers alone.
The paper fine-tunes in "the single-image/video format".

The paper searches a grid for each task on a part of its validation set: GRID, which
configs/finetune_grid.py gives to flamingo_jax.finetune. This file is one point of it.
"""

from ml_collections import config_dict

from configs import flamingo_3b, flamingo_9b, flamingo_80b
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DatasetConfig

# {task: (tokens of a row, frames of a visual input, the paper's result)}. We chose the lengths.
TASKS = {
    "vqav2": (64, 1, "accuracy 82.0 test-dev, 82.1 test-std"),
    "coco": (64, 1, "CIDEr 138.1"),
    "vatex": (64, 8, "CIDEr 84.2"),
    "vizwiz": (64, 1, "accuracy 65.7 test-dev, 65.4 test-std"),
    "msrvttqa": (64, 8, "accuracy 47.4"),
    "visdial": (512, 1, "NDCG 61.8 validation, 59.7 test-std"),  # a caption and ten rounds
    "youcook2": (64, 8, "CIDEr 118.6"),
    "textvqa": (64, 1, "accuracy 57.1 validation, 54.1 test-std"),
    "hateful_memes": (128, 1, "ROC AUC 86.6 test seen"),  # with the words on the picture
}
SIZES = {"80b": flamingo_80b, "9b": flamingo_9b, "3b": flamingo_3b}

# The paper states the lowest and the highest learning rate, that it falls "by factors of 10", the
# two batch sizes, and augmentation on or off.
GRID = {
    "optimizer.learning_rate": (3e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5),
    "optimizer.final_fraction": (0.1, 0.01),
    "batch_size": (8, 16),
    "augment": (True, False),
    "steps": (2_000, 5_000),  # searched too, without a stated number: these are ours
}


def get_config(argument: str = "vqav2") -> config_dict.ConfigDict:
    """Returns the config: a point of the grid.

    Args:
        argument: TASK, TASK,DIRECTORY or TASK,DIRECTORY,SIZE.

    Raises:
        ValueError: if there is no such task or size.
    """
    parts = argument.split(",")
    task, directory, size = (*parts, *("", "/data", "80b")[len(parts) :])[:3]
    if len(parts) > 3 or task not in TASKS or size not in SIZES:
        raise ValueError(
            f"configs/finetune.py got {argument!r}; expected TASK[,DIRECTORY[,SIZE]] with a task "
            f"of {', '.join(TASKS)} and a size of {', '.join(SIZES)}, as in "
            "--config=configs/finetune.py:vqav2,/data,3b"
        )
    length, frames, _ = TASKS[task]
    config = SIZES[size].get_config(directory)
    config.name = f"finetune_{task}_{size}"
    config.seed = 1  # of the validation queries too, by default as in data_pipelines and evaluate
    config.unfrozen = ("vision",)
    config.steps = 5_000
    # The rate falls by a factor of ten. The paper states no other rate for the vision encoder;
    # --config.optimizer.vision.learning_rate sets one.
    config.optimizer.update(
        learning_rate=1e-6, warmup_steps=0, schedule="exponential", final_fraction=0.1
    )
    config.data.image_size = 480
    pairs = DatasetConfig(
        "pairs", f"{directory}/{task}", batch_size=8, length=length, num_frames=frames
    )
    config.data.datasets = editable({task: pairs})
    config.hooks.update(save_every=500)
    # It is asked at 0 shots, in the form that it learns: without examples of text alone.
    config.evaluate.update(shots=(0,), text_examples=0)
    config.mesh.update(replica=1, data=8)  # a batch has 8 rows
    return config
