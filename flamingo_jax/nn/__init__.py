"""Pure functions and small Haiku layers: the mathematics from which the models are put together."""
