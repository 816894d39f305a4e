"""The files of a publisher: which ones are read, and which ones are fetched."""
