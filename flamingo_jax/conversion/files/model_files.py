"""Which of the files of a directory are the weights of its model: names alone are looked at.

Of several files the one with the canonical name is read, in the order of transformers:
model.safetensors, its shards, pytorch_model.bin, its shards. `reading` opens them, and `by_name`
fetches them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flamingo_jax.checkpoint.arrays import CheckpointError, few

TORCH = (".pt", ".pth", ".bin", ".ckpt")
# open_clip's config, and its names for the files of weights
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_CANONICAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER = re.compile(r"\Aadapter_|lora", re.IGNORECASE)
# files next to a model that are no model: the state of its training, the same in other names
_OTHERS = re.compile(
    r"\..*|(training_args|optimizer|scheduler|scaler|rng_state|random_states|consolidated).*"
)
_SHARD = re.compile(r"\A(.+)-(\d+)-of-(\d+)\.[^.]+")


class ConversionError(CheckpointError):
    """Files cannot be converted. The message names them, what was expected, and what to do."""


def weights_among(names: Sequence[str]) -> list[str]:
    """Returns the names of files of weights."""
    suffixes = (".safetensors", *TORCH)
    return sorted(name for name in names if name.endswith(suffixes) and not name.startswith("._"))


def files_of_model(names: Sequence[str], first: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Returns the file of weights of one model, or its index, or its shards without an index.

    Args:
        names: of all files of a directory.
        first: as for `open_weights`.
        where: the directory, for messages.

    Raises:
        ConversionError: as `open_weights`.
    """
    for name in (*first, *_CANONICAL):
        if name in names:
            return (name,)
    files = weights_among(names)
    adapters = [name for name in files if _ADAPTER.search(name)]
    others = [name for name in files if _OTHERS.fullmatch(name)]
    models = [name for name in files if name not in adapters and name not in others]
    for suffixes in ((".safetensors",), TORCH):
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in models:
            if name.endswith(suffixes):
                shard = _SHARD.fullmatch(name)
                key: tuple[str, ...] = (name,)
                if shard:
                    key = (shard[1], shard[3], name[name.rindex(".") :])
                groups.setdefault(key, []).append(name)
        if len(groups) > 1:
            found = [name for group in groups.values() for name in group]
            raise ConversionError(
                f"{where} holds {len(found)} files of weights and no index: {few(found)}. Give "
                "one of them, or put model.safetensors.index.json or pytorch_model.bin.index.json "
                "next to them."
            )
        for key, group in groups.items():  # at most one
            return _all_shards(where, key, group)
    if adapters:
        raise ConversionError(
            f"{where} holds an adapter, {few(adapters)}, and not the model that it changes. Merge "
            "them first (peft: merge_and_unload, save_pretrained)."
        )
    if len(others) == 1:
        return (others[0],)
    raise ConversionError(
        f"{where} holds no weights: {few(sorted(names))}; expected *.safetensors or "
        f"*{', *'.join(TORCH)}."
    )


def _all_shards(where: str, key: tuple[str, ...], group: list[str]) -> tuple[str, ...]:
    """Returns the files of one model, of which none may be missing."""
    if len(key) > 1:
        there = {int(found[2]) for name in group if (found := _SHARD.fullmatch(name))}
        missing = sorted(set(range(1, int(key[1]) + 1)) - there)
        if missing:
            raise ConversionError(
                f"{len(missing)} of {int(key[1])} shards {key[0]}-N-of-{key[1]}{key[2]} in "
                f"{where} are missing: N = {few([str(number) for number in missing])}. Put "
                "them there."
            )
    return tuple(group)
