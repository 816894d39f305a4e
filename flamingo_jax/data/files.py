"""Lists files in directories, in the same order for all programs.

One program embeds the images of a directory; another finds them again by their number.
"""

from collections.abc import Iterator

from flamingo_jax.core.paths import Path, PathLike

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def files_below(directory: PathLike) -> Iterator[Path]:
    """Yields all files in a directory and its subdirectories, in the order of their names."""
    for entry in sorted(Path(directory).iterdir()):
        if entry.is_dir():
            yield from files_below(entry)
        else:
            yield entry


def image_files(directory: PathLike) -> Iterator[Path]:
    """Yields the image files of `files_below`; nothing if the directory does not exist."""
    if Path(directory).is_dir():
        yield from (
            file for file in files_below(directory) if file.suffix.lower() in IMAGE_SUFFIXES
        )
