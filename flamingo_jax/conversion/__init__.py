"""Converts weights of other implementations to exports, by tables of source and target names."""
