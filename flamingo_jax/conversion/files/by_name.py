"""The files of a publisher's model that are fetched by its name: --input=org/name[@revision].

    weights     those that `reading.open_weights` reads: of several kinds one, and all its shards
    the rest    config.json and the like, and the tokenizer

The same repository may hold the weights of other libraries, checkpoints of training and pictures.
They stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamingo_jax.checkpoint import hub
from flamingo_jax.conversion import reading
from flamingo_jax.conversion.files.model_files import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_FILES,
    TORCH,
    files_of_model,
)
from flamingo_jax.core.paths import Path
from flamingo_jax.tokenizers.base import (
    FILE_NAME,
    JSON_NAME,
    SPECIAL_TOKENS_NAMES,
    VOCABULARY_NAME,
)

BESIDE = (
    *("config.json", "generation_config.json", "preprocessor_config.json", OPEN_CLIP_CONFIG),
    *(FILE_NAME, JSON_NAME, VOCABULARY_NAME, "added_tokens.json", *SPECIAL_TOKENS_NAMES),
)
_PICKLED_TREE = ".npz"  # of the NFNets


def local(path: Path, first: Sequence[str] = ()) -> Path:
    """Returns a path as it is, or where the files of the repository of this name are now.

    A path that exists is not looked up.

    Args:
        path: of a file or a directory, or org/name, org/name@revision, org/name:file.
        first: names of files that the source prefers to the canonical ones.

    Raises:
        HubError: as `checkpoint.hub.fetch`.
        ConversionError: the repository does not hold the weights of one model.
    """
    name = hub.name_of(path)
    if name is None:
        return path
    one: list[str] = [name.file] if name.file else []

    def choose(names: Sequence[str], read: Callable[[str], Path]) -> list[str]:
        top = [each for each in names if "/" not in each]
        trees = [each for each in top if each.endswith(_PICKLED_TREE)]
        prefers = OPEN_CLIP_FILES if OPEN_CLIP_CONFIG in top and not first else first
        if not one and len(trees) == 1 and not any(map(_is_weights, top)):
            one.extend(trees)
        weights = one or list(files_of_model(top, prefers, where=str(name)))
        if weights[0].endswith(".index.json") and weights[0] in names:
            weights = [*weights, *reading.files_of_index(read(weights[0]))]
        return [*weights, *(each for each in BESIDE if each in top)]

    folder = hub.fetch(name, choose)
    return folder / one[0] if one else folder


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", *TORCH))
