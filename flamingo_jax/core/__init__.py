"""What everything stands on: weights and their axes, trees, precision, configs and paths."""
