"""Training: one program for language_model, contrastive and flamingo.

An objective is a pair of pure functions and two tables.
"""
