"""The planner.

Compiles the step for a TPU that need not be there, and reads from the compiled text how large and
how fast it is.
"""
