"""gpu.py on a CPU: what it keeps of its parts, and the micro-batches and batches that it makes."""

import json
import sys

import pytest

from flamingo_jax.core.config import from_dict
from flamingo_jax.data import schema
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.training.config import TrainConfig
from tests.benchmarks import gpu, gpu_updates
from tests.training import small

# In place of Python: the part `lm` works, `vision` fails after a result, `demo` takes too long.
PROGRAM = f"""#!{sys.executable}
import sys, time
part = sys.argv[3].partition("=")[2]
print("a line of a library")
if part != "demo":
    print('{gpu.MARK}' + '{{"name": "' + part + '", "text": "MFU 0.5", "mfu": 0.5}}', flush=True)
if part == "vision":
    sys.exit("ValueError: too large")
if part == "demo":
    time.sleep(1000)
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Replaces the processes of the parts."""
    program = tmp_path / "python"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setattr(gpu.sys, "executable", str(program))


def test_results_are_kept_and_a_part_that_fails_is_a_line(parts, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert not gpu.measure(["vision", "demo", "lm"], "small", 6.0, path)
    said = capsys.readouterr().out
    assert said.index("vision: MFU 0.5") < said.index("vision: not done: status 1: ValueError")
    assert "demo: not done: stopped after" in said
    assert said.index("demo: not done") < said.index("lm: MFU 0.5")
    content = json.loads(path.read_text())
    assert [found["name"] for found in content["results"]] == ["vision", "lm"]
    assert set(content["failed"]) == {"vision", "demo"}
    assert content["failed"]["vision"] == "status 1: ValueError: too large"


def test_all_parts_done(parts, tmp_path):
    assert gpu.measure(["lm"], "small", 60.0, tmp_path / "gpu.json")


@pytest.mark.parametrize(
    ("dataset", "chunks"),
    [
        (DatasetConfig("interleaved", "", 256, 256, max_images=5), 8),  # 51 pages, so 32
        (DatasetConfig("pairs", "", 512, 32), 2),
        (DatasetConfig("pairs", "", 64, 32, num_frames=8), 2),
        (DatasetConfig("text", "", 64, 2048), 2),
        (DatasetConfig("text", "", 3, 65_537), 3),  # one row at least
    ],
)
def test_micro_batches_are_as_large_as_was_asked_for(dataset, chunks):
    assert gpu_updates.in_parts(dataset, images=256, tokens=65_536).chunks == chunks


@pytest.mark.parametrize("stage", ["flamingo", "language_model", "contrastive"])
def test_batches_are_full_and_consistent(stage):
    config = from_dict(TrainConfig, small.get_config(stage).to_dict())
    for dataset in config.data.datasets.values():
        batch = gpu_updates.random_batch(config.data, dataset, seed=0)
        schema.check(batch)
        assert batch.segment.all() and batch.media_index.max() == dataset.num_visuals


@pytest.mark.slow  # each part compiles in a process of its own
def test_all_parts_run_at_small_sizes(tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.measure(["step", "lm", "vision", "logits", "peer"], "small", 3_000.0, path)
    results = json.loads(path.read_text())["results"]
    found = {row["name"]: row for row in results}
    assert {"step, pages alone", "step, all datasets", "lm", "vision"} <= set(found)
    assert found["lm"]["mfu"] is None  # the peak of a CPU is not known
    assert found["peer, tokens in float32"]["equal"] == found["peer, tokens in float32"]["tokens"]
    assert found["peer, first loss in float32"]["agree"]
    assert found["logits, bfloat16 against float32"]["relative"] < 0.05
