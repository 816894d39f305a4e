"""Experiments: each file is one, with its command and what to expect of it in the docstring."""
