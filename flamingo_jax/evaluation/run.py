"""One evaluation from a config: loads the model, asks the tasks, writes the report.

Few-shot tasks prompt a Flamingo or a language model. Zero-shot classification and retrieval compare
a contrastive model's embeddings of images and texts. A run has tasks of one of the two kinds.

    OUTPUT/results.json, tables, curves    the results
    OUTPUT/predictions.jsonl               the answers of this run, in order
    OUTPUT/predictions/TASK-SHOTS.jsonl    the journal, from which a stopped run goes on
    OUTPUT/features/                       of images, for selection=rices and for comparisons
    OUTPUT/submissions/TASK-SHOTS.json     for the server that knows the right answers, if they are
                                           hidden
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from flamingo_jax.checkpoint import manifest
from flamingo_jax.checkpoint.card import CARD
from flamingo_jax.checkpoint.export import describe_checkpoint
from flamingo_jax.core import agreement
from flamingo_jax.core.config import to_dict
from flamingo_jax.core.paths import Path, PathError, only_writer, read_json, regular
from flamingo_jax.core.processes import Cluster
from flamingo_jax.evaluation import comparison, embed, few_shot, predictions, registry, task
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report import report_writer
from flamingo_jax.evaluation.report.training_logs import training_logs
from flamingo_jax.evaluation.runner import check_metrics, episodes_of, evaluate_all, shots_of
from flamingo_jax.inference.dual_encoder import DualEncoder
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.nearest import Rices
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh


def run(config: EvaluateConfig, checkpoint: str, output: str, cluster: Cluster) -> None:
    """Evaluates on all processes of `cluster`; the first of them writes the report.

    Args:
        config: what to evaluate.
        checkpoint: an export, a WORKDIR, or WORKDIR/checkpoints/STEP.
        output: directory of the report.
        cluster: the processes.

    Raises:
        AgreementError: the processes were given different things.
        TaskError: a task is unknown, its directory or a file is missing, it has too few items, it
            does not have a choice of the protocol, or the tasks are of two kinds. It is raised
            before a model is loaded.
        MissingResourceError: something that a metric needs is not installed. It is raised before
            anything is loaded.
        CheckpointError: there is no checkpoint, or it is not of the kind that the tasks need.
        PromptError: a prompt cannot be read, or is too long.
        PathError: `output` cannot be written, or another run writes to it.
        NonFiniteError: a weight, or a number that the model gave, is NaN or infinite.
    """
    with contextlib.ExitStack() as stack:
        if cluster.index == 0:
            stack.enter_context(only_writer(output))
        _run(config, checkpoint, output, cluster)


def _run(config: EvaluateConfig, checkpoint: str, output: str, cluster: Cluster) -> None:
    if cluster.count > 1:
        agreement.check(_facts(config, checkpoint))
    data = {name: path for name, path in config.data.items() if path}
    images = embed.Images(data) if embed.is_asked_for(config.tasks) else None
    created = [] if images else [registry.create(name, data, config) for name in config.tasks]
    tasks, compared = task.split_by_kind(created)
    if tasks and compared:
        raise task.TaskError(
            f"the task {compared[0].name!r} compares embeddings of a contrastive model, the task "
            f"{tasks[0].name!r} prompts a Flamingo or a language model: no checkpoint does both. "
            "Leave one of them out of this run."
        )
    check_metrics(tasks)
    _check_data(created, data, config)
    # The default is one device, and with several processes all devices.
    if set(config.mesh.sizes().values()) == {1}:
        mesh = make_mesh(MeshConfig(data=-1)) if cluster.count > 1 else None
    else:
        mesh = make_mesh(config.mesh)
    if images:
        encoder = VisionEncoder.load(checkpoint, config.towers, config=config.inference, mesh=mesh)
        encoder.check_weights()
        cluster.report(f"{embed.write(encoder, images, output)}: {output}")
        return
    if compared:
        _compare(config, compared, checkpoint, output, cluster, mesh)
        return
    model = Flamingo.load(checkpoint, config.towers, config=config.inference, mesh=mesh)
    if config.selection == "rices":
        tasks = few_shot.with_nearest(
            tasks, Rices(VisionEncoder.of(model), config.features or f"{output}/features")
        )
    rows, answers = evaluate_all(
        model,
        tasks,
        batch_size=config.batch_size,
        journals=f"{output}/predictions",
        progress=cluster.index == 0,
        log=cluster.report,
    )
    if cluster.index > 0:
        return
    _report_what_is_replaced(output, rows, cluster)
    predictions.write(f"{output}/predictions.jsonl", answers)
    for file in predictions.write_submissions(f"{output}/submissions", answers, tasks):
        cluster.report(f"{file} is for the server that has the right answers")
    report_writer.write_report(
        output,
        rows,
        predictions.first_of_each(answers, config.num_samples),
        training_logs(checkpoint),
        chance={each.name: each.chance for each in tasks if each.chance is not None},
        image_size=model.engine.image_size,
        image_fit=model.engine.image_fit,
        background=model.engine.background,
        video_frames=config.inference.video_frames,
        video_rate=config.inference.video_rate,
    )
    cluster.report(f"\n{report_writer.text_table(rows) if rows else ''}\nThe report is in {output}")


def _check_data(
    created: Sequence[task.Task | comparison.ComparisonTask],
    data: Mapping[str, str],
    config: EvaluateConfig,
) -> None:
    """Draws from the data of each task once: what is missing is an error before hours of decoding.

    Args:
        created: the tasks.
        data: directories of the benchmarks by name.
        config: the tasks are made of.
    """
    for each in created:
        if isinstance(each, comparison.ComparisonTask):
            each.check()
            continue
        if not isinstance(each, few_shot.FewShotTask):  # its pictures may be drawn: one will do
            small = registry.create(each.name, data, dataclasses.replace(config, n=1))
            each = task.split_by_kind([small])[0][0]
        elif each.protocol.selection == "rices":  # there is no model yet
            protocol = dataclasses.replace(each.protocol, selection="random")
            each = dataclasses.replace(each, protocol=protocol)
        episodes_of(each, max(shots_of(each)))


def _facts(config: EvaluateConfig, checkpoint: str) -> dict[str, Any]:
    """Returns what must be equal in all processes: the config, and the checkpoint's content.

    Its path may differ, as those of towers, which are known by their hashes.
    """
    opened = describe_checkpoint(checkpoint, config.towers)
    fields = to_dict(config)
    del fields["towers"]
    files = [opened.path / name for name in (manifest.NAME, CARD)]
    content = [
        hashlib.sha256(regular(file).read_bytes()).hexdigest()[:16]
        for file in files
        if file.exists()
    ]
    return {
        "config": fields,
        "checkpoint": {"kind": opened.kind, "step": opened.step, "files": content},
    }


def _compare(
    config: EvaluateConfig,
    tasks: Sequence[comparison.ComparisonTask],
    checkpoint: str,
    output: str,
    cluster: Cluster,
    mesh: Mesh | None,
) -> None:
    features = config.features or f"{output}/features"
    model = DualEncoder.load(checkpoint, config=config.inference, mesh=mesh, features=features)
    model.check_weights()
    rows, comparisons = comparison.compare_all(model, tasks, log=cluster.report)
    if cluster.index > 0:
        return
    _report_what_is_replaced(output, rows, cluster)
    comparison.write_predictions(f"{output}/predictions.jsonl", tasks, comparisons)
    report_writer.write_report(output, rows, metrics_files=training_logs(checkpoint))
    cluster.report(f"\n{report_writer.text_table(rows)}\nThe report is in {output}")


def _report_what_is_replaced(output: str, rows: Sequence[Row], cluster: Cluster) -> None:
    """Reports the tasks of an earlier report in `output` that this run did not evaluate."""
    file = Path(output) / "results.json"
    if not file.exists():
        return
    try:
        before = {row["task"]: None for row in read_json(file)}
    except (PathError, KeyError, TypeError):
        cluster.report(f"{file} is damaged, and is replaced.")
        return
    if gone := [task for task in before if task not in {row.task for row in rows}]:
        cluster.report(
            f"{file} had results of {', '.join(gone)}, which this run replaces. All answers are "
            "kept: evaluate all tasks in one run for a report of all."
        )
