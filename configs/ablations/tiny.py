r"""The ablations of Tables 3 and 10 with the tiny Flamingo of configs/tiny.py.

launch/ablations.sh trains all rows and compares them with the base. One row by hand, with the
towers of the demo:

    COMMAND
        python -m flamingo_jax.train --config=configs/ablations/tiny.py:no_gate \
            --workdir=runs/ablations/no_gate
    EXPECTED
        launch/README.md has the differences from the base for each row, and their signs in the
        paper.

The names of the rows are those of configs/ablations/flamingo_3b.py. Left out are rows that change
data which the tiny world does not have (no_vtp, laion, lm_c4), `every_4th` (of four blocks it is
one layer, as in `one_layer`), and `p_next_0` and `p_next_1`: every picture of the world comes
before its text.

All rows have the base's updates. So a row without a dataset has fewer gradients, as the step times
of Table 3 suggest. `round_robin` has one gradient per update and twice as many updates.
"""

from ml_collections import config_dict

from configs import tiny

# {row: {field: its value}}, where the base has another.
ROWS = {
    "base": {},
    "no_pairs": {},
    "no_pages": {},
    "round_robin": {"mixing": "round_robin"},
    "no_gate": {"model.xattn.gate": "none"},
    "vanilla": {"model.xattn.dense": False},
    "one_layer": {"model.xattn.every": 4, "model.xattn.offset": 2},
    "every_2nd": {"model.xattn.every": 2},
    "mlp": {"model.resampler.kind": "mlp", "model.resampler.mlp_ratio": 6},
    "transformer": {"model.resampler.kind": "transformer"},
    "resampler_small": {"model.resampler.width": 32, "model.resampler.num_heads": 2},
    "resampler_large": {"model.resampler.num_layers": 2},
    "all_images": {"model.xattn.attend": "all"},
    "small_vision": {},
    "grafting": {"model.xattn.grafted_layers": 2},
    "vision_random": {
        "unfrozen": ("vision",),
        "towers.vision": None,
        "towers.random": ("vision",),
    },
    "vision_trained": {"unfrozen": ("vision",)},
    "lm_random": {"unfrozen": ("lm",), "towers.lm": None, "towers.random": ("lm",)},
    "lm_trained": {"unfrozen": ("lm",)},
    "text_random": {"unfrozen": ("lm",), "towers.lm": None, "towers.random": ("lm",)},
    # A tenth of the learning rate, as in the paper.
    "text_trained": {"unfrozen": ("lm",), "optimizer.lm.learning_rate": 4e-4},
}
# The datasets that a row is trained without.
LEFT_OUT = {"no_pairs": "pairs", "no_pages": "pages"}
# The width of a vision encoder with a quarter of the weights, for NFNet-F0 in place of NFNet-F6.
SMALL_VISION = {
    "model.vision.stem_channels": (12, 24),
    "model.vision.widths": (24, 48),
}


def get_config(argument: str = "base") -> config_dict.ConfigDict:
    """Returns the config of one row.

    Args:
        argument: ROW, for the flamingo stage, or ROW,contrastive for the stage that trains the
            vision encoder of the row `small_vision`.

    Raises:
        ValueError: if there is no such row or stage.
    """
    row, _, stage = argument.partition(",")
    if row not in ROWS:
        raise ValueError(
            f"The ablations of the tiny Flamingo have no row {row!r}; expected one of "
            f"{', '.join(ROWS)}."
        )
    config = tiny.get_config(stage or "flamingo")
    config.name = f"{config.name}_{row}"
    if row == "small_vision":
        config.update_from_flattened_dict(SMALL_VISION)
    if config.stage != "flamingo":
        return config
    if row in LEFT_OUT:
        with config.data.datasets.unlocked() as datasets:
            del datasets[LEFT_OUT[row]]
    if row.startswith("text_"):
        text = tiny.get_config("language_model").data.datasets.text
        with config.data.datasets.unlocked() as datasets:
            datasets.text = text
    config.update_from_flattened_dict(ROWS[row])
    if config.mixing == "round_robin":
        config.steps *= len(config.data.datasets)
    return config
