"""Which weight of a publisher's files becomes which weight of a model.

Tables, checked before a byte is written.

    files {name: array} --rules-->{"flamingo/lm/blocks/block/mlp/up/w": array}

Each weight of the files is read by a rule or skipped by name, each weight of the model is made by
exactly one rule, and all shapes fit; anything else is an error that names the first few on both
sides. A stacked weight is made slice by slice, a layer at a time, so that the largest thing in
memory is the largest weight of the files.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.checkpoint import export
from flamingo_jax.checkpoint.arrays import few
from flamingo_jax.conversion import transforms
from flamingo_jax.conversion.reading import ConversionError, Weights
from flamingo_jax.core import trees
from flamingo_jax.core.paths import Path
from flamingo_jax.models import api, encoders
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.tokenizers.markers import Markers

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One weight of the model, and what it is made of.

    Attributes:
        source: name of the weight in the files, or several names. `{layer}` in it stands for the
            number of a layer: the target is then a stacked weight (leading axis "layers"), made of
            one slice for each layer.
        target: its path in the model.
        transform: (arrays as stored, one for each source) -> array of the target's shape (of a
            slice's shape).
        layers: the numbers in the files that become slices 0, 1, ...; None = 0, 1, ...
    """

    source: str | tuple[str, ...]
    target: str
    transform: Callable[..., np.ndarray] = transforms.identity
    layers: Sequence[int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names, `{layer}` not yet filled in."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def is_stacked(self) -> bool:
        """Whether the target is made layer by layer."""
        return any(LAYER in name for name in self.sources)


@dataclasses.dataclass(frozen=True)
class Skip:
    """Weights of the files that are deliberately not taken; that there are none is no error.

    Attributes:
        source: regular expression of whole names.
        why: the reason, as the dry run prints it.
    """

    source: str
    why: str


@dataclasses.dataclass(frozen=True)
class Constant:
    """A weight of the model that the files do not have.

    Attributes:
        target: its path in the model.
        make: (shape) -> array.
        why: the reason, as the dry run prints it.
    """

    target: str
    make: Callable[[tuple[int, ...]], np.ndarray]
    why: str


Rules = tuple[Rule | Skip | Constant, ...]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A publisher's model, described: all that an export of it is made of.

    Attributes:
        kind: one of `checkpoint.export.KINDS`.
        model: the model that the weights are for.
        rules: the mapping.
        files: the weights that it reads.
        tokenizer: its file, or the directory that holds it; None without text.
        preprocessing: {"image_size": pixels, ...}, as in an export.
        prompt: what stands around texts and images, for the export's prompt.json; None = what lies
            beside the tokenizer.
    """

    kind: str
    model: ModelConfig
    rules: Rules
    files: Weights
    tokenizer: Path | None = None
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    markers: Markers | None = None


@dataclasses.dataclass(frozen=True)
class PlannedWeight:
    """One weight of the model as it will be written.

    Attributes:
        target: its path.
        shape: its shape.
        dtype: its dtype.
        rule: how it is made.
        pieces: of a Rule, the names that make the whole, or each layer in turn.
    """

    target: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rule: Rule | Constant
    pieces: tuple[tuple[str, ...], ...] = ()

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def is_stacked(self) -> bool:
        """Whether `parts` are its layers."""
        return isinstance(self.rule, Rule) and self.rule.is_stacked

    def parts(self, files: Weights) -> Iterator[np.ndarray]:
        """Yields the weight in C order.

        Its layers one after the other, or the whole at once, read when they are asked for.
        """
        if isinstance(self.rule, Constant):
            yield np.asarray(self.rule.make(self.shape), self.dtype)
            return
        for names in self.pieces:
            yield np.asarray(self.rule.transform(*(files.read(name) for name in names)), self.dtype)


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """A mapping that fits.

    Attributes:
        weights: all weights of the model, in the order of `core.trees.flatten`.
        skipped: name in the files -> why it is not taken.
    """

    weights: tuple[PlannedWeight, ...]
    skipped: Mapping[str, str]


def with_prefixes(rules: Rules, *, source: str = "", target: str = "") -> Rules:
    """Returns a tower's rules for files in which its names begin with `source`, and a model that has it under `target`."""

    def move(rule: Rule | Skip | Constant) -> Rule | Skip | Constant:
        if isinstance(rule, Skip):
            return dataclasses.replace(rule, source=f"{re.escape(source)}(?:{rule.source})")
        if isinstance(rule, Constant):
            return dataclasses.replace(rule, target=target + rule.target)
        names = tuple(source + name for name in rule.sources)
        return dataclasses.replace(
            rule,
            source=names[0] if isinstance(rule.source, str) else names,
            target=target + rule.target,
        )

    return tuple(move(rule) for rule in rules)


def check(
    rules: Rules,
    sources: Mapping[str, jax.ShapeDtypeStruct],
    targets: Mapping[str, jax.ShapeDtypeStruct],
    *,
    dtype: Any = None,
) -> ConversionPlan:
    """Returns what will be written, if each source is taken or skipped, each target made once, and all shapes fit.

    Args:
        rules: the mapping.
        sources: name -> shape and dtype of the files' weights.
        targets: path -> shape of the model's weights.
        dtype: of all weights; None = as stored (float16 and float64, which no TPU computes in,
            become float32).

    Raises:
        ConversionError: otherwise, with the first few names on both sides.
    """
    makers = [rule for rule in rules if not isinstance(rule, Skip)]
    made = [rule.target for rule in makers]
    if twice := sorted({path for path in made if made.count(path) > 1}):
        raise ConversionError(
            f"{len(twice)} weights of the model have several rows: {few(twice)}. Mend the mapping."
        )
    pieces = {
        rule.target: _pieces(rule, targets[rule.target])
        for rule in makers
        if rule.target in targets
    }
    wanted = {name for parts in pieces.values() for names in parts for name in names}
    skipped = {
        name: rule.why
        for rule in rules
        if isinstance(rule, Skip)
        for name in sources
        if re.fullmatch(rule.source, name)
    }
    if both := sorted(wanted & skipped.keys()):
        raise ConversionError(
            f"{len(both)} weights of the files are both read and skipped: {few(both)}. Mend the "
            "mapping."
        )
    left = sorted(sources.keys() - wanted - skipped.keys())
    missing = sorted(wanted - sources.keys())
    unmade, unknown = sorted(targets.keys() - set(made)), sorted(set(made) - targets.keys())
    if left or missing or unmade or unknown:
        raise ConversionError(
            f"The files do not hold the model that was expected. Only in the files ({len(left)}): "
            f"{few(left)}. Only expected ({len(missing)}): {few(missing)}. Weights of the model "
            f"without a row ({len(unmade)}): {few(unmade)}. Rows for weights that the model has "
            f"not ({len(unknown)}): {few(unknown)}. Check --source, and that the config beside the "
            "files is theirs."
        )
    _check_dtypes(wanted, sources)
    by_target = {rule.target: rule for rule in makers}
    inherited = _common_dtype(sources[name] for name in wanted)
    order = trees.flatten(trees.unflatten(targets))
    weights, wrong = [], []
    for path, leaf in order.items():
        rule, shape = by_target[path], tuple(leaf.shape)
        stored = [sources[name] for names in pieces[path] for name in names]
        own = (
            np.dtype(dtype) if dtype is not None else _common_dtype(stored) if stored else inherited
        )
        weights.append(PlannedWeight(path, shape, own, rule, pieces[path]))
        wrong += _misfits(weights[-1], sources)
    if wrong:
        raise ConversionError(
            f"{len(wrong)} weights of the files have other shapes than the model: "
            f"{few(wrong, separator='; ')}. Check --source, and that the config beside the files "
            "is theirs."
        )
    return ConversionPlan(tuple(weights), skipped)


def plan(conversion: Conversion, *, dtype: Any = None) -> ConversionPlan:
    """`check` of a whole conversion.

    Raises:
        ConversionError: as `check`.
    """
    return check(
        conversion.rules,
        conversion.files.names(),
        targets(conversion.kind, conversion.model),
        dtype=dtype,
    )


def targets(kind: str, model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape of all weights of a model; nothing is computed.

    Args:
        kind: one of `checkpoint.export.KINDS`.
        model: its parts.

    Raises:
        ValueError: if a part is missing.
    """
    init = _init_of(kind, model)
    return trees.flatten(jax.eval_shape(init, jax.random.key(0)))


def _init_of(kind: str, model: ModelConfig) -> Callable[[Any], Any]:
    if kind == "language_model":
        return api.language_model(required(model.lm, "lm")).init
    if kind == "flamingo":
        return api.flamingo(model.flamingo()).init
    if kind == "contrastive":
        return encoders.contrastive(model).init
    if kind == "vision":
        return encoders.vision_encoder(model.encoder()).init
    raise ValueError(
        f"There is no model of kind {kind!r}; expected one of {', '.join(export.KINDS)}."
    )


def assemble(plan: ConversionPlan, files: Weights) -> dict[str, dict[str, jax.Array]]:
    """Returns the model's weights in memory, {module: {name: array}}.

    For tests and small models.
    """
    return trees.unflatten(
        {weight.target: jnp.asarray(_whole(weight, files)) for weight in plan.weights}
    )


def load_params(conversion: Conversion, *, dtype: Any = None) -> dict[str, dict[str, jax.Array]]:
    """Returns what the export would hold, in memory.

    Raises:
        ConversionError: as `check`.
    """
    return assemble(plan(conversion, dtype=dtype), conversion.files)


def _whole(weight: PlannedWeight, files: Weights) -> np.ndarray:
    parts = list(weight.parts(files))
    return np.stack(parts) if weight.is_stacked else parts[0]


def _pieces(rule: Rule | Constant, target: jax.ShapeDtypeStruct) -> tuple[tuple[str, ...], ...]:
    """Returns the names in the files of each part of a target."""
    if isinstance(rule, Constant):
        return ()
    if not rule.is_stacked:
        return (rule.sources,)
    length = target.shape[0] if target.shape else 0
    layers = range(length) if rule.layers is None else rule.layers
    if len(layers) != length:
        raise ConversionError(
            f"The row of {rule.target!r} names {len(layers)} layers of the files, but the model's "
            f"weight has shape {target.shape}: expected {length}. Mend the mapping or the config."
        )
    return tuple(
        tuple(name.replace(LAYER, str(layer)) for name in rule.sources) for layer in layers
    )


def _check_dtypes(wanted: set[str], sources: Mapping[str, Any]) -> None:
    wrong = [
        name for name in sorted(wanted) if not jnp.issubdtype(sources[name].dtype, jnp.floating)
    ]
    if wrong:
        named = [f"{name}: {sources[name].dtype}" for name in wrong]
        raise ConversionError(
            f"{len(wrong)} weights of the files are no floating-point numbers: {few(named)}. "
            "Expected float32, float16 or bfloat16; a quantised checkpoint cannot be converted, "
            "take the original."
        )


def _common_dtype(leaves: Any) -> np.dtype:
    """Returns the narrowest of bfloat16 and float32 that holds all of them exactly."""
    bf16 = np.dtype(jnp.bfloat16)
    return bf16 if {np.dtype(leaf.dtype) for leaf in leaves} == {bf16} else np.dtype(np.float32)


def _misfits(weight: PlannedWeight, sources: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the shapes of one weight.

    Tries its conversion on zeros that take no memory.
    """
    rule, problems, tried = weight.rule, [], {}
    if isinstance(rule, Constant):
        return []
    expected = weight.shape[1:] if weight.is_stacked else weight.shape
    for names in weight.pieces:
        shapes = tuple(tuple(sources[name].shape) for name in names)
        if shapes not in tried:
            tried[shapes] = _converted_shape(rule.transform, shapes)
        if tried[shapes] != expected:
            stored = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
            got = tried[shapes] if isinstance(tried[shapes], str) else f"shape {tried[shapes]}"
            problems.append(f"{stored}: got {got}, expected {expected} for {weight.target}")
    return problems


def _converted_shape(
    transform: Callable[..., np.ndarray], shapes: tuple[tuple[int, ...], ...]
) -> tuple[int, ...] | str:
    try:
        return tuple(
            transform(*(np.broadcast_to(np.zeros((), np.float16), shape) for shape in shapes)).shape
        )
    except (ValueError, IndexError) as error:  # what numpy raises for shapes that do not fit
        return f"no conversion ({error})"
