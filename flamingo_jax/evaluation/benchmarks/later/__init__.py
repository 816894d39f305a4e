"""Benchmarks of later models, which the Flamingo paper does not have."""
