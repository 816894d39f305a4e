"""The base of all packages: weights and their axes, trees, precision, configs and paths."""
