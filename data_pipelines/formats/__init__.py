"""Readers of file formats: they yield rows or samples, and Rejects for damage; memory is bounded."""
