"""Rules of the code that no linter checks.

One idea per file, one way to open a file, one way to create a weight.
"""

import ast
import functools
import pathlib
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGEST_FILE = 450
LONGEST_PROGRAM = 80
LONGEST_LOOP = 150
TOO_LONG: dict[str, int] = {}  # files that are to be cut, with their lines today
FILES = sorted(
    str(path.relative_to(ROOT))
    for name in ("flamingo_jax", "data_pipelines", "configs")
    for path in (ROOT / name).rglob("*.py")
)
PROGRAMS = [
    path
    for path in FILES
    if path.count("/") == 1 and path.startswith("flamingo_jax/") and "__init__" not in path
]

# Every path may be gs://, where these fail. The .open() of an epath works.
LOCAL_FILE_MODULES = ("pathlib", "shutil", "glob", "tempfile")
# To read one of these may wait for ever if a pipe is there: paths.regular() refuses it.
READS = ("read_bytes", "read_text", "open")
LOCAL_FILE_CALLS = {
    *("open", "io.open", "os.open", "os.makedirs", "os.mkdir", "os.listdir", "os.remove"),
    *("os.rename", "os.replace", "os.path.exists", "os.path.isfile", "os.path.isdir"),
    *("os.scandir", "os.walk"),
}
# Only core.params.param creates weights: Haiku's layers give them the input's dtype and no axes.
HAIKU_WEIGHTS = {
    *("hk.get_parameter", "hk.Linear", "hk.LayerNorm", "hk.RMSNorm", "hk.Embed"),
    *("hk.MultiHeadAttention", "hk.Conv1D", "hk.Conv2D", "hk.BatchNorm"),
}


@functools.cache
def tree(path: str) -> ast.Module:
    """Returns the parsed file at `path`, relative to the root."""
    return ast.parse((ROOT / path).read_text())


def local_file_access(module: ast.Module) -> Iterator[str]:
    """Yields the imports and calls of a module that work on local files only."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] in LOCAL_FILE_MODULES
            )
        elif (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] in LOCAL_FILE_MODULES
        ):
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in LOCAL_FILE_CALLS:
            yield f"{ast.unparse(node.func)}() in line {node.lineno}"


def unchecked_reads(module: ast.Module) -> Iterator[str]:
    """Yields the reads of files that do not go through `core.paths.regular`."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        mode = ast.unparse(node.args[0]) if node.args else "'r'"
        reads = node.func.attr in READS and mode in ("'r'", "'rb'", "'ab'", "'a'", "'r+b'")
        if reads and not ast.unparse(node.func.value).startswith(("regular(", "paths.regular(")):
            yield f"{ast.unparse(node)} in line {node.lineno}"


def without_docstring(module: ast.Module) -> Iterator[str]:
    """Yields the names of public classes and functions without a docstring.

    The module itself is `module`. Methods are left out: a docstring that repeats the signature says
    nothing.
    """
    if not ast.get_docstring(module):
        yield "module"
    for node in module.body:
        if not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ) or node.name.startswith("_"):
            continue
        overload = any(
            ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list
        )
        if not ast.get_docstring(node) and not overload:
            yield node.name


def haiku_weights(module: ast.Module) -> Iterator[str]:
    """Yields the places where a module creates weights with Haiku's own functions."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in HAIKU_WEIGHTS:
            yield f"{ast.unparse(node)} in line {node.lineno}"


def json_with_nan(module: ast.Module) -> Iterator[str]:
    """Yields the calls that would write NaN or Infinity, which no JSON reader must accept."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
            given = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if given.get("allow_nan") != "False":
                yield f"{ast.unparse(node.func)}() in line {node.lineno}"


