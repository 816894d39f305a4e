"""The system of the Flamingo paper (arXiv 2204.14198) in JAX and Haiku.

    from flamingo_jax import BeamSearch, Flamingo, Image

    model = Flamingo.load("runs/demo/flamingo/export")
    model.generate([Image("dog.jpg"), "Output:"], method=BeamSearch(3))        -> " A dog."

Names are imported when they are used: `import flamingo_jax` alone imports neither jax nor a module
of the package. `flamingo_jax.train` and `flamingo_jax.evaluate` are programs (`python -m
flamingo_jax.train`). To train or evaluate in Python, call the functions that these programs call:
`flamingo_jax.training.run.train(config, workdir)` and
`flamingo_jax.evaluation.run.run(config, checkpoint, output, cluster)`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"]:  # Python's mark while it looks for a program here
    from flamingo_jax.core import exit_status

    exit_status.at_interrupt_end()

if TYPE_CHECKING:
    from flamingo_jax.core.version import __version__
    from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
    from flamingo_jax.inference.model import Flamingo, load
    from flamingo_jax.inference.prompt import Image, Prompt, Video
    from flamingo_jax.training.config import TrainConfig

__all__ = [
    "BeamSearch",
    "Flamingo",
    "Greedy",
    "Image",
    "Prompt",
    "Sample",
    "TrainConfig",
    "Video",
    "__version__",
    "load",
]

_MODULES = {
    "BeamSearch": "inference.methods",
    "Flamingo": "inference.model",
    "Greedy": "inference.methods",
    "Image": "inference.prompt",
    "Prompt": "inference.prompt",
    "Sample": "inference.methods",
    "TrainConfig": "training.config",
    "Video": "inference.prompt",
    "__version__": "core.version",
    "load": "inference.model",
}

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}. Its public names are "
                f"{', '.join(__all__)}."
            )
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
