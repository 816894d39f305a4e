"""launch/easy_vqa.sh at its smoke size runs every part in order, on small pictures of our own.

What is learnt in so few updates proves nothing: configs/easy_vqa.py has the numbers of the whole.
"""

import json

import pytest
from etils import epath

from tests.e2e.launched import run_script
from tests.evaluation.fixtures.easy_vqa import make_questions

STAGES = ("contrastive", "language_model", "flamingo", "finetune")


@pytest.mark.slow
def test_all_parts_run_and_a_rerun_skips_them(tmp_path):
    data, output = epath.Path(tmp_path) / "data", tmp_path / "run"
    make_questions(data, train=12, test=6)
    options = (f"--data={data}", f"--output={output}", "--size=smoke")
    small = [
        "--config.model.lm.num_layers=1",
        "--config.seed=3",
    ]
    done = run_script("easy_vqa.sh", *options, *small)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "processor time" in done.stdout and "0m0.000s" not in done.stdout
    for stage in STAGES:
        assert (output / stage / "export" / "model.json").exists()
    rows = {
        (stage, row["shots"], row["metric"]): row
        for stage in ("flamingo", "finetune")
        for row in json.loads((output / "report" / stage / "results.json").read_text())
    }
    assert set(rows) == {("flamingo", 0, "top1"), ("flamingo", 2, "top1"), ("finetune", 0, "top1")}
    assert all(row["task"] == "easy_vqa" and 0 <= row["value"] <= 1 for row in rows.values())
    assert rows["finetune", 0, "top1"]["num_text_examples"] == 0
    again = run_script("easy_vqa.sh", *options, *small)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "answers is complete, nothing to do" in again.stdout


@pytest.mark.parametrize("option", ["--confg.seed=2", "--size=tiny", "--data="])
def test_unknown_options_are_named(option):
    done = run_script("easy_vqa.sh", option)
    assert done.returncode == 2 and option in done.stderr and "--data=DIR" in done.stderr
