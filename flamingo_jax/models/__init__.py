"""The models of the paper, one file for each idea."""
