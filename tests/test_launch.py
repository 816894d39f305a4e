"""The scripts of launch/ are well-formed, and rebuild a stale or incomplete environment."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_executable(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    sourced = path.name in ("environment.sh", "options.sh")
    assert sourced or path.stat().st_mode & stat.S_IXUSR, f"chmod +x {path.relative_to(ROOT)}"
    assert sourced or "set -euo pipefail" in path.read_text()


def test_scripts_pass_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("dev", "evaluation", "pipelines")),
        ("requirements_parity.lock", ("parity",)),
        ("requirements_cuda.lock", ("cuda",)),
    ],
)
def test_locks_cover_setup(lock, extras):
    """Every dependency of setup.py that the tests need is pinned, at or above its bound.

    The lock that the demo installs from does not contain torch.
    """
    setup = (ROOT / "setup.py").read_text().split("\nsetup(")[0]
    names: dict = {}
    exec(compile(setup, "setup.py", "exec"), names)
    lines = (ROOT / "launch" / lock).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    if lock == "requirements_cuda.lock":  # what jax adds for a GPU
        assert "nvidia-cudnn-cu12" in pinned
        pinned |= {"jax": pinned["jax-cuda12-plugin"]}
    wanted = [line for extra in extras for line in names["EXTRAS"][extra]]
    for line in wanted + (names["CORE"] if lock == "requirements.lock" else []):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line
    assert ("torch" in pinned) == (lock == "requirements_parity.lock")


@pytest.fixture
def clone(tmp_path):
    """A small clone with a stub that records each `pip install`: the real one takes minutes."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "environment.sh", tmp_path / "launch")
    (tmp_path / "launch" / "requirements.lock").write_text("# empty\n")
    (tmp_path / "setup.py").write_text("")
    stub = tmp_path / "python"
    stub.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0; fi\n'
        f'if [ "$1 $2" = "-m pip" ]; then printf "install\\n" >>"{tmp_path}/installs"; '
        'printf "%s\\n" "${PIP_SAYS:-}"; sleep "${PIP_SECONDS:-0}"; exit "${PIP_STATUS:-0}"; fi\n'
        # The scripts ask for sys.executable: it must stay this stub.
        f'case "${{2:-}}" in *sys.executable*) echo "{stub}"; exit 0 ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    stub.chmod(0o755)
    return tmp_path


