"""launch/model_sizes.sh at its smoke size trains three models in one world, and draws them."""

import pytest

from tests.e2e.launched import run_script

MODELS = ("small", "base", "large")


@pytest.mark.slow
def test_three_models_are_trained_evaluated_and_compared(tmp_path):
    done = run_script("model_sizes.sh", "--size=smoke", f"--output={tmp_path}")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert sorted(path.parent.name for path in tmp_path.glob("seed1/*/world")) == ["small"]
    table = (tmp_path / "report" / "model_sizes.csv").read_text().splitlines()
    rows = [line.split(",") for line in table[1:]]
    assert [row[1] for row in rows] == list(MODELS)  # by the number of their weights
    assert (tmp_path / "report" / "model_sizes.png").exists()
