"""The model card of an export and the datasheet of a dataset (paper, Appendices E and F)."""