def patched_clocks(module: ast.Module) -> Iterator[str]:
    """Yields the patches of a function of `time`: all threads would have it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("patch.setattr"):
            patched = ast.unparse(node.args[0]).strip("'")
            if patched.split(".")[-1] == "time" or patched.startswith("time."):
                yield f"{ast.unparse(node)} in line {node.lineno}"


def in_all_files(
    lint: Callable[[ast.Module], Iterator[str]], *, but: str | None = None
) -> list[str]:
    """Returns one line for each place that `lint` finds in all files except `but`."""
    assert len(FILES) > 100
    assert but is None or but in FILES
    return [f"{path}: {place}" for path in FILES if path != but for place in lint(tree(path))]


def test_file_is_one_idea():
    found = []
    for path in FILES:
        if pathlib.Path(path).stem in ("utils", "util", "helpers", "common", "misc"):
            found.append(f"{path}: name a file by its idea")
        lines = len((ROOT / path).read_text().splitlines())
        is_loop = path.endswith("training/loop.py")
        limit = LONGEST_PROGRAM if path in PROGRAMS else LONGEST_LOOP if is_loop else LONGEST_FILE
        if lines > TOO_LONG.get(path, limit):
            found.append(
                f"{path} has {lines} lines, at most {limit}: it contains more than one idea"
            )
    assert not found, "\n".join(found)


def test_files_are_reached_through_epath():
    found = in_all_files(local_file_access, but="flamingo_jax/core/paths.py")
    message = "every path may be gs://, go through flamingo_jax.core.paths:\n"
    assert not found, message + "\n".join(found)


def test_files_to_read_are_files():
    kernel = "Path(f'/proc/{pid}/stat').read_text()"
    found = [place for place in in_all_files(unchecked_reads) if kernel not in place]
    message = "a pipe may be there: read through flamingo_jax.core.paths.regular:\n"
    assert not found, message + "\n".join(found)


def test_the_public_api_has_docstrings():
    found = in_all_files(without_docstring)
    assert not found, "no docstring on\n" + "\n".join(found)


def test_json_is_written_without_nan():
    found = in_all_files(json_with_nan)
    message = "pass allow_nan=False, and check numbers where they come from (core/finite.py):\n"
    assert not found, message + "\n".join(found)


def test_no_test_changes_the_clock_of_other_threads():
    """tests/checkpoint/test_manifest.py means all of them: a clock jumps during a save."""
    paths = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    paths.remove("tests/checkpoint/test_manifest.py")
    found = [f"{path}: {place}" for path in sorted(paths) for place in patched_clocks(tree(path))]
    assert not found, "take the fixture clock_of:\n" + "\n".join(found)


def test_weights_are_born_through_param():
    found = in_all_files(haiku_weights, but="flamingo_jax/core/params.py")
    assert not found, "weights come from core.params.param only:\n" + "\n".join(found)


def test_top_level_is_fixed():
    allowed = {
        "setup.py",
        "flamingo_jax",
        "configs",
        "launch",
        "data_pipelines",
        "tests",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    }
    # tools' own, the last three ignored by git
    allowed |= {"pyproject.toml", "runs", "build", "flamingo_jax.egg-info"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found <= allowed, f"not part of the layout: {found - allowed}"


def test_checks_see_what_they_forbid():
    bad = ast.parse(
        "import pathlib\n"
        "open('x')\n"
        "os.makedirs('y')\n"
        "def f(): pass\n"
        "class A:\n"
        "  def g(self): hk.Linear(3)\n"
        "def _h(): pass"
    )
    assert list(local_file_access(bad)) == [
        "pathlib",
        "open() in line 2",
        "os.makedirs() in line 3",
    ]
    reads = ast.parse("a.read_bytes()\nPath(b).open('rb')\nregular(c).open('rb')\nd.open('wb')")
    assert len(list(unchecked_reads(reads))) == 2
    assert list(without_docstring(bad)) == ["module", "f", "A"]
    assert list(haiku_weights(bad)) == ["hk.Linear in line 6"]
    dumps = ast.parse(
        "json.dumps(1)\njson.dump(1, file, allow_nan=True)\njson.dumps(1, allow_nan=False)"
    )
    assert list(json_with_nan(dumps)) == ["json.dumps() in line 1", "json.dump() in line 2"]
    clocks = "monkeypatch.setattr(loop.time, 'sleep', f)\npatch.setattr('time.time', f)"
    assert len(list(patched_clocks(ast.parse(clocks)))) == 2
    good = ast.parse('"""Doc."""\nPath("x").open()\nparam("w")')
    assert not list(local_file_access(good))
    assert not list(without_docstring(good))
    assert not list(haiku_weights(good))
