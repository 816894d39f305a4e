"""launch/ablations.sh at its smoke size trains rows of all kinds, and writes their table."""

import pytest

from tests.e2e.launched import run_script

ROWS = ("base", "no_pages", "round_robin", "small_vision", "vision_random", "text_trained")


def run(output):
    options = ("--size=smoke", "--seeds=1", f"--output={output}", f"--rows={','.join(ROWS)}")
    return run_script("ablations.sh", *options)


@pytest.mark.slow
def test_rows_are_trained_evaluated_and_compared(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    table = (tmp_path / "report" / "tiny_ablations.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in table[1:]} == set(ROWS)
    assert "rows have the paper's sign" in done.stdout
    again = run(tmp_path)
    assert again.returncode == 0 and again.stderr.count("is there, skipped") >= len(ROWS)
