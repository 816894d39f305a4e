"""Maps the weights of a publisher's files to the weights of a model, by a table of rules.

    files {name: array} --rules--> {"flamingo/lm/blocks/block/mlp/up/w": array}

Each weight of the files is read by a rule or skipped by name. Each weight of the model is made by
exactly one rule. All shapes fit. Otherwise an error names the first few weights on both sides,
before anything is written. A stacked weight is made one layer at a time, so memory is needed for
the largest weight of the files only.
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

from flamingo_jax.checkpoint.arrays import few, first_line
from flamingo_jax.conversion import formats, published_tokenizer, transforms, values
from flamingo_jax.conversion.published_tokenizer import PublishedTokenizer
from flamingo_jax.conversion.reading import ConversionError, Weights
from flamingo_jax.core import trees
from flamingo_jax.core.config import to_dict
from flamingo_jax.core.params import abstract_key
from flamingo_jax.core.paths import Path
from flamingo_jax.models import kinds
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.tokenizers.markers import Markers

LAYER = "{layer}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Makes one weight of the model from one or several weights of the files.

    Attributes:
        source: name of the weight in the files, or several names. If it contains `{layer}` (the
            number of a layer), the target is a stacked weight (leading axis "layers") with a slice
            for each layer.
        target: path in the model.
        transform: (stored arrays, one for each source) -> array with the shape of the target, or of
            its slice.
        layers: numbers in the files of the slices 0, 1, ...; None = 0, 1, ...
    """

    source: str | tuple[str, ...]
    target: str
    transform: Callable[..., np.ndarray] = transforms.identity
    layers: Sequence[int] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names, with `{layer}`."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def is_stacked(self) -> bool:
        """True if the target is made layer by layer."""
        return any(LAYER in name for name in self.sources)


@dataclasses.dataclass(frozen=True)
class Skip:
    """Leaves out weights of the files. No match is not an error.

    Attributes:
        source: regular expression of whole names.
        why: the reason, which the dry run prints.
        same_as: name of the weight that the skipped one repeats; None = none. If they differ, the
            conversion is refused.
    """

    source: str
    why: str
    same_as: str | None = None


@dataclasses.dataclass(frozen=True)
class Constant:
    """Makes a weight of the model that is not in the files.

    Attributes:
        target: path in the model.
        make: (shape) -> array.
        why: the reason, which the dry run prints.
    """

    target: str
    make: Callable[[tuple[int, ...]], np.ndarray]
    why: str


