"""Experiments: one file each, with its command and expected result in the docstring."""
