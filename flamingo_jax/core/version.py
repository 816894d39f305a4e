"""The version of the package, for what writes it into files.

`setup.py` reads it here without importing anything.
"""

__version__ = "0.4.0"