Rules = tuple[Rule | Skip | Constant, ...]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Everything that the export of a publisher's model is made of.

    Attributes:
        kind: one of `models.kinds.KINDS`.
        model: the model.
        rules: the mapping of its weights.
        files: the publisher's weights.
        tokenizer: the loaded tokenizer; None without text.
        preprocessing: {"image_size": pixels, ...}, as in an export.
        markers: the tokens around texts and images; None = those of the tokenizer.
        notes: what a user should know about the files.
    """

    kind: str
    model: ModelConfig
    rules: Rules
    files: Weights
    tokenizer: PublishedTokenizer | None = None
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    markers: Markers | None = None
    notes: tuple[str, ...] = ()

    def with_tokenizer(self, directory: Path) -> Conversion:
        """Returns the conversion of a Flamingo with the tokenizer in the publisher's directory.

        Raises:
            ConversionError: there is none, or it does not fit the language model.
        """
        published = published_tokenizer.load(
            directory,
            rows=required(self.model.lm, "lm").vocab_size,
            new_tokens=self.model.new_tokens,
            markers=self.markers,
        )
        return dataclasses.replace(self, tokenizer=published, markers=published.markers)


@dataclasses.dataclass(frozen=True)
class PlannedWeight:
    """One weight of the model, before it is written.

    Attributes:
        target: path in the model.
        shape: shape in the model.
        dtype: dtype in the export.
        rule: makes it.
        pieces: the source names of the whole weight, or of each layer. Empty for a Constant.
    """

    target: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rule: Rule | Constant
    pieces: tuple[tuple[str, ...], ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_stacked(self) -> bool:
        """True if `parts` are its layers."""
        return isinstance(self.rule, Rule) and self.rule.is_stacked

    def parts(self, files: Weights) -> Iterator[np.ndarray]:
        """Yields the layers, or the whole weight; reads each when it is needed."""
        if isinstance(self.rule, Constant):
            yield np.asarray(self.rule.make(self.shape), self.dtype)
            return
        for names in self.pieces:
            made = self.rule.transform(*(files.read(name) for name in names))
            yield values.cast(made, self.dtype, names)


@dataclasses.dataclass(frozen=True)
class ConversionPlan:
    """The result of a mapping that fits.

    Attributes:
        weights: all weights of the model, in the order of `core.trees.flatten`.
        skipped: name in the files -> why it is skipped.
        repeated: name of a skipped weight -> name of the weight that it must repeat.
    """

    weights: tuple[PlannedWeight, ...]
    skipped: Mapping[str, str]
    repeated: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def checked(self, files: Weights) -> Weights:
        """Returns the files, so that a weight that is not finite is refused when it is read.

        Raises:
            ConversionError: if a skipped weight is not the one that it must repeat.
        """
        for name, other in self.repeated.items():
            if values.digest(files.read(name)) != values.digest(files.read(other)):
                raise ConversionError(
                    f"The config says that {name} is {other} (tie_word_embeddings), but in the "
                    "files they differ. If the model has a head of its own, write "
                    '"tie_word_embeddings": false into config.json; else take the files of one '
                    "release."
                )
        names = [name for weight in self.weights for names in weight.pieces for name in names]
        return values.Checked(files, names)


def with_prefixes(rules: Rules, *, source: str = "", target: str = "") -> Rules:
    """Returns rules with the prefix `source` on all source names, and `target` on all targets."""

    def move(rule: Rule | Skip | Constant) -> Rule | Skip | Constant:
        if isinstance(rule, Skip):
            same = None if rule.same_as is None else source + rule.same_as
            return dataclasses.replace(
                rule, source=f"{re.escape(source)}(?:{rule.source})", same_as=same
            )
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
    """Checks that the rules fit the files and the model, and returns what will be written.

    They fit if each source is read or skipped, each target is made once, and all shapes agree.

    Args:
        rules: the mapping.
        sources: name -> shape and dtype of the files' weights.
        targets: path -> shape of the model's weights.
        dtype: dtype of all weights; None = as stored (float16 and float64, in which TPUs do not
            compute, become float32).

    Raises:
        ConversionError: if they do not fit; names the first few weights on both sides.
    """
    makers = [rule for rule in rules if not isinstance(rule, Skip)]
    made = [rule.target for rule in makers]
    if twice := sorted({path for path in made if made.count(path) > 1}):
        raise ConversionError(
            f"{len(twice)} weights of the model have several rules: {few(twice)}. Mend the mapping."
        )
    pieces = {
        rule.target: _pieces(rule, targets[rule.target])
        for rule in makers
        if rule.target in targets
    }
    wanted = {name for parts in pieces.values() for names in parts for name in names}
    skips = {
        name: rule
        for rule in rules
        if isinstance(rule, Skip)
        for name in sources
        if re.fullmatch(rule.source, name)
    }
    skipped = {name: rule.why for name, rule in skips.items()}
    if both := sorted(wanted & skipped.keys()):
        raise ConversionError(
            f"{len(both)} weights of the files are both read and skipped: {few(both)}. Mend the "
            "mapping."
        )
    left = sorted(sources.keys() - wanted - skipped.keys())
    missing = sorted(wanted - sources.keys())
    unmade, unknown = sorted(targets.keys() - set(made)), sorted(set(made) - targets.keys())
    formats.check_names(left)
    if left or missing or unmade or unknown:
        raise ConversionError(
            f"The files do not hold the model that was expected. Only in the files ({len(left)}): "
            f"{few(left)}. Only expected ({len(missing)}): {few(missing)}. Weights of the model "
            f"without a rule ({len(unmade)}): {few(unmade)}. Rules for weights that the model "
            f"lacks ({len(unknown)}): {few(unknown)}. Check --source, and that the config next to "
            "the files belongs to them."
        )
    formats.check_dtypes({name: sources[name].dtype for name in wanted})
    by_target = {rule.target: rule for rule in makers}
    inherited = _common_dtype(sources[name] for name in wanted)
    order = trees.flatten(trees.unflatten(targets))
    weights, wrong = [], []
    for path, leaf in order.items():
        rule, shape = by_target[path], tuple(leaf.shape)
        stored = [sources[name] for names in pieces[path] for name in names]
        stored_dtype = _common_dtype(stored) if stored else inherited
        weight_dtype = np.dtype(dtype) if dtype is not None else stored_dtype
        weights.append(PlannedWeight(path, shape, weight_dtype, rule, pieces[path]))
        wrong += _misfits(weights[-1], sources)
    if wrong:
        raise ConversionError(
            f"{len(wrong)} weights of the files have other shapes than the model: "
            f"{few(wrong, separator='; ')}. Check --source, and that the config next to the "
            "files belongs to them."
        )
    repeated = {
        name: rule.same_as
        for name, rule in skips.items()
        if rule.same_as in sources.keys() - {name}
    }
    return ConversionPlan(tuple(weights), skipped, repeated)


def plan(conversion: Conversion, *, dtype: Any = None) -> ConversionPlan:
    """Applies `check` to a whole conversion.

    Raises:
        ConversionError: as `check`.
    """
    sources = conversion.files.names()
    try:
        most = max(len(sources), 10_000)  # layers; more would take all memory
        model = conversion.model
        for part in (model.lm, model.vit, model.tiled_vit, model.text_encoder):
            if part is not None and part.num_layers > most:
                raise ConversionError(
                    f"The config describes {part.num_layers} layers, and the files hold "
                    f"{len(sources)} weights. Check that the config belongs to them."
                )
        _check_numbers(conversion.model)
        wanted = targets(conversion.kind, conversion.model)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConversionError(
            f"The config describes a model that cannot be: {first_line(error)}. Compare it with "
            "the publisher's."
        ) from error
    return check(conversion.rules, sources, wanted, dtype=dtype)


def _check_numbers(model: ModelConfig) -> None:
    """Raises ValueError if a number of the config is NaN or infinite: JSON has no such number."""
    numbers, _ = jax.tree_util.tree_flatten_with_path(to_dict(model))
    for path, value in numbers:
        if isinstance(value, float) and not math.isfinite(value):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name} is {value}; expected a finite number")


def targets(kind: str, model: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns path -> shape of all weights of a model; computes nothing.

    Args:
        kind: one of `models.kinds.KINDS`.
        model: the model.

    Raises:
        ValueError: if a part is missing.
    """
    return trees.flatten(jax.eval_shape(kinds.init_of(kind, model), abstract_key()))


