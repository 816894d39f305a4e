"""Plans runs: compiles a step for a TPU slice without a TPU, and estimates its memory and time."""
