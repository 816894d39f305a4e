"""Reads datasets of TFDS (`coco_captions` and others) in ArrayRecord format, without TensorFlow.

The datasets are written by `tfds build NAME --file_format=array_record`, with the features of their
builders. `sources` reads the datasets that data_pipelines writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.files import refuse_pipes


def is_prepared(directory: PathLike) -> bool:
    """Returns True if a directory is a dataset of TFDS; NotAFileError if it has a pipe."""
    if not (Path(directory) / "dataset_info.json").exists():
        return False
    refuse_pipes(directory)
    return True


def examples(directory: PathLike, split: str) -> Sequence[Mapping[str, Any]]:
    """Returns the examples of a split; each is read on access.

    Args:
        directory: contains dataset_info.json and the ArrayRecord files.
        split: name of the split.

    Returns:
        A sequence of dicts: images as encoded bytes, text as bytes, numbers as numpy scalars.

    Raises:
        FileNotFoundError: there is no dataset at `directory`.
        ValueError: the dataset has no such split, or is not in ArrayRecord format.
    """
    import tensorflow_datasets as tfds

    if not is_prepared(directory):
        raise FileNotFoundError(
            f"There is no dataset at {directory}: dataset_info.json is missing. Check the path."
        )
    builder = tfds.builder_from_directory(str(directory))
    encoded = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    try:
        return builder.as_data_source(split, decoders=encoded)
    except (ValueError, NotImplementedError, OSError) as error:
        known = {name: info.num_examples for name, info in builder.info.splits.items()}
        raise ValueError(
            f"Cannot read split {split!r} of {directory}: {error} It has {known}. "
            "Prepare it with `tfds build NAME --file_format=array_record`."
        ) from error


def class_names(directory: PathLike, feature: str = "label") -> list[str]:
    """Returns the names of the classes of a label, in the order of their numbers.

    Raises:
        ValueError: there is no dataset at `directory`, or it has no such label.
    """
    import tensorflow_datasets as tfds

    features = {}
    if is_prepared(directory):
        features = dict(tfds.builder_from_directory(str(directory)).info.features)
    if not isinstance(features.get(feature), tfds.features.ClassLabel):
        raise ValueError(
            f"The dataset at {directory} has no classes {feature!r}; it has "
            f"{', '.join(features) or 'nothing'}."
        )
    return list(features[feature].names)
