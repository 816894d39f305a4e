"""flamingo_jax: the whole system of "Flamingo: a Visual Language Model for Few-Shot Learning" in JAX and Haiku."""

__version__ = "0.4.0"