def source_environment(
    clone: pathlib.Path, *, seconds: float = 60, **variables: str
) -> tuple[int, int, str]:
    """Sources environment.sh in the clone; returns (exit status, pip runs so far, stderr)."""
    inherited = {name: value for name, value in os.environ.items() if name != "FLAMINGO_VENV"}
    done = subprocess.run(
        ["bash", "-c", "set -euo pipefail; source launch/environment.sh; echo ready"],
        cwd=clone,
        env={**inherited, "FLAMINGO_PYTHON": str(clone / "python"), **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    installs = clone / "installs"
    runs = len(installs.read_text().splitlines()) if installs.exists() else 0
    return done.returncode, runs, done.stderr


def test_environment_is_made_once_and_again_when_the_lock_changes(clone):
    assert source_environment(clone)[:2] == (0, 2)
    assert source_environment(clone)[:2] == (0, 2)
    (clone / "launch" / "requirements.lock").write_text("# another\n")
    assert source_environment(clone)[:2] == (0, 4)


def test_the_lock_for_gpus_is_of_the_same_jax():
    lines = (ROOT / "launch" / "requirements_cuda.lock").read_text().splitlines()
    (jax,) = re.findall(
        "^jax==(.*)$", (ROOT / "launch" / "requirements.lock").read_text(), re.MULTILINE
    )
    assert {f"jax-cuda12-plugin=={jax}", f"jax-cuda12-pjrt=={jax}"} <= set(lines)


def test_an_extra_is_added_kept_and_taken_away(clone):
    (clone / "launch" / "requirements_cuda.lock").write_text("# empty\n")
    assert source_environment(clone)[:2] == (0, 2)
    assert source_environment(clone, FLAMINGO_EXTRA="cuda")[:2] == (0, 5)  # both locks, the clone
    assert source_environment(clone)[:2] == (0, 5)
    (clone / "launch" / "requirements_cuda.lock").write_text("# another\n")
    assert source_environment(clone)[:2] == (0, 8)
    assert source_environment(clone, FLAMINGO_EXTRA="")[:2] == (0, 10)
    status, runs, said = source_environment(clone, FLAMINGO_EXTRA="rocm")
    assert (status, runs) == (1, 10)
    assert said == "error: FLAMINGO_EXTRA=rocm: expected cuda, or nothing for a CPU\n"


def test_environment_that_was_interrupted_is_made_again(clone):
    status, runs, said = source_environment(clone, PIP_STATUS="1")
    assert (status, runs) == (1, 1)
    assert "requirements.lock" in said
    assert not (clone / ".venv.lock").exists()
    assert source_environment(clone)[:2] == (0, 3)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("NewConnectionError: x\nERROR: No matching distribution found", "index is not reachable"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: old\nERROR: no wheel for numpy\nbye", "failed: ERROR: no wheel for numpy."),
        ("", "All that was said is in"),
    ],
)
def test_a_failed_installation_is_one_line(clone, says, reason):
    status, _, said = source_environment(clone, PIP_STATUS="1", PIP_SAYS=says)
    begin, error = said.splitlines()
    assert status == 1 and begin.startswith("making the environment")
    assert error.startswith("error: installing launch/requirements.lock failed: ")
    assert reason in error and ".venv/install.log" in error


def test_an_environment_without_its_python_is_made_again(clone):
    assert source_environment(clone)[:2] == (0, 2)
    (clone / ".venv" / "bin" / "python").unlink()
    assert source_environment(clone)[:2] == (0, 4)


def test_environment_lock_of_a_dead_process_is_taken_over(clone):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (clone / ".venv.lock").mkdir()
    (clone / ".venv.lock" / "pid").write_text(str(dead.pid))
    assert source_environment(clone)[:2] == (0, 2)
    assert not (clone / ".venv.lock").exists()


def test_of_scripts_that_wait_for_a_dead_one_one_makes_the_environment(clone):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (clone / ".venv.lock").mkdir()
    (clone / ".venv.lock" / "pid").write_text(f"{dead.pid} {os.uname().nodename}\n")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _: source_environment(clone, PIP_SECONDS="0.2"), range(4)))
    assert [status for status, _, _ in done] == [0] * 4
    assert len((clone / "installs").read_text().splitlines()) == 2
    assert not (clone / ".venv.lock").exists()


def test_environment_lock_of_another_machine_is_respected(clone):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (clone / ".venv.lock").mkdir()
    (clone / ".venv.lock" / "pid").write_text(f"{dead.pid} another-machine\n")
    with pytest.raises(subprocess.TimeoutExpired):
        source_environment(clone, seconds=2)
    assert not (clone / "installs").exists()
    empty = clone / ".venv.lock" / "pid"  # its script was killed before its first word
    empty.unlink()
    os.utime(clone / ".venv.lock", (0, 0))
    assert source_environment(clone)[:2] == (0, 2)


def test_a_place_that_cannot_be_written_is_one_line(clone):
    (clone / ".venv.lock").symlink_to("/nowhere/at/all")
    status, _, said = source_environment(clone)
    assert status == 1 and said.startswith("error: cannot make ") and said.count("\n") == 1


def test_environment_names_what_is_missing(clone):
    bare = clone / "bin"  # the few commands that the script needs, and no Python
    bare.mkdir()
    for name in ("bash", "cat", "dirname", "mkdir", "rm", "sleep", "id"):
        (bare / name).symlink_to(shutil.which(name))
    status, runs, said = source_environment(clone, FLAMINGO_PYTHON="/nowhere", PATH=str(bare))
    assert (status, runs) == (1, 0)
    assert "FLAMINGO_PYTHON" in said
