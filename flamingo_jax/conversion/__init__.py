"""Weights of other implementations, turned into exports: tables of what becomes what, not logic."""
