r"""The ablations of Flamingo-3B (paper, 3.3, B.3.1, Tables 3 and 10).

    COMMAND
        launch/tpu_pod.sh train --name=NAME -- --workdir=gs://BUCKET/every_4th \
            --config=configs/ablations/flamingo_3b.py:every_4th,/data \
            --config.towers.lm=gs://BUCKET/lm/export \
            --config.towers.vision=gs://BUCKET/vision/export
    EXPECTED
        Tables 3 and 10 of the paper, with 4 shots on validation subsets. Its data are private; we
        have run no row. Parameters, and the last column of Table 3:

        base          3.2B  70.7   one_layer      2.0B  59.8   p_next_0        3.2B  69.6
        no_vtp        3.2B  67.3   every_4th      2.3B  68.8   p_next_1        3.2B  70.4
        no_pairs      3.2B  60.9   every_2nd      2.6B  68.2   clip            3.1B  64.9
        laion         3.2B  66.4   mlp            3.2B  66.6   nfnet_f0        2.9B  62.7
        no_m3w        3.2B  53.4   transformer    3.2B  66.7   lm_c4           3.2B  62.8
        round_robin   3.2B  62.9   resampler_small 3.1B 67.9   vision_random   3.2B  61.4
        no_gate       3.2B  66.5   resampler_large 3.4B 69.0   vision_trained  3.2B  68.1
        vanilla       2.4B  66.9   all_images     3.2B  63.5   m3w_only        3.2B  (version 1)
        lm_random     3.2B  57.8   lm_trained     3.2B  62.7   grafting        3.3B  63.1
        text_random   3.2B  55.9   text_trained   3.2B  68.6
        laion_clip    3.1B  54.7   m3w_laion_vtp_clip 3.1B 64.9

The argument is the row, or ROW,DIRECTORY with the directory of the tokenizer and of the records.
Row lm_c4 differs in the tower that you give, an LM trained on C4. Rows of CLIP need the export of
CLIP's ViT-L/14. Rows lm_random, text_random and vision_random train a tower from nothing: leave it
out of the command.

Rows text_random and text_trained train the language model on text too ("MassiveText"): rows of
2,048 tokens, with a lambda of 1 and, for a pretrained language model, a tenth of the learning rate.
The paper does not state their batch. With 128 rows an update has 2.4 times the FLOPs of one of
lm_trained (planning/flops.py); in the paper it takes 2.2 times as long.

Every row has a million gradients. So rows with fewer datasets, whose updates have fewer gradients,
have more updates; the paper does not say it of them. It gives no sizes for the other resamplers and
for the grafted stack (here 12 layers and 12 blocks, half of the LM's): ours have the paper's
numbers of parameters.
"""

from ml_collections import config_dict

from configs import flamingo_3b, mixture
from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models import sizes

GRADIENTS = 1_000_000
EVALUATED = ("coco", "okvqa", "vqav2", "msvdqa", "vatex")  # the scores of Table 3

# {row: {field: its value}}, where the base model has another.
ROWS = {
    "base": {},
    "m3w_only": {},
    "no_vtp": {},
    "no_pairs": {},
    "laion": {},
    "no_m3w": {},
    "round_robin": {"mixing": "round_robin"},
    "no_gate": {"model.xattn.gate": "none"},
    "vanilla": {"model.xattn.dense": False},
    "grafting": {"model.xattn.grafted_layers": 12},
    "one_layer": {"model.xattn.every": 24, "model.xattn.offset": 12},
    "every_4th": {"model.xattn.every": 4},
    "every_2nd": {"model.xattn.every": 2},
    "mlp": {"model.resampler.kind": "mlp", "model.resampler.num_layers": 10},
    "transformer": {"model.resampler.kind": "transformer"},
    "resampler_small": {"model.resampler.width": 1024, "model.resampler.num_heads": 8},
    "resampler_large": {"model.resampler.width": 2048, "model.resampler.num_layers": 7},
    "all_images": {"model.xattn.attend": "all"},
    "p_next_0": {"data.datasets.m3w.p_next": 0.0},
    "p_next_1": {"data.datasets.m3w.p_next": 1.0},
    "clip": {"data.image_size": 224},
    "laion_clip": {"data.image_size": 224},
    "m3w_laion_vtp_clip": {"data.image_size": 224},
    "nfnet_f0": {},
    "lm_c4": {},
    "vision_random": {"unfrozen": ("vision",), "towers.random": ("vision",)},
    "vision_trained": {"unfrozen": ("vision",)},
    "lm_random": {"unfrozen": ("lm",), "towers.random": ("lm",)},
    "text_random": {"unfrozen": ("lm",), "towers.random": ("lm",)},
    "text_trained": {"unfrozen": ("lm",), "optimizer.lm.learning_rate": 1e-5},
    "lm_trained": {"unfrozen": ("lm",)},
}
LEFT_OUT = {
    "m3w_only": ("align", "ltip", "vtp"),
    "no_vtp": ("vtp",),
    "no_pairs": ("align", "ltip"),
    "no_m3w": ("m3w",),
    "laion_clip": ("m3w", "vtp"),
}
LAION = ("laion", "laion_clip", "m3w_laion_vtp_clip")  # in the place of ALIGN and LTIP
CLIP = ("clip", "laion_clip", "m3w_laion_vtp_clip")


def get_config(argument: str = "base") -> config_dict.ConfigDict:
    """Returns the config of one row.

    Args:
        argument: ROW or ROW,DIRECTORY.

    Raises:
        ValueError: if there is no such row.
    """
    row, _, data = argument.partition(",")
    if row not in ROWS:
        raise ValueError(f"Tables 3 and 10 have no row {row!r}; expected one of {', '.join(ROWS)}.")
    directory = data or "/data"
    datasets = mixture.datasets(directory, scale=1)
    for name in LEFT_OUT.get(row, ()):
        del datasets[name]
    if row in LAION:  # with the batches of both
        align, ltip = datasets.pop("align"), datasets.pop("ltip")
        datasets["laion"] = DatasetConfig(
            "pairs",
            f"{directory}/laion400m",
            batch_size=align.batch_size + ltip.batch_size,
            length=align.length,
            weight=align.weight,
        )
    if row in ("text_random", "text_trained"):
        datasets["text"] = DatasetConfig(
            "text",
            f"{directory}/text",
            batch_size=128,
            length=2048,
            documents_per_row=4,
            rows_per_group=16,
        )
    config = flamingo_3b.get_config(directory)
    config.name = f"flamingo_3b_{row}"
    config.data.datasets = editable(datasets)
    # At 4 shots, on validation queries; --config.evaluate.every=N does it while training.
    config.evaluate.update(tasks=EVALUATED, shots=(4,), n=0)
    config.update_from_flattened_dict(ROWS[row])
    if row in CLIP:
        config.model.vision, config.model.vit = None, editable(sizes.VITS["L14"])
    if row == "nfnet_f0":
        config.model.vision = editable(sizes.NFNETS["F0"])
    config.steps = GRADIENTS // (len(datasets) if config.mixing == "accumulate" else 1)
    return config
