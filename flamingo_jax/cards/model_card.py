"""MODEL_CARD.md of an export, with the headings of the paper's model card (Appendix E).

    model.json, or config.json of the run    what the model is, and what it was trained on
    results.json of evaluations              what was measured

What these files do not say is left to a person.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.cards.sections import UNKNOWN, Sections, render
from flamingo_jax.checkpoint.card import MODEL_CARD, read_card
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathError, PathLike, read_json
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report.benchmark_table import split_of, title_of
from flamingo_jax.evaluation.report.joined_runs import RESULTS, read_results
from flamingo_jax.evaluation.report.table import Table, TableRow
from flamingo_jax.evaluation.report.training_logs import CONFIG
from flamingo_jax.evaluation.report.units import unit
from flamingo_jax.models.config import ENCODERS

SECTIONS: Sections = (
    (
        "Model Details",
        (
            "Organization Developing the Model",
            "Model Date",
            "Model Type",
            "Feedback on the Model",
        ),
    ),
    ("Intended Uses", ("Primary Intended Uses", "Primary Intended Users", "Out-of-Scope Uses")),
    ("Factors", ("Card Prompts – Relevant Factor", "Card Prompts – Evaluation Factors")),
    (
        "Metrics",
        (
            "Model Performance Measures",
            "Decision thresholds",
            "Approaches to Uncertainty and Variability",
        ),
    ),
    ("Evaluation Data", ("Datasets", "Motivation", "Preprocessing")),
    ("Training Data", ()),
    ("Quantitative Analyses", ("Unitary Results", "Intersectional Results")),
    (
        "Ethical Considerations",
        ("Data", "Human Life", "Mitigations", "Risks and Harms", "Use Cases"),
    ),
)
_KINDS = {
    "flamingo": "Visual language model: it writes text about images and videos in its prompt.",
    "language_model": "Autoregressive language model.",
    "contrastive": "Contrastive model: embeddings of images and of texts.",
    "vision": "Vision encoder.",
}
_PARTS = {
    "lm": "language model",
    "vision": "vision encoder, an NFNet",
    "vit": "vision encoder, a ViT",
    "tiled_vit": "vision encoder, a ViT on tiles",
    "text_encoder": "text encoder",
    "resampler": "resampler",
    "xattn": "cross-attention layers",
}
_SHOWN = {
    "lm": ("num_layers", "width", "num_heads"),
    "vision": ("depths", "widths"),
    "vit": ("num_layers", "width", "num_heads", "patch_size"),
    "tiled_vit": ("num_layers", "num_global_layers", "width", "num_heads", "patch_size"),
    "text_encoder": ("num_layers", "width", "num_heads"),
    "resampler": ("kind", "num_layers", "width", "num_heads", "num_latents"),
    "xattn": ("every", "gate", "attend"),
}
# The parts of each kind; an export may describe parts that its stage does not use.
_OF_KIND = {
    "flamingo": ("lm", *ENCODERS, "resampler", "xattn"),
    "language_model": ("lm",),
    "contrastive": (*ENCODERS, "text_encoder"),
    "vision": ENCODERS,
}


def model_card(export: PathLike, evaluations: Sequence[PathLike] = ()) -> tuple[Path, str]:
    """Returns (path of the card, its text).

    Args:
        export: an export, or the WORKDIR that contains it.
        evaluations: outputs of evaluations of this model.

    Raises:
        CheckpointError: there is no export, or it is damaged.
        PathError: a results.json is missing or damaged.
        ConfigError: a results.json has something else, or is of another step.
    """
    directory, card = read_card(export, what="export")
    rows = [row for place in evaluations for row in _results(Path(place) / RESULTS, card)]
    record = _record(directory, card)
    answers = {
        "Model Type": _model_type(card),
        "Preprocessing": _preprocessing(card),
        "Training Data": _training_data(record),
        **(_measured(rows) if rows else {}),
    }
    name = record.get("name")
    title = f"Model card: {name}" if isinstance(name, str) and name else "Model card"
    about = (
        f"An export of {card.get('created_by', 'flamingo_jax')}, step {card['step']}, content hash "
        f"{str(card['content_hash'])[:16]}. Sections as in the model card of Flamingo (arXiv "
        "2204.14198, Appendix E)."
    )
    return directory / MODEL_CARD, render(title, about, SECTIONS, answers)


def _results(file: Path, card: Mapping[str, Any]) -> Sequence[Row]:
    """Returns the results of an evaluation; another step is another model."""
    rows = read_results(file)
    for row in rows:
        if row.step != card["step"]:
            raise ConfigError(
                f"{file} has results of {row.checkpoint} at step {row.step}, and the export is of "
                f"step {card['step']}: give evaluations of this export."
            )
    return rows


def _record(directory: Path, card: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the record of the run in model.json, or else its config.json; {} without both."""
    run = card.get("run")
    if isinstance(run, dict) and isinstance(run.get("record"), dict):
        return run["record"]
    try:
        found = read_json(directory.parent / CONFIG)
    except PathError:  # an imported model, or an export that was copied
        return {}
    return found if isinstance(found, dict) else {}


