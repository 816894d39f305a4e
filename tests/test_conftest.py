"""The rules of the test suite itself.

An unlisted skip fails in continuous integration. A failing golden file says how to renew it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from flamingo_jax.data.images import read

ROOT = pathlib.Path(__file__).resolve().parent.parent

SUITE = """
import pytest
def test_listed(): pytest.skip("no hardware")
def test_unlisted(): pytest.skip("forgotten")
def test_runs(): pass
@pytest.mark.xfail(reason="known")
def test_expected_failure(): assert False
"""

NEEDS_EXTRAS = """
import pytest
def test_imports(): import torch.nn
def test_is_told():
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise RuntimeError("no tagger") from error
@pytest.fixture
def weights(): import safetensors
def test_fixture(weights): pass
def test_program(run_program): run_program("-c", "import selectolax")
def test_misspelt(): import torhc
def test_program_misspelt(run_program): run_program("-c", "import wracio")
def test_runs(): pass
"""

# The `sitecustomize` of the processes that a test starts: they cannot import an optional module.
WITHOUT_EXTRAS = """
import sys
class WithoutExtras:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, WithoutExtras())
"""

DATED = """
import gzip, unittest.mock
import pytest
with unittest.mock.patch("time.time", return_value=NOW):
    CONTENT = [b"", gzip.compress(b"x")]
assert CONTENT[1][4:8] == int(NOW).to_bytes(4, "little")
@pytest.mark.parametrize("content", CONTENT)
def test_it(content): pass
"""


def run_suite(root: pathlib.Path, *arguments: str, **environment: str) -> str:
    """Runs pytest on root/tests with this suite's conftest.py and only the variables `environment`.

    Returns what pytest prints.
    """
    shutil.copy(ROOT / "tests" / "conftest.py", root / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null"]
    command += ["--rootdir", str(root), str(root / "tests")]
    done = subprocess.run(
        [*command, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def test_unlisted_skip_fails_in_continuous_integration(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(SUITE)
    (tmp_path / "tests" / "test_module.py").write_text(
        "import pytest\npytest.importorskip('no_such_module')\n"
    )
    (tmp_path / "tests" / "allowed_skips.txt").write_text(
        "# comment\ntests/test_it.py::test_listed   because\n"
    )
    said = run_suite(tmp_path, CI="true")
    assert "error" in said.splitlines()[-1]
    assert "test_module.py was skipped" in said
    (tmp_path / "tests" / "test_module.py").unlink()
    said = run_suite(tmp_path, CI="true")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in said
    assert "test_unlisted was skipped (Skipped: forgotten)" in said
    assert "1 passed, 2 skipped, 1 xfailed" in run_suite(tmp_path)


@pytest.fixture
def without_extras(tmp_path_factory, request) -> dict[str, str]:
    """The environment variables of a process that can import the core and `.[dev]` alone."""
    conftest = next(
        plugin
        for _, plugin in request.config.pluginmanager.list_name_plugin()
        if hasattr(plugin, "EXTRA_OF_MODULE")
    )
    modules = tuple(conftest.EXTRA_OF_MODULE)
    directory = tmp_path_factory.mktemp("without_extras")
    (directory / "sitecustomize.py").write_text(WITHOUT_EXTRAS.replace("MODULES", repr(modules)))
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(directory)}


def test_the_suite_collects_without_extras(without_extras):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "tests"],
        cwd=ROOT,
        env=without_extras,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    # A skip shows that the modules could indeed not be imported.
    assert "tests/conversion/test_hf_lm.py" in done.stdout
    assert "could not import 'torch'" in done.stdout


def test_a_test_that_needs_an_extra_is_skipped_and_names_it(tmp_path, without_extras):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(NEEDS_EXTRAS)
    (tmp_path / "tests" / "allowed_skips.txt").write_text("")
    said = run_suite(tmp_path, "-rs", **without_extras)
    assert "2 failed, 1 passed, 4 skipped" in said
    for module, extra in (
        ("torch", "conversion"),
        ("nltk", "evaluation"),
        ("safetensors", "conversion"),
        ("selectolax", "pipelines"),
    ):
        assert f"{module} is not installed (pip install -e '.[{extra}]')" in said
    assert "5 failed, 1 passed, 1 error" in run_suite(tmp_path, CI="true", **without_extras)


def test_names_of_tests_do_not_depend_on_the_time(tmp_path):
    (tmp_path / "tests").mkdir()

    def collect(now: float) -> list[str]:
        (tmp_path / "tests" / "test_it.py").write_text(DATED.replace("NOW", str(now)))
        return run_suite(tmp_path, "--collect-only").split()[:2]

    names = ["tests/test_it.py::test_it[content0]", "tests/test_it.py::test_it[content1]"]
    assert collect(1_700_000_000.0) == names
    assert collect(1_800_000_000.0) == names


def test_golden_says_how_to_regenerate(golden, monkeypatch):
    monkeypatch.delenv("UPDATE_GOLDEN", raising=False)
    with pytest.raises(
        pytest.fail.Exception, match="UPDATE_GOLDEN=1 python -m pytest tests/test_conftest.py"
    ):
        golden("no_such_file.txt", "now")


def test_annotations_are_checked_on_every_call():
    """The jaxtyping hook of pyproject.toml is active before the package is imported."""
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        read.encode_png("no picture")


def test_tests_run_on_eight_devices_with_strict_ranks():
    assert len(jax.devices("cpu")) == jax.device_count() == 8
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros((3,))
