"""Prompts, cached decoding, log-likelihood ranking, and the Python interface `Flamingo.load`."""