def _model_type(card: Mapping[str, Any]) -> str:
    kind = str(card["kind"])
    lines = [_KINDS.get(kind, kind), ""]
    if isinstance(card.get("parameters"), int):
        lines.append(f"- {card['parameters']:,} parameters")
    if card.get("int8"):
        lines.append("- weights of the towers' products in 8 bits")
    config = card["config"] if isinstance(card["config"], dict) else {}
    for part in _OF_KIND.get(kind, ()):
        if isinstance(fields := config.get(part), dict):
            shown = ", ".join(f"{name} {fields[name]}" for name in _SHOWN[part] if name in fields)
            lines.append(f"- {_PARTS[part]}: {shown}")
    return "\n".join(lines)


def _preprocessing(card: Mapping[str, Any]) -> str:
    fields = card["preprocessing"] if isinstance(card["preprocessing"], dict) else {}
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in fields.items()]
    if card.get("tokenizer"):
        lines.append(f"- text: the tokenizer of this export, {card['tokenizer']}")
    if isinstance(tokens := card.get("new_tokens"), list) and tokens:
        lines.append(f"- tokens that were added to it: `{' '.join(map(str, tokens))}`")
    return "\n".join(lines)


def _training_data(record: Mapping[str, Any]) -> str:
    data = record.get("data")
    datasets = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(datasets, dict) or not datasets:
        return UNKNOWN
    stored = record.get("records")
    stored = stored if isinstance(stored, dict) else {}
    lines = []
    for name, fields in datasets.items():
        fields, found = (
            each if isinstance(each, dict) else {} for each in (fields, stored.get(name))
        )
        count = found.get("count")
        about = [
            str(fields.get("kind", "")),
            f"{count:,} records" if isinstance(count, int) else "",
            f"batch {fields['batch_size']}" if "batch_size" in fields else "",
            f"weight {fields['weight']}" if "weight" in fields else "",
        ]
        lines.append(f"- {name}: {', '.join(filter(None, about))}")
    lines += [
        "",
        f"Stage {record.get('stage')}, {record.get('steps')} updates, seed {record.get('seed')}.",
    ]
    return "\n".join([*lines, "", f"Sources and licences: {UNKNOWN}"])


def _measured(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the answers that results give."""
    shown = {(row.task, row.metric): unit(row.task, row.metric) for row in rows}
    measures = dict.fromkeys(
        f"- {title_of(task)}: {each.title}" for (task, _), each in shown.items()
    )
    splits = dict.fromkeys(
        f"- {title_of(row.task)}: {row.n} queries of {split_of(row)}" for row in rows
    )
    seeds = sorted({row.seed for row in rows})
    head = ("task", "metric", "shots", "value", "queries")
    lines = [
        TableRow(
            (
                title_of(row.task),
                shown[row.task, row.metric].name,
                str(row.shots),
                shown[row.task, row.metric].text(row.value),
                str(row.n),
            )
        )
        for row in rows
    ]
    return {
        "Model Performance Measures": "\n".join(measures),
        "Datasets": "\n".join(splits),
        "Approaches to Uncertainty and Variability": "Queries and support examples were drawn with "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}. Variation between training "
        f"runs: {UNKNOWN}",
        "Unitary Results": "\n".join(Table(head, tuple(lines)).markdown()),
    }