def assemble(plan: ConversionPlan, files: Weights) -> dict[str, dict[str, jax.Array]]:
    """Returns the weights of a (small) model in memory, {module: {name: array}}."""
    return trees.unflatten(
        {weight.target: jnp.asarray(_whole(weight, files)) for weight in plan.weights}
    )


def load_params(conversion: Conversion, *, dtype: Any = None) -> dict[str, dict[str, jax.Array]]:
    """Returns the weights that the export would contain, in memory.

    Raises:
        ConversionError: as `check`.
    """
    planned = plan(conversion, dtype=dtype)
    return assemble(planned, planned.checked(conversion.files))


def _whole(weight: PlannedWeight, files: Weights) -> np.ndarray:
    parts = list(weight.parts(files))
    return np.stack(parts) if weight.is_stacked else parts[0]


def _pieces(rule: Rule | Constant, target: jax.ShapeDtypeStruct) -> tuple[tuple[str, ...], ...]:
    """Returns the source names of each part of a target."""
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


def _common_dtype(leaves: Any) -> np.dtype:
    """Returns bfloat16 if all leaves have this dtype, else float32."""
    bf16 = np.dtype(jnp.bfloat16)
    return bf16 if {np.dtype(leaf.dtype) for leaf in leaves} == {bf16} else np.dtype(np.float32)


def _misfits(weight: PlannedWeight, sources: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the shapes of one weight, by running its rule without memory."""
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
    zeros = [np.broadcast_to(np.zeros((), np.float16), shape) for shape in shapes]
    try:
        return tuple(transform(*zeros).shape)
    except (ValueError, IndexError) as error:  # numpy raises these if shapes do not fit
        return f"no conversion ({error})"
