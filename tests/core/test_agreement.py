"""Processes that were given different things are named, before anything is compiled."""

import json

import jax
import pytest

from flamingo_jax.core import agreement
from tests.distributed.processes import run_processes

HOSTS = ("a", "b", "c", "d")


def facts(**fields):
    return {"config": {"seed": 0, "name": "run", **fields}}


def test_equal_facts_have_no_differences():
    assert agreement.differences([facts(), facts()], HOSTS[:2]) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([{}, {"seed": 7}, {}, {}], "config.seed is 7 on process 1 (b), 0 on the other 3"),
        # of two processes none is the majority: the first counts
        ([{}, {"seed": 7}], "config.seed is 7 on process 1 (b), 0 on process 0 (a)"),
        ([{"seed": 7}, {}, {}], "config.seed is 7 on process 0 (a), 0 on the other 2"),
        (
            [{}, {"seed": 7}, {"seed": 9}, {}],
            "config.seed is 7 on process 1 (b) and 9 on process 2 (c), 0 on the other 2",
        ),
        (
            [{"seed": 7}, {"seed": 7}, {}, {}],
            "config.seed is 0 on processes 2 (c), 3 (d), 7 on the other 2",
        ),
        (
            [{}, {"new": ["x"]}, {}],
            "config.new is ['x'] on process 1 (b), absent on the other 2",
        ),
        ([{}, {}, {"name": "1"}], "config.name is '1' on process 2 (c), 'run' on the other 2"),
        # 0 is not False, and 1 is not 1.0
        ([{}, {"seed": False}], "config.seed is False on process 1 (b), 0 on process 0 (a)"),
    ],
)
def test_a_difference_names_field_values_and_processes(given, expected):
    found = agreement.differences([facts(**each) for each in given], HOSTS[: len(given)])
    assert found == [expected]


def test_the_facts_of_a_process_name_its_code_libraries_and_devices(monkeypatch):
    assert jax.local_device_count() == 8  # XLA has read its flags
    monkeypatch.setenv("XLA_FLAGS", "--b=1  --a=2 --xla_dump_to=/tmp/here")
    found = agreement.code_and_devices()
    assert found["code"]["jax"] and found["code"]["optax"] and found["code"]["python"]
    assert found["devices"] == {"platform": "cpu", "kind": "cpu", "number": 8}
    assert found["options"]["XLA_FLAGS"] == "--a=2 --b=1"
    assert found["options"]["jax_enable_x64"] == "False"


def test_another_source_file_is_another_code(monkeypatch, tmp_path):
    for name in ("core/agreement.py", "nn/norm.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(agreement, "__file__", str(tmp_path / "core" / "agreement.py"))
    before = agreement.code_and_devices()["code"]["flamingo_jax"]
    (tmp_path / "nn" / "norm.pyc").write_text("is not read")
    assert agreement.code_and_devices()["code"]["flamingo_jax"] == before
    (tmp_path / "nn" / "norm.py").write_text("x = 2\n")
    assert agreement.code_and_devices()["code"]["flamingo_jax"] != before


def test_one_process_agrees_with_itself():
    agreement.check({"config": {"seed": 0}})
    assert agreement.verdict("a", lambda texts: f"{texts}") == "['a']"


# Process 1 differs in one thing after the other; both processes print what `check` says.
SCRIPT = """
import json, sys
import jax
from flamingo_jax.core import agreement, paths
from flamingo_jax.core.processes import Cluster
from flamingo_jax.training import run_id

place = sys.argv[1]
with Cluster(expected=(agreement.AgreementError,)) as cluster:
    def attempt(name, action):
        try:
            action()
            found = "nothing"
        except (agreement.AgreementError, run_id.WorkdirTaken) as error:
            found = f"{type(error).__name__}: {error}"
        print(json.dumps([name, found]))
    second = cluster.index == 1
    attempt("same", lambda: agreement.check({"seed": 0}))
    attempt("seed", lambda: agreement.check({"seed": 7 if second else 0}))
    agreement._LIBRARIES = ("jax", "optax") if second else ("jax",)
    attempt("code", lambda: agreement.check({"seed": 0}))

    run_id._VISIBLE_SECONDS = 0.5
    workdir = paths.make_directory(f"{place}/shared")
    run = run_id.claim(workdir, {}, locked=True)
    attempt("mine", run.check)
    if not second:
        other = json.loads((workdir / "run.json").read_text()) | {"id": "other", "host": "there"}
        (workdir / "run.json").write_text(json.dumps(other))
    attempt("taken", run.check)
    local = paths.make_directory(f"{place}/{cluster.index}")
    attempt("local", lambda: run_id.claim(local, {}, locked=True))
"""


def test_two_processes_get_one_verdict(tmp_path):
    printed = run_processes(["-c", SCRIPT, str(tmp_path)], count=2)
    first, second = (
        dict(json.loads(line) for line in each.splitlines() if line.startswith('["'))
        for each in printed  # gloo prints lines too
    )
    assert first == second
    assert first["same"] == first["mine"] == "nothing"
    assert (
        "AgreementError: The processes of this run do not agree: seed is 7 on process 1 ("
        in (first["seed"])
    )
    assert "0 on process 0 (" in first["seed"]
    assert "code.optax is" in first["code"] and "absent on process 0 (" in first["code"]
    assert "shared belongs to another run now" in first["taken"]
    assert " on there, started 2" in first["taken"]
    assert "ends without saving" in first["taken"]
    assert f"{tmp_path}/1 on process 1 (" in first["local"]
    assert f"is not the directory of process 0, {tmp_path}/0 (" in first["local"]
