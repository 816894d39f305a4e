"""Damaged files of every format cause no crash, no hang and no leak: only records and reasons.

fuzz_formats.py lists the formats and readers.
"""

import json

import numpy as np
import pytest

pytest.importorskip("warcio")
pytest.importorskip("selectolax")
pytest.importorskip("pyarrow")
pytest.importorskip("zstandard")

from tests.data_pipelines.fuzz import Format, run
from tests.data_pipelines.fuzz_formats import FORMATS

SLOW_INPUTS = 1000  # of each format
MEGABYTE = 1 << 20
MOST_PEAK = 1200 * MEGABYTE  # of a process; the largest images have 80 million pixels
MOST_GROWTH = 3 * MEGABYTE  # in the second half: 6 KB for each input


def fuzz(run_program, scratch, names, *, count, seed, timeout):
    """Runs the fuzz process, checks its results, and returns them by format."""
    arguments = ("-m", "tests.data_pipelines.fuzz", scratch, count, seed, *names)
    done = run_program(*arguments, status=None, timeout=timeout)
    inputs = sorted(scratch.glob("*/current*"), key=lambda file: file.stat().st_mtime)
    assert done.returncode == 0, (
        f"the process that reads damaged files ended with status {done.returncode} at "
        f"{inputs[-1:]}:\n"
        f"{done.stderr[-6000:]}"
    )
    results = json.loads(done.stdout)
    assert list(results) == list(names)
    for name, result in results.items():
        assert not result["raised"], f"{name}: " + "\n".join(result["raised"])
        assert result["descriptors"] <= 0, f"{name}: {result['descriptors']} files stay open"
        assert result["peak"] < MOST_PEAK, f"{name}: took {result['peak'] / MEGABYTE:.0f} MB"
    return results


def test_damaged_files(run_program, tmp_path):
    """A few files of each format, in one process."""
    fuzz(run_program, tmp_path, list(FORMATS), count=6, seed=0, timeout=120)


def test_faults_are_found(tmp_path):
    """The reader raises on a bad start, keeps files open, and keeps what it read."""
    kept = []

    def read(file):
        kept.append((file.open("rb"), np.ones(1 << 16)))
        if kept[-1][0].read(4) != b"good":
            raise ZeroDivisionError("bad")
        yield "record"

    result = run("faulty", Format(lambda: [b"good file"], read), 40, 0, tmp_path)
    assert result["outcomes"]["record"] > 0
    (raised,) = result["raised"]
    assert "ZeroDivisionError in test_fuzz.py" in raised
    assert len(list((tmp_path / "found").iterdir())) == 1
    assert result["descriptors"] == 40
    assert result["growth"] > 20 * np.ones(1 << 16).nbytes // 2
    for file, _ in kept:
        file.close()


def test_more_than_ten_thousand_inputs():
    assert SLOW_INPUTS * len(FORMATS) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files(run_program, tmp_path, name):
    (result,) = fuzz(run_program, tmp_path, [name], count=SLOW_INPUTS, seed=1, timeout=300).values()
    assert result["growth"] < MOST_GROWTH + FORMATS[name].keeps * SLOW_INPUTS // 2
    outcomes = result["outcomes"]
    assert outcomes.pop("record") > 0, "some damage is harmless"
    assert outcomes or name == "texts", "most is not"
