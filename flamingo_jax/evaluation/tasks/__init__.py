"""The benchmarks, one file each; importing this package registers them all."""

from flamingo_jax.evaluation.tasks import lookup, world

__all__ = ["lookup", "world"]
