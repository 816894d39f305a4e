"""A config file: further training of converted models on a small world.

--config=tests/e2e/imported.py:WORLD,FLAMINGO     trains a converted Flamingo further
--config=tests/e2e/imported.py:WORLD,LM,VISION    trains new layers between two converted towers
"""

from configs import flamingo_80b
from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.core.config import editable, from_dict
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.models.vit import ViTConfig

STEPS = 4


def get_config(argument):
    """Returns the config, with the model of the exports."""
    world, *exports = argument.split(",")
    cards = [read_card(export)[1] for export in exports]
    config = flamingo_80b.get_config()
    config.mesh.update(replica=1, data=1, model=1, model_chips=())
    config.model.lm.vocab_size = 0
    config.name, config.steps, config.seed = "imported", STEPS, 3
    model = {}
    for card in cards:
        model |= {
            part: _plain(fields) for part, fields in card["config"].items() if fields is not None
        }
    _set_model(config.model, model)
    config.data.tokenizer = exports[0]
    config.data.update(_plain(cards[-1]["preprocessing"]))
    if len(exports) == 1:
        config.initial = exports[0]
    else:
        config.towers.lm, config.towers.vision = exports
        config.model.new_tokens = ("<EOC>", "<image>")
    pages = DatasetConfig(
        "interleaved", f"{world}/pages", batch_size=4, length=48, max_images=2, p_next=0.0
    )
    captions = DatasetConfig(  # the same in each update, so that their losses can be compared
        "pairs", f"{world}/pairs", split="train[:4]", batch_size=4, length=48, space_prefix=0.0
    )
    config.data.datasets = editable({"pages": pages, "captions": captions})
    config.precision.compute = "float32"
    config.optimizer.update(learning_rate=1e-3, warmup_steps=0)
    config.hooks.update(log_every=1, save_every=2, tensorboard=False, progress=False)
    return config


def _set_model(parts, model):
    """Sets the parts of the model. What `model` lacks, the layers between towers, becomes small."""
    parts.resampler.update(num_layers=1, width=32, num_heads=2, head_dim=16, num_latents=2)
    parts.xattn.every = 1
    if "vit" in model:
        parts.vision, parts.vit = None, editable(from_dict(ViTConfig, model.pop("vit")))
    for name, fields in model.items():
        if isinstance(fields, dict):
            parts[name].update(fields)
        else:
            parts[name] = fields


def _plain(content):
    """Turns the lists of JSON back into tuples."""
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    return tuple(content) if isinstance(content, list) else content
