"""Eight CPU devices, strict numerics, golden files and no silent skips, for every test.

The environment is set before JAX is imported, so no module may import JAX before this one.
"""

import difflib
import fnmatch
import gc
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent

# bfloat16 values are rounded to bfloat16: only then are gates at 0 bit-exact.
BASE_XLA_FLAGS = "--xla_allow_excess_precision=false"
# Programs that tests start have the same cache and platform, but one device (see `run_program`).
os.environ["XLA_FLAGS"] = f"{BASE_XLA_FLAGS} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(ROOT / ".cache" / "hypothesis"))

# A shell that runs the suite in the background lets it ignore SIGINT. Programs that tests start
# must not inherit this: they would wait for ever for an interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The examples are the same in every run: a test fails because the code changed, not by chance.
# No deadline: the first example compiles.
hypothesis.settings.register_profile(
    "flamingo", derandomize=True, deadline=None, database=None, max_examples=25
)
hypothesis.settings.load_profile("flamingo")


# The modules of setup.py's extras, and the extra that installs each. With `.[dev]` alone the tests
# that need one are skipped. A file that imports the module at its top calls pytest.importorskip. A
# test that imports it while it runs is skipped by `skip_without_extra`.
EXTRA_OF_MODULE = {
    **dict.fromkeys(("gcsfs", "libtpu"), "tpu"),
    **dict.fromkeys(("apache_beam", "faiss", "google_crc32c", "imagehash"), "pipelines"),
    **dict.fromkeys(("py3langid", "pyarrow", "scipy", "selectolax"), "pipelines"),
    **dict.fromkeys(("resvg_py", "zstandard"), "pipelines"),
    **{name: name for name in ("wandb", "clearml")},
    **dict.fromkeys(("gradio", "gradio_client"), "playground"),
    **dict.fromkeys(("nltk", "pycocoevalcap"), "evaluation"),
    **dict.fromkeys(("safetensors", "torch", "transformers"), "conversion"),
    **dict.fromkeys(("ipykernel", "nbclient", "nbformat"), "notebooks"),
    **dict.fromkeys(("openai", "python_multipart", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(
        ("einops", "einops_exts", "ftfy", "open_clip", "open_flamingo", "timm"), "parity"
    ),
}


def is_installed(module: str) -> bool:
    """Returns True if the top-level `module` can be found. Imports nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


MISSING_MODULES = frozenset(module for module in EXTRA_OF_MODULE if not is_installed(module))


def missing_extra(module: str | None) -> str | None:
    """Returns the reason to skip a test that cannot import `module`.

    Returns None if no extra installs the module, or if it is installed.
    """
    package = (module or "").split(".")[0]
    if package not in MISSING_MODULES:
        return None
    return f"{module} is not installed (pip install -e '.[{EXTRA_OF_MODULE[package]}]')"


def skip_without_extra(report: pytest.TestReport, call: pytest.CallInfo) -> None:
    """Turns a failure for lack of an optional module into a skip that names the extra."""
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
    """With `CI` set, turns a skip that tests/allowed_skips.txt does not list into a failure."""
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
    """Marks the tests of tests/e2e and tests/distributed by their folder, for `-m`."""
    for item in items:
        for folder in ("e2e", "distributed"):
            if item.path.is_relative_to(ROOT / "tests" / folder):
                item.add_marker(folder)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names bytes by their argument; pytest adds a number.

    Generated bytes may contain a date (gzip's header does). Then the processes of one run, which
    collect at different times, would find different names.
    """
    return argname if isinstance(val, bytes) else None


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops the compiled programs after a file of tests, if there are many.

    Each program on a CPU has several memory maps, and Linux ends a process that has 65,530
    (vm.max_map_count). A program that is needed again comes from the cache on the disk.
    """
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def clock_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`clock_of(module, sleep=...)` gives one module other functions of `time`.

    A patch of `time.sleep` itself would reach all threads of the process: those that an earlier
    test left behind, and those of libraries.
    """

    def give(module: types.ModuleType, **functions: Callable[..., object]) -> None:
        monkeypatch.setattr(module, "time", types.SimpleNamespace(**vars(time) | functions))

    return give


@pytest.fixture
def golden() -> Callable[[str, object], None]:
    """`golden("nn/table.txt", value)` asserts that value equals tests/golden/nn/table.txt.

    With UPDATE_GOLDEN=1 the file is written instead. The value is a text, or anything that JSON can
    represent (then the file is indented JSON).
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
            sides = (side.splitlines(keepends=True) for side in (recorded, text))
            difference = "".join(difflib.unified_diff(*sides, "recorded", "now", n=1))
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
    """`run_program("-m", "flamingo_jax.train", "--config=...")` runs this Python as a user would.

    The program runs in the repository root (or `cwd`) on one device. Returns the completed process
    with `stdout` and `stderr` as text. Fails the test if the exit status is not `status` (default
    0; None accepts any).
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
