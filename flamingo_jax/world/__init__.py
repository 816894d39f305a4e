"""The synthetic world of coloured shapes: scenes, their texts, and interleaved pages. No jax."""
