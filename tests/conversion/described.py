"""Their models without their weights: what a conversion reads to describe itself."""

import jax
import ml_dtypes

from flamingo_jax.conversion import reading


class Described(reading.InMemory):
    """Names, shapes and dtypes of their model, without the weights."""

    def __init__(self, shapes):
        self._shapes = shapes

    def names(self):
        return self._shapes


def shapes_of(kind, config):
    """The state dict of transformers' model, in bfloat16 as on the hub, without making weights."""
    import torch

    with torch.device("meta"):
        model = kind(kind.config_class(**config))
    return {
        name: jax.ShapeDtypeStruct(tuple(tensor.shape), ml_dtypes.bfloat16)
        for name, tensor in model.state_dict().items()
    }
