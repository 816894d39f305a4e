"""The version of the package. `setup.py` reads it from this text and imports nothing."""

__version__ = "0.4.0"
