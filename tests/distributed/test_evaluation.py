"""Few-shot evaluation in two processes, each with its own disk.

What the first process has finished counts for both.
"""

import json

import numpy as np
import pytest

from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import evaluate_all
from flamingo_jax.inference.nearest import Rices
from flamingo_jax.inference.vision_features import VisionEncoder
from tests.distributed.processes import run_processes
from tests.evaluation.in_memory import Colours
from tests.inference import tiny

PROGRAM = """
import json, pathlib, sys
from flamingo_jax.core.processes import Cluster
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.distributed.test_evaluation import evaluated
from tests.inference import tiny
with Cluster("on") as cluster:
    place = pathlib.Path(sys.argv[1]) / str(cluster.index)
    place.mkdir()
    model = tiny.load(place, mesh=make_mesh(MeshConfig(data=-1)))
    evaluated(model, place, n=2)
    print(json.dumps([evaluated(model, place, n=5), sorted(path.name for path in place.iterdir())]))
"""


def evaluated(model, place, n):
    """Returns [supports, scores] of all queries."""
    task = FewShotTask(
        Colours(metrics=(RANKING,)),
        Protocol(shots=(2,), n=n, seed=1, selection="rices", num_support=6),
        Rices(VisionEncoder.of(model), place / "features"),
    )
    _, answers = evaluate_all(model, [task], batch_size=4, journals=place / "predictions")
    supports = [episode.support_ids for episode in task.episodes(2)]
    return [supports, [answer.scores for answer in answers]]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """The same supports; scores to 1e-4, since float32 sums have another order."""
    found = [
        json.loads(text.splitlines()[-1])
        for text in run_processes(["-c", PROGRAM, str(tmp_path)], count=2)
    ]
    (first, files), (second, others) = found
    assert first == second
    assert "features" in files and "predictions" in files and others == ["tokenizer.model"]
    supports, scores = evaluated(tiny.load(tmp_path), tmp_path / "alone", n=5)
    assert [list(names) for names in supports] == first[0]
    np.testing.assert_allclose(first[1], scores, atol=1e-4)
