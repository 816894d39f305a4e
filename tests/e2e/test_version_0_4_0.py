"""What version 0.4.0 wrote loads, resumes and evaluates to the same numbers.

The files are described in tests/golden/version_0_4_0/README.md. Names and places in the code change
from version to version. Users' checkpoints, exports and commands stay valid.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "version_0_4_0"
PLACE = pathlib.PurePath("runs/fixture")  # as recorded in the checkpoints
NEW_FIELDS = ("num_support", "num_support_per_class", "num_text_examples", "groups")
TIMES = ("step_seconds", "seconds", "eta", "checkpoint")

EVERY = (
    "--config.seed=1",
    "--config.layers=scanned",
    f"--config.data.tokenizer={PLACE}/tokenizer",
    f"--config.evaluate.data.world={PLACE}/world",
    "--config.hooks.save_every=10",
    "--config.hooks.keep=9",
    "--config.hooks.log_every=1",
    "--config.model.lm.width=32",
    "--config.model.lm.num_layers=2",
    "--config.model.lm.num_heads=2",
    "--config.model.vision.widths=(16,32)",
    "--config.model.vision.stem_channels=(8,16)",
    "--config.model.text_encoder.width=32",
    "--config.model.resampler.width=32",
    "--config.model.resampler.num_heads=2",
)
# Stage -> (the step of its checkpoint, the options of 0.4.0's launch/demo.sh --size=smoke).
STAGES = {
    "contrastive": (
        10,
        (
            f"--config.data.datasets.captions.path={PLACE}/world/captions",
            "--config.steps=20",
            "--config.data.datasets.captions.batch_size=32",
        ),
    ),
    "language_model": (
        30,  # its probe is at 20 and 40
        (
            f"--config.data.datasets.text.path={PLACE}/world/text",
            "--config.steps=40",
            "--config.optimizer.warmup_steps=10",
            "--config.optimizer.decay_steps=40",
            "--config.until.every=20",
            "--config.until.required=False",
        ),
    ),
    "flamingo": (
        10,
        (
            f"--config.data.datasets.pages.path={PLACE}/world/pages",
            f"--config.data.datasets.pairs.path={PLACE}/world/pairs",
            f"--config.towers.lm={PLACE}/language_model/export",
            f"--config.towers.vision={PLACE}/contrastive/export",
            "--config.steps=20",
            "--config.data.datasets.pages.batch_size=8",
            "--config.data.datasets.pairs.batch_size=8",
        ),
    ),
}


def on_the_same_processor() -> bool:
    """Returns True if this processor has the flags of the one that made the files."""
    lines = (
        pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if os.path.exists("/proc/cpuinfo")
        else []
    )
    flags = sorted(
        next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split()
    )
    found = hashlib.sha256("".join(f"{flag}\n" for flag in flags).encode()).hexdigest()
    return found == (GOLDEN / "cpu_flags.txt").read_text().strip()


def assert_same(found: object, recorded: object) -> None:
    """Asserts equal structure, words and numbers.

    Numbers are equal to the bit, or on another processor within 0.001 of their size.
    """
    if isinstance(recorded, float) and not on_the_same_processor():
        assert math.isclose(found, recorded, rel_tol=1e-3, abs_tol=1e-4), (found, recorded)
    elif isinstance(recorded, dict):
        assert found.keys() == recorded.keys()
        for key, value in recorded.items():
            assert_same(found[key], value)
    elif isinstance(recorded, list):
        assert len(found) == len(recorded)
        for mine, theirs in zip(found, recorded, strict=True):
            assert_same(mine, theirs)
    else:
        assert found == recorded


def read_lines(path: pathlib.Path) -> list[dict]:
    """Returns the rows of a file of JSON lines, without times and paths."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def run(run_program):
    """Runs a program of the repository in another directory, on one device."""

    def call(place: pathlib.Path, *arguments: str) -> None:
        run_program(*arguments, cwd=place, environment={"PYTHONPATH": str(ROOT)})

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory, run) -> pathlib.Path:
    """The records, the tokenizer and the exports of version 0.4.0 at the recorded paths."""
    directory = tmp_path_factory.mktemp("version")
    options = ("--size=smoke", "--page_mix=0,1,0", "--seed=1", f"--output={PLACE}/world")
    run(directory, "-m", "data_pipelines.run", "--pipeline=world", *options)
    shutil.copytree(GOLDEN / "tokenizer", directory / PLACE / "tokenizer")
    for stage in STAGES:
        shutil.copytree(GOLDEN / stage / "export", directory / PLACE / stage / "export")
    return directory


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_losses_are_those_of_0_4_0(stage, place, run):
    step, options = STAGES[stage]
    workdir, recorded = place / PLACE / stage, read_lines(GOLDEN / stage / "metrics.jsonl")
    shutil.copytree(GOLDEN / stage / "checkpoints", workdir / "checkpoints")
    shutil.copy(GOLDEN / stage / "config.json", workdir)
    lines = (GOLDEN / stage / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= step)
    )
    shutil.rmtree(workdir / "export")  # it is made again
    config = f"--config={ROOT}/configs/tiny.py:{stage}"
    try:
        program = ("-m", "flamingo_jax.train", config, f"--workdir={PLACE / stage}")
        run(place, *program, *EVERY, *options)
    finally:
        shutil.rmtree(workdir / "export", ignore_errors=True)
        shutil.copytree(GOLDEN / stage / "export", workdir / "export")
    found = read_lines(workdir / "metrics.jsonl")
    assert found[-1]["step"] > step
    assert_same(found, recorded)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("flamingo", ("--task=format,format_shuffled", "--shots=0,4", "--config.n=32")),
        ("contrastive", ("--task=world_retrieval,world_zero_shot", "--config.n=64")),
    ],
)
def test_an_export_evaluates_as_in_0_4_0(stage, options, place, run):
    report = PLACE / f"report_of_{stage}"
    config = (
        f"--config={ROOT}/configs/evaluate.py",
        f"--config.data.world={PLACE}/world",
        "--config.seed=1",
    )
    checkpoint = f"--checkpoint={PLACE / stage / 'export'}"
    run(place, "-m", "flamingo_jax.evaluate", *config, checkpoint, f"--output={report}", *options)
    for name in ("results.json", "predictions.jsonl"):
        if not (golden := GOLDEN / stage / "report" / name).exists():
            continue
        found = (place / report / name).read_text()
        if name == "results.json":
            sides = [json.loads(found), json.loads(golden.read_text())]
            for row in (row for side in sides for row in side):
                del row["checkpoint"]
            for row in sides[0]:  # fields that 0.4.0 did not have, of tasks without a support set
                assert not any(row.pop(name) for name in NEW_FIELDS)
            assert_same(*sides)
        else:
            assert_same(read_lines(place / report / name), read_lines(golden))
