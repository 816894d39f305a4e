"""launch/demo.sh at its smoke size runs every part in order, and writes the report of the README.

What is learnt in so few steps proves nothing. `test_demo_full.py` checks the real size.
"""

import ast
import json
import pathlib
import re
import shlex
import subprocess

import pytest
from PIL import Image

from flamingo_jax.training import logs
from tests.e2e.launched import run_script

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STAGES = ("contrastive", "language_model", "flamingo")
ROW = {
    *("task", "split", "shots", "metric", "value", "n", "seed", "selection"),
    *("num_support", "num_support_per_class", "num_text_examples", "groups"),
    *("ensemble", "decoding", "checkpoint", "step"),
}


def run_demo(output: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the demo as a user would, in this Python's environment, on one device."""
    return run_script("demo.sh", "--size=smoke", f"--output={output}", *arguments, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    """The output directory of one run, and the run."""
    output = tmp_path_factory.mktemp("demo")
    done = run_demo(output)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return output, done


def test_results_have_the_rows_of_the_design(demo):
    output, _ = demo
    rows = json.loads((output / "report" / "results.json").read_text())
    assert all(set(row) == ROW for row in rows)
    found = {(row["task"], row["shots"], row["metric"]) for row in rows}
    expected = {
        (task, shots, metric)
        for task in ("format", "format_shuffled")
        for shots in (0, 4)
        for metric in ("exact_match", "ranking")
    }
    assert found == expected
    assert all(0 <= row["value"] <= 1 and row["split"] == "test" for row in rows)


def test_the_vision_encoder_is_evaluated_by_itself(demo):
    output, _ = demo
    rows = json.loads((output / "contrastive" / "report" / "results.json").read_text())
    assert all(set(row) == ROW and 0 <= row["value"] <= 1 for row in rows)
    assert {row["task"] for row in rows} == {"world_retrieval", "world_zero_shot"}


def test_report_has_its_pictures(demo):
    output, done = demo
    pictures = sorted((output / "report").glob("**/*.png"))
    assert len(pictures) >= 4  # few-shot curve, gates, losses, samples
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100, path
            assert len(picture.convert("RGB").getcolors(2**24)) > 2, f"{path} is empty"
    assert str(output / "report") in done.stdout
    assert re.search(r"^format +", done.stdout, re.MULTILINE), "the table is printed"


def test_every_stage_learns_something_and_is_measured(demo):
    output, done = demo
    for stage in STAGES:
        losses = [
            line["loss"] for line in logs.read(output / stage / "metrics.jsonl") if "loss" in line
        ]
        assert losses[-1] < losses[0], stage
        assert re.search(rf"^{stage} +[\d.]+ s +\d+ MiB$", done.stdout, re.MULTILINE)


@pytest.fixture
def readme(demo, tmp_path) -> str:
    """The README with paths that exist: those of this demo, and pictures for a.png and b.png."""
    output, _ = demo
    text = (ROOT / "README.md").read_text()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
        text = text.replace(name, str(tmp_path / name))
    return text.replace("runs/report", str(tmp_path / "report")).replace("runs/demo", str(output))


def test_the_readmes_python_runs(readme, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    answer, batch, scores, streamed = capsys.readouterr().out.splitlines()
    assert streamed == answer
    assert len(ast.literal_eval(batch)) == 2
    assert all(score < 0 for score in ast.literal_eval(scores))


@pytest.mark.parametrize("program", ["generate", "evaluate"])
def test_the_readmes_commands_run(readme, run_program, program):
    """Runs the first command of each program, which uses the demo's model."""
    command = re.findall(rf"^python (-m flamingo_jax.{program} .*)$", readme, re.MULTILINE)[0]
    run_program(*shlex.split(command), *(["--config.n=8"] if program == "evaluate" else []))


def test_a_rerun_skips_what_is_there_and_refuses_other_options(demo):
    output, _ = demo
    weights = {
        stage: (output / stage / "export" / "model.json").stat().st_mtime_ns for stage in STAGES
    }
    again = run_demo(output)
    assert again.returncode == 0, again.stderr[-3000:]
    assert all(f"{output}/{stage}/export is there, skipped" in again.stderr for stage in STAGES)
    assert weights == {
        stage: (output / stage / "export" / "model.json").stat().st_mtime_ns for stage in STAGES
    }
    other = run_demo(output, "--config.seed=2")
    assert other.returncode == 1
    assert "with other options" in other.stderr


def test_unknown_options_are_named(tmp_path):
    done = run_demo(tmp_path, "--confg.seed=2")
    assert done.returncode == 2
    assert "--confg.seed=2" in done.stderr
    assert not list(tmp_path.iterdir())
