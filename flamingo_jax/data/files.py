"""Files in a folder and the folders in it, in one order for all.

What is embedded by one program is found again by another.
"""

from collections.abc import Iterator

from flamingo_jax.core.paths import Path, PathLike

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def files_below(directory: PathLike) -> Iterator[Path]:
    """Yields all files in a directory and the directories in it, in the order of their names."""
    for entry in sorted(Path(directory).iterdir()):
        if entry.is_dir():
            yield from files_below(entry)
        else:
            yield entry


def image_files(directory: PathLike) -> Iterator[Path]:
    """Yields those of `files_below` whose name is an image's.

    Nothing where there is no such directory.
    """
    if Path(directory).is_dir():
        yield from (
            file for file in files_below(directory) if file.suffix.lower() in IMAGE_SUFFIXES
        )
