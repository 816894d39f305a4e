"""The README says what is: its symbols import, its tests exist, its commands and their flags parse, its links lead somewhere."""

import ast
import importlib
import pathlib
import re
import shlex
import subprocess

import pytest

from configs import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
PROGRAMS = (
    *(
        "flamingo_jax.train",
        "flamingo_jax.evaluate",
        "flamingo_jax.generate",
        "flamingo_jax.convert",
        "flamingo_jax.plan",
    ),
    "data_pipelines.run",
)
PARSE_FLAGS = """
import importlib, sys
from absl import flags
importlib.import_module(sys.argv[1])
flags.FLAGS(sys.argv[1:])
"""


def table_rows() -> list[tuple[str, ...]]:
    """Returns (paper, code, test) of each row of the paper-to-code table."""
    section = README.split("## From the paper to the code")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if line[:1] == "|"
    ]
    return rows[2:]


def commands() -> list[str]:
    """Returns the commands of all bash blocks, and the `python -m` ones within sentences, each on one line."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")] + re.findall(
        r"`(python -m [^`]+=[^`]+)`", README
    )


def test_table_is_read():
    assert len(table_rows()) >= 20
    assert all(len(row) == 3 for row in table_rows())


@pytest.mark.parametrize("symbol", sorted({name for row in table_rows() for name in re.findall(r"`([^`]+)`", row[1])}))
def test_symbol_exists(symbol):
    parts = symbol.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            found = getattr(found, name)
        return
    pytest.fail(f"README names {symbol}, and there is no such module")


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[0][:40])
def test_row_names_a_test_that_exists(row):
    names = re.findall(r"`([^`]+)`", row[2])
    assert names, f"no test stands behind {row[0]!r}"
    for name in names:
        path, _, function = name.partition("::")
        functions = [
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert function in functions, f"README names {name}; {path} has {functions}"


@pytest.mark.parametrize("command", commands())
def test_command_parses(command, run_program):
    program, *arguments = shlex.split(command)
    if program in ("launch/demo.sh", "launch/test.sh"):
        assert (ROOT / program).exists()
        overrides = [argument for argument in arguments if argument.startswith("--config.")]
        if program == "launch/demo.sh":
            assert all(re.match(r"--(output|size|config\.[\w.]+)=.", argument) for argument in arguments)
        for override in overrides:
            config = tiny.get_config()
            for name in override.removeprefix("--config.").split("=")[0].split("."):
                config = config[name]
        return
    if program == "launch/tpu_pod.sh":
        done = subprocess.run([ROOT / program, "--dry_run", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "gcloud compute tpus" in done.stdout, done.stderr
        return
    assert program == "python", f"not a program of this project: {command}"
    flag, module, *flags = arguments
    assert flag == "-m"
    assert module in PROGRAMS
    if flags != ["--help"] and "--help" not in flags:
        run_program("-c", PARSE_FLAGS, module, *flags)


def test_unknown_field_is_refused_with_a_suggestion(run_program):
    bad = ("--config=configs/tiny.py:flamingo", "--config.model.lm.widht=64")
    done = run_program("-c", PARSE_FLAGS, "flamingo_jax.train", *bad, status=1)
    assert 'Did you mean "width"' in done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_link_leads_somewhere(target):
    assert target.startswith("https://") or (ROOT / target).exists()


def test_python_block_names_what_exists():
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) <= 10
    imports = [node for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names)
    methods = set(re.findall(r"model\.(\w+)\(", block))
    assert methods == {"generate", "score"}
    flamingo = importlib.import_module("flamingo_jax.inference.model").Flamingo
    assert all(hasattr(flamingo, method) for method in methods)


def test_nothing_is_left_to_fill_in():
    paths = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py"))]
    marker = "<!-- " + "LEAD"
    assert not [path.name for path in paths if marker in path.read_text()]
