"""Few-shot evaluation: one setting for all tasks (paper, B.1.5).

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=runs/demo/flamingo --output=runs/demo/report
                 --config.data.world=runs/demo/world [--task=format,bind2] [--shots=0,4]
    EXPECTED of the tiny Flamingo: `format` exact match at most 0.45 at 0 shots, at least 0.90 from 1 shot on; `bind2` at
             least 0.70 at 4 shots, 0.75 at 8; shuffled labels and hidden images at what guessing gives.

The paper decodes with 3 beams (`--config.inference.decoding=beam`); the tasks of the tiny world are reported greedily.
"""

from ml_collections import config_dict

# Each family, and its controls: the same queries and code, one thing changed.
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


def get_config() -> config_dict.ConfigDict:
    """Returns the schema of `flamingo_jax.evaluation.config.EvaluateConfig`."""
    config = config_dict.ConfigDict()
    config.tasks = TASKS
    config.shots = (0, 1, 2, 4, 8)
    config.n = 400  # standard error at most (.25 / 400)**.5 = 0.025
    config.seed = 1
    config.split = "test"
    config.batch_size = 100
    config.num_samples = 2  # per task and number of shots, kept with their images for the sheet
    config.data = config_dict.create(world="runs/demo/world")
    # Where frozen towers lie that have moved since training.
    config.towers = config_dict.create(lm=config_dict.placeholder(str), vision=config_dict.placeholder(str))
    config.inference = config_dict.create(
        decoding="greedy",  # beam: the paper's, for open-ended tasks
        beams=3,  # B.1.5
        max_new_tokens=8,  # an answer of the tiny world is one word and <EOC>; captions need 20
        length_penalty=0.0,  # the paper mentions none
        normalise="sum",  # of a candidate's log-likelihoods; mean: per token
        terminate="nothing",  # end_of_chunk: <EOC> counts as a candidate's last token
        compute="float32",  # bfloat16 on accelerators
        # Shapes that prompts are padded to: a program is compiled for each that occurs. The tiny world needs two:
        # 8 shots of bind2 are 8 x 6 + 5 = 53 tokens and 9 images, 4 shots 29 and 5.
        lengths=(32, 64, 128, 256, 512, 1024, 2048),
        num_images=(5, 9, 17, 33),
        images_per_pass=64,
        candidates_per_pass=16,
        latents_megabytes=256,
        xattn_chunk=64,
    )
    config.mesh = config_dict.create(replica=1, data=1, model=1)  # data=-1: prompts spread over all devices
    return config.lock()
