"""Readers of file formats: they yield rows or samples, or Rejects; their memory is bounded."""
