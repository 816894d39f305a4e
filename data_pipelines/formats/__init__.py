"""Readers of file formats: one part of a file to rows, samples or rejects, with bounded memory."""
