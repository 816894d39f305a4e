"""The synthetic world of coloured shapes: scenes, texts and interleaved pages, without jax."""
