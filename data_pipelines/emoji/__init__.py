"""Emoji as a world of pictures that others drew: the same concepts in the styles of two vendors."""
