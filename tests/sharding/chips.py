"""Chips that do not exist, for meshes of any size.

Code that lays out arrays asks a device only for its coordinates and its platform.
"""

import itertools
import types

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import AXES


class Chip:
    """Looks like a device of a TPU slice."""

    platform, device_kind, core_on_chip = "tpu", "TPU v4", 0
    process_index = 0

    def __init__(self, number, coords, slice_index=0):
        self.id, self.coords, self.slice_index = number, coords, slice_index

    def __repr__(self):
        return f"chip {self.coords}"

    @property
    def __class__(self):
        """The type in annotations, which are checked at run time."""
        return jax.Device


class Single(Chip):
    """Looks like the one device of a machine: by default a GPU with cuDNN."""

    def __init__(self, platform="gpu", *, version="cuda 13", capability="9.0"):
        super().__init__(0, (0, 0, 0))
        self.platform, self.compute_capability = platform, capability
        self.client = types.SimpleNamespace(platform_version=version)

    @property
    def layout(self):
        """The layout of a program on this device alone."""
        return Layout(Mesh(np.array(self).reshape(1, 1, 1), AXES))


def torus(*shape, slice_index=0):
    """Returns the chips of a slice, in the order of their coordinates."""
    places = itertools.product(*map(range, shape))
    return [Chip(number, coords, slice_index) for number, coords in enumerate(places)]


def mesh(replica, data, model):
    """Returns a mesh of these sizes; its chips have arbitrary coordinates."""
    chips = np.array(torus(replica, data, model)).reshape(replica, data, model)
    return Mesh(chips, AXES, axis_types=(AxisType.Auto,) * len(AXES))
