"""Chips that do not exist, for meshes of any size.

Code that lays out arrays asks a device only for its coordinates and its platform.
"""

import itertools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from flamingo_jax.sharding.mesh import AXES


class Chip:
    """Looks like a device of a TPU slice."""

    platform = "tpu"
    process_index = 0

    def __init__(self, number, coords):
        self.id, self.coords = number, coords

    def __repr__(self):
        return f"chip {self.coords}"

    @property
    def __class__(self):
        """The type in annotations, which are checked at run time."""
        return jax.Device


def torus(*shape):
    """Returns the chips of a slice, in the order of their coordinates."""
    places = itertools.product(*map(range, shape))
    return [Chip(number, coords) for number, coords in enumerate(places)]


def mesh(replica, data, model):
    """Returns a mesh of these sizes; its chips have arbitrary coordinates."""
    chips = np.array(torus(replica, data, model)).reshape(replica, data, model)
    return Mesh(chips, AXES, axis_types=(AxisType.Auto,) * len(AXES))
