"""Pointers of Git LFS: a clone without `git lfs pull` has one in the place of each large file.

A pointer is a text file of three lines, the first of which is its version (the specification of
Git LFS, docs/spec.md).
"""

from flamingo_jax.core.paths import Path, regular

_START = b"version https://git-lfs"


def is_pointer(content: bytes) -> bool:
    """Returns True if these bytes are a pointer."""
    return content.startswith(_START)


def problem(file: Path) -> str | None:
    """Returns the error of a file that is a pointer, or None."""
    if not file.is_file():
        return None
    with regular(file).open("rb") as opened:
        if not is_pointer(opened.read(len(_START))):
            return None
    return (
        f"{file} is a pointer of Git LFS, and not the file that it points to. Run git lfs pull "
        "there, or download the file itself."
    )
