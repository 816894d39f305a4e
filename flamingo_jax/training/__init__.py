"""Training: one program for language_model, contrastive and flamingo; an objective is a pair of pure functions and two tables."""
