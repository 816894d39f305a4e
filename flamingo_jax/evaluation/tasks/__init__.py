"""The benchmarks, one file each; importing this package registers them all."""

from flamingo_jax.evaluation.tasks import world

__all__ = ["world"]
