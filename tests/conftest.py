"""What every test stands on: eight CPU devices, strict numerics, golden files, and no silent skips.

The environment is set before JAX is imported, so this module must stay the first one that imports
it.
"""

import difflib
import fnmatch
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Subprocesses that tests start see the same cache and platform, but one device (see `run_program`).
# a bf16 value is a bf16 value: gates at 0 are bit-exact only then (DESIGN: Model)
BASE_XLA_FLAGS = "--xla_allow_excess_precision=false"
os.environ["XLA_FLAGS"] = f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".cache" / "hypothesis"))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples every time: a test fails for a change in the code, not for the day's luck. No
# deadline: the first example compiles.
hypothesis.settings.register_profile(
    "flamingo", derandomize=True, deadline=None, database=None, max_examples=25
)
hypothesis.settings.load_profile("flamingo")


# The modules of setup.py's extras, and the extra that brings each. With `.[dev]` alone the tests
# that need one are skipped: a file by
# pytest.importorskip where it imports the module at its top, a test by `skip_without_extra` where
# the module is imported while it runs.
EXTRA_OF_MODULE = {
    **dict.fromkeys(("gcsfs", "libtpu"), "tpu"),
    **dict.fromkeys(("apache_beam", "faiss", "google_crc32c", "imagehash"), "pipelines"),
    **dict.fromkeys(("py3langid", "pyarrow", "scipy", "selectolax"), "pipelines"),
    **dict.fromkeys(("warcio", "zstandard"), "pipelines"),
    **dict.fromkeys(("nltk", "pycocoevalcap"), "evaluation"),
    **dict.fromkeys(("safetensors", "torch", "transformers"), "conversion"),
    **dict.fromkeys(
        ("einops", "einops_exts", "ftfy", "open_clip", "open_flamingo", "timm"), "parity"
    ),
}


def is_installed(module: str) -> bool:
    """True if the top-level `module` can be found; nothing is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


MISSING_MODULES = frozenset(module for module in EXTRA_OF_MODULE if not is_installed(module))


def missing_extra(module: str | None) -> str | None:
    """Returns why a test is skipped when it cannot import `module`.

    None if no extra brings it, or if it is installed.
    """
    package = (module or "").split(".")[0]
    if package not in MISSING_MODULES:
        return None
    return f"{module} is not installed (pip install -e '.[{EXTRA_OF_MODULE[package]}]')"


def skip_without_extra(report: pytest.TestReport, call: pytest.CallInfo) -> None:
    """Turns a failure for want of an optional module into a skip that names the extra."""
    error = call.excinfo and call.excinfo.value
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and (reason := missing_extra(error.name)):
            report.outcome = "skipped"
            report.longrepr = (str(report.location[0]), report.location[1], f"Skipped: {reason}")
            return
        error = error.__cause__ or error.__context__


def _load_allowed_skips() -> tuple[str, ...]:
    lines = (ROOT / "tests" / "allowed_skips.txt").read_text().splitlines()
    return tuple(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))


def forbid_unlisted_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip that tests/allowed_skips.txt does not list into a failure, in continuous integration."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return
    if not any(fnmatch.fnmatchcase(report.nodeid, pattern) for pattern in _load_allowed_skips()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = (
            f"{report.nodeid} was skipped ({reason}), and tests/allowed_skips.txt does not list "
            "it. Make it run here, or add a line there with the reason."
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Applies `skip_without_extra`, then `forbid_unlisted_skip`, to tests."""
    report = yield
    if report.outcome == "failed":
        skip_without_extra(report, call)
    forbid_unlisted_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Applies `forbid_unlisted_skip` to modules that skip themselves."""
    report = yield
    forbid_unlisted_skip(report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of tests/e2e and tests/distributed by their folder, so that they can be chosen or left out."""
    for item in items:
        for folder in ("e2e", "distributed"):
            if item.path.is_relative_to(ROOT / "tests" / folder):
                item.add_marker(folder)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes are named by their argument, and pytest numbers them.

    Made bytes may hold a date (gzip's header does).

    The processes that share a run must find the same names; they do not when one collects a second
    after the other.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def golden() -> Callable[[str, object], None]:
    """`golden("nn/table.txt", value)`: value equals tests/golden/nn/table.txt.

    UPDATE_GOLDEN=1 writes the file instead.

    value is a text, or anything JSON can hold (then the file is indented JSON).
    """

    def check(name: str, value: object) -> None:
        path = ROOT / "tests" / "golden" / name
        text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True)
        text = text.rstrip("\n") + "\n"
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        recorded = path.read_text() if path.exists() else ""
        if text != recorded:
            difference = "".join(
                difflib.unified_diff(
                    *(side.splitlines(keepends=True) for side in (recorded, text)),
                    "recorded",
                    "now",
                    n=1,
                )
            )
            pytest.fail(
                f"tests/golden/{name} {'differs from' if recorded else 'is missing; it would be'} "
                "what the code says now:\n"
                f"{difference}\n"
                "If the change is meant: UPDATE_GOLDEN=1 python -m pytest "
                f"{os.environ['PYTEST_CURRENT_TEST'].split('::')[0]}",
                pytrace=False,
            )

    return check


@pytest.fixture(scope="session")
def run_program() -> Callable[..., subprocess.CompletedProcess]:
    """`run_program("-m", "flamingo_jax.train", "--config=...")`.

    Runs this Python from the repository root (or `cwd`), as a user would, on one device.

    Returns the completed process with `stdout` and `stderr` as text; fails the test when the exit
    status is not `status` (default 0; None: any).
    """

    def run(
        *arguments: str,
        status: int | None = 0,
        timeout: float = 300,
        environment: dict[str, str] | None = None,
        cwd: pathlib.Path = ROOT,
    ) -> subprocess.CompletedProcess:
        variables = {**os.environ, "XLA_FLAGS": BASE_XLA_FLAGS, **(environment or {})}
        variables.pop("PYTEST_CURRENT_TEST", None)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if status is not None and done.returncode != status:
            lacking = re.search(
                r"(?:^ModuleNotFoundError: No module named|needs the package) '([\w.]+)'",
                done.stderr,
                re.MULTILINE,
            )
            if lacking and (reason := missing_extra(lacking[1])):
                pytest.skip(reason)
            pytest.fail(
                f"{' '.join(map(str, arguments))} ended with status {done.returncode}, expected "
                f"{status}.\n"
                "--- stdout\n"
                f"{done.stdout[-4000:]}\n"
                "--- stderr\n"
                f"{done.stderr[-4000:]}"
            )
        return done

    return run
