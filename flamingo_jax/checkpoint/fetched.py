"""Exports that are fetched by their names: Flamingo.load("org/name").

An export is stored in a repository as it is on disk: model.json, manifest.json, weights/ and the
files of the tokenizer at its top. Other files of the repository are not fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamingo_jax.checkpoint import hub, manifest
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.card import CARD
from flamingo_jax.core.paths import Path, PathLike

_TEXT_FILES = (".json", ".txt", ".model")  # of a tokenizer, besides the card and the manifest


def local(path: PathLike) -> Path:
    """Returns a path as it is, or where the export of this name is now.

    A path that exists is not looked up.

    Raises:
        HubError: as `checkpoint.hub.fetch`.
        CheckpointError: the repository holds no export.
    """
    name = hub.name_of(path)
    if name is None or name.file:
        return Path(path)

    def choose(names: Sequence[str], read: Callable[[str], Path]) -> list[str]:
        if CARD not in names or manifest.NAME not in names:
            raise CheckpointError(
                f"The repository {name} holds no export of flamingo_jax: it has no {CARD} with a "
                f"{manifest.NAME}. Convert a publisher's weights first: python -m "
                f"flamingo_jax.convert --source=SOURCE --input={name} --output=DIR."
            )
        return [each for each in names if each.startswith("weights/") or _is_of_text(each)]

    return hub.fetch(name, choose)


def _is_of_text(name: str) -> bool:
    return "/" not in name and name.endswith(_TEXT_FILES)
