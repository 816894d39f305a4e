"""Checkpoints and exports in a cluster of two processes; one process reads what they wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint.card import read_card
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.checkpoint.store import Store, check_step, steps
from flamingo_jax.core import trees

PROGRAM = """
import json
import pathlib
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

address, process, base = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=process)
mesh = jax.make_mesh((1, 2, 2), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)

from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.checkpoint.partial import load_towers
from flamingo_jax.checkpoint.store import Store

def split(*axes):
    return NamedSharding(mesh, PartitionSpec(*axes))

def check(x, expected):
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])

value = np.arange(64, dtype=np.float32).reshape(8, 8)
w = jax.make_array_from_callback((8, 8), split("data", "model"), lambda index: value[index])
assert not w.is_fully_addressable
one = jax.make_array_from_callback((), split(), lambda index: np.int32(2))
with Store(base + "/run", {"name": "cluster"}) as store:
    store.save(1, {"trainable": {"lm": {"w": w}}, "step": one}, {"pages": 1})
    store.save(2, {"trainable": {"lm": {"w": 2 * w}}, "step": one}, {"pages": 2})
    like = {
        "trainable": {"lm": {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=split("model"))}},
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=split()),
    }
    state, positions = store.restore(None, like)
    assert store.latest_step() == 2 and positions == {"pages": 2} and int(state["step"]) == 2
    check(state["trainable"]["lm"]["w"], 2 * value)

empty = {"config": {}, "tokenizer": None, "preprocessing": {}}
export(base + "/export", {"lm": {"w": w}}, kind="language_model", step=2, **empty)

def place(path, stored):
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=split("data"))

check(open_checkpoint(base + "/export", placement=place).params["lm"]["w"], value)
got = load_towers({"flamingo/lm": {"w": place("", w)}}, {"flamingo/lm": (base + "/export", "lm")})
check(got["flamingo/lm"]["w"], value)

# Of two damaged steps, each process reads the damaged file of one.
lines, root = [], pathlib.Path(base, "damaged_run")
with Store(root, {"name": "cluster"}) as store:
    for step in (1, 2, 3):
        store.save(step, {"trainable": {"lm": {"w": step * w}}}, {})
for step, reader in ((2, 0), (3, 1)):
    directory = root / "checkpoints" / str(step)
    names = sorted(json.loads((directory / "manifest.json").read_text())["files"])[reader::2]
    name = next(name for name in names if "/d/" in name)
    multihost_utils.sync_global_devices(f"all know {name}")
    if process == 0:
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)
multihost_utils.sync_global_devices("damaged")
with Store(root, {"name": "cluster"}, report=lines.append) as store:
    assert store.latest_step() == 1 and len(lines) == 2, lines
    like = {"trainable": {"lm": {"w": place("", w)}}}
    check(store.restore(None, like)[0]["trainable"]["lm"]["w"], value)
print("done", process)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory to which a cluster of two processes with two devices each has written."""
    base = tmp_path_factory.mktemp("cluster")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index), str(base)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for index, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0 and f"done {index}" in output, output[-4000:]
    return base


VALUE = np.arange(64, dtype=np.float32).reshape(8, 8)


def test_one_process_restores_what_a_cluster_saved(written):
    like = {
        "trainable": {"lm": {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32)}},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    with Store(written / "run", {"name": "cluster"}) as store:
        state, positions = store.restore(1, like)
    np.testing.assert_array_equal(np.asarray(state["trainable"]["lm"]["w"]), VALUE)
    assert positions == {"pages": 1}


def test_all_processes_take_the_same_step_if_some_are_damaged(written):
    """In the program above; each file of the manifest of a step was hashed by its writer."""
    assert sorted(path.name for path in (written / "damaged_run" / "damaged").iterdir()) == [
        "2",
        "3",
    ]
    assert steps(written / "damaged_run") == [1]
    names = json.loads((written / "run" / "checkpoints" / "2" / "manifest.json").read_text())
    writers = {name.split("/")[1] for name in names["files"] if "ocdbt.process" in name}
    assert writers == {"ocdbt.process_0", "ocdbt.process_1"}
    assert check_step(written / "run", 2).files == len(names["files"])


def test_the_export_of_a_cluster_has_the_same_hash(written):
    params = {"lm": {"w": VALUE}}
    assert read_card(written / "export")[1]["content_hash"] == trees.content_hash(params)
    np.testing.assert_array_equal(
        np.asarray(open_checkpoint(written / "export").params["lm"]["w"]), VALUE
    )
    assert sorted(p.name for p in written.iterdir()) == ["damaged_run", "export", "run"]
