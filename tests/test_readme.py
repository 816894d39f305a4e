"""The documents are right.

Their commands parse, their symbols can be imported, and their tests, files and links exist.
"""

import ast
import contextlib
import importlib
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from absl import flags

from configs import tiny
from flamingo_jax.core import config_files, overrides
from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.config import EvaluateConfig, FineTuneConfig
from flamingo_jax.training.config import TrainConfig
from tests.launch import slurm

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("flamingo_jax", "data_pipelines", "configs", "launch", "tests")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")),
        ROOT / "launch" / "ON_CALL.md",
    ]
)
PACKAGE = ROOT / "flamingo_jax" / "README.md"
PROGRAMS = (
    *(f"flamingo_jax.{name}" for name in ("train", "finetune", "evaluate")),
    *(f"flamingo_jax.{name}" for name in ("generate", "convert", "plan", "serve")),
    "flamingo_jax.cards.__main__",
    "flamingo_jax.playground.__main__",
    "data_pipelines.run",
)
COMMANDS = {
    f"flamingo-{module.split('.')[1].replace('run', 'data')}": module for module in PROGRAMS
}
# A code span that names a file may leave out one of these folders.
FILE_ROOTS = ("", "flamingo_jax", "data_pipelines", "tests/evaluation", "flamingo_jax/conversion")

# The errors that a wrong command raises (see `test_commands_parse`).
WRONG = (
    AssertionError,
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
)

# The options of a script, where this test checks them.
OPTIONS = {
    "launch/demo.sh": r"--towers$|--(output|size|model|from|lm_updates|config\.[\w.]+)=.",
    "launch/emoji.sh": r"--third$|--(output|size|packages|config\.[\w.]+)=.",
    "launch/model_sizes.sh": r"--(output|size|seeds|models|config\.[\w.]+)=.",
    "launch/ablations.sh": r"--(output|size|seeds|rows|config\.[\w.]+)=.",
    "launch/test.sh": "",
}

# What --config of a program holds.
CONFIGS = {
    "flamingo_jax.train": TrainConfig,
    "flamingo_jax.finetune": FineTuneConfig,
    "flamingo_jax.plan": TrainConfig,
    "flamingo_jax.evaluate": EvaluateConfig,
}


def read(path: pathlib.Path) -> str:
    return re.sub(r"<!--.*?-->", "", path.read_text(), flags=re.DOTALL)


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def table_rows() -> list[tuple[str, ...]]:
    """Returns (paper, code, test) of each row of the paper-to-code table."""
    section = read(PACKAGE).split("## From the paper to the code")[1].split("\n## ")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.splitlines()
        if line[:1] == "|"
    ]
    return rows[2:]


def commands() -> list[tuple[str, str]]:
    """Returns (document, command) of every bash block and `python -m` code span.

    A command of several lines is joined into one.
    """
    found = []
    for path in DOCUMENTS:
        text = read(path)
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [
            line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()
        ]
        lines = [line for line in lines if line and not line.startswith("#")]
        lines += [" ".join(span.split()) for span in re.findall(r"`(python -m [^`]+=[^`]+)`", text)]
        lines += [" ".join(span.split()) for span in re.findall(r"`(launch/\w+\.sh [^`]+)`", text)]
        found += [(name_of(path), line) for line in lines]
    return found


@contextlib.contextmanager
def program(module: str) -> Iterator[None]:
    """Imports a program again, without the flags of other programs, which come back afterwards.

    Programs define flags of the same names, so two of them cannot be imported together.
    """

    def of_programs() -> list[str]:
        owners = {name: str(flags.FLAGS.find_module_defining_flag(name)) for name in flags.FLAGS}
        return [
            name
            for name, owner in owners.items()
            # None: flags that were restored below have no owner any more. jaxtyping: its hook
            # wraps the functions of cli.py.
            if owner.startswith(("flamingo_jax", "data_pipelines", "jaxtyping", "None"))
            or name.partition(".")[0] == "config"
        ]

    kept = {name: flags.FLAGS[name] for name in of_programs()}
    loaded = sys.modules.pop(module, None)
    for name in kept:
        delattr(flags.FLAGS, name)
    try:
        importlib.import_module(module)
        yield
    finally:
        for name in of_programs():
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name, flag in kept.items():
            flags.FLAGS[name] = flag
        sys.modules.pop(module, None)
        if loaded is not None:
            sys.modules[module] = loaded


def parse(module: str, *arguments: str) -> None:
    """Parses the arguments as the program does."""
    with program(module):
        words, fields = [module, *arguments], []
        if module in CONFIGS:
            words, fields = overrides.split(words)
        flags.FLAGS(words)
        joins = module == "flamingo_jax.evaluate" and flags.FLAGS.report  # then it needs no config
        if module in CONFIGS and not joins:
            config_files.read(CONFIGS[module], flags.FLAGS.config, fields)


def check_command(command: str) -> None:
    """Raises an error (one of WRONG) if a command is wrong."""
    words = shlex.split(command)
    name, *arguments = itertools.dropwhile(lambda word: re.match(r"FLAMINGO_\w+=", word), words)
    if "launch/slurm.sh" in words:
        check_slurm(words)
        return
    if name in OPTIONS:
        assert (ROOT / name).exists()
        assert all(re.match(OPTIONS[name], argument) for argument in arguments)
        for override in [argument for argument in arguments if argument.startswith("--config.")]:
            config = tiny.get_config()
            for field in override.removeprefix("--config.").split("=")[0].split("."):
                config = config[field]
        return
    if name == "launch/tpu_pod.sh":
        if "--help" in arguments:
            return
        done = subprocess.run(
            [ROOT / name, "--dry_run", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and "gcloud compute tpus" in done.stdout, done.stderr
        return
    if name.startswith("flamingo-"):
        module = COMMANDS[name]
        rest = arguments
    else:
        assert name == "python", f"not a program of this project: {command}"
        flag, module, *rest = arguments
        assert flag == "-m"
    if module.startswith(("tests.benchmarks.", "tests.e2e.")):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
        return
    if module == "flamingo_jax.checkpoint":
        assert (rest[0] == "verify" and rest[1:]) or (rest[0] == "int8" and len(rest) == 3)
        return
    if module in ("flamingo_jax.cards", "flamingo_jax.playground"):
        module += ".__main__"
    assert module in PROGRAMS
    if "--help" not in rest:
        parse(module, *rest)


def check_slurm(words: list[str]) -> None:
    """Checks a command of launch/slurm.sh, with that of sbatch before it."""
    script = words.index("launch/slurm.sh")
    flags_of_slurm = words[1:script]
    assert words[0] in ("sbatch", "launch/slurm.sh")
    assert {flag.partition("=")[0] for flag in flags_of_slurm} <= slurm.FLAGS["sbatch"]
    action, *rest = words[script + 1 :]
    if action in ("train", "evaluate"):
        assert rest[0] == "--"
        parse(f"flamingo_jax.{action}", *rest[1:])
    else:
        assert action in ("install", "--help")


def test_every_folder_has_its_readme():
    assert {name_of(path.parent) for path in DOCUMENTS} >= {".", *FOLDERS}
    assert {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"} <= set(DOCUMENTS)


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_table_is_read():
    assert len(table_rows()) >= 20
    assert all(len(row) == 3 for row in table_rows())


def missing(symbol: str) -> str:
    """Returns what is wrong with a dotted name: "" if it exists."""
    parts = symbol.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for j, name in enumerate(parts[i:], i):
            if not hasattr(found, name):
                return f"{symbol}: {'.'.join(parts[:j])} has no {name}"
            found = getattr(found, name)
        return ""
    return f"{symbol}: there is no such module"


def test_symbols_exist():
    """Checks the paper-to-code table, and each dotted name of our packages in any document."""
    symbols = {
        (name_of(PACKAGE), name)
        for row in table_rows()
        for name in re.findall(r"`([^`]+)`", row[1])
    }
    for path in DOCUMENTS:
        found = re.findall(r"`((?:flamingo_jax|data_pipelines|configs)(?:\.\w+)+)`", read(path))
        symbols |= {(name_of(path), name) for name in found if not name.endswith(".py")}
    programs = tuple(PROGRAMS)  # importing one would define its flags in this process
    wrong = [(path, missing(name)) for path, name in sorted(symbols) if name not in programs]
    assert not [found for found in wrong if found[1]]


def test_rows_name_tests_that_exist():
    for paper, _, test in table_rows():
        names = re.findall(r"`([^`]+)`", test)
        assert names, f"no test is named for {paper!r}"
        for name in names:
            path, _, function = name.partition("::")
            functions = [
                node.name
                for node in ast.parse((ROOT / path).read_text()).body
                if isinstance(node, ast.FunctionDef)
            ]
            assert function in functions, f"{name_of(PACKAGE)} names {name}; {path} has {functions}"


def test_commands_parse():
    """All are parsed in this process. Only the scripts of launch/ start another one."""
    found = commands()
    assert len(found) >= 40
    wrong = []
    for path, command in found:
        try:
            check_command(command)
        except WRONG as error:
            wrong.append(f"{path}: {command}\n    {error}")
    assert not wrong, "\n".join(wrong)


def test_unknown_flag_is_seen():
    with pytest.raises(flags.Error, match="chekpoint"):
        check_command("python -m flamingo_jax.generate --checkpoint=a --chekpoint=b")


def test_unknown_field_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        parse(
            "flamingo_jax.train",
            "--config=configs/tiny.py:flamingo",
            "--config.model.lm.widht=64",
            "--workdir=a",
        )


def anchors(text: str) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


def test_links_lead_somewhere():
    wrong = []
    for path in DOCUMENTS:
        for target in set(re.findall(r"\]\(([^)]+)\)", read(path))):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            found = path.parent / file if file else path
            if not found.exists():
                wrong.append(f"{name_of(path)}: {target}")
            elif anchor and anchor not in anchors(read(found)):
                wrong.append(f"{name_of(path)}: {target}: no such heading")
    assert not wrong


def test_files_that_are_named_exist():
    wrong = []
    for path in DOCUMENTS:
        for span in set(re.findall(r"`([\w./-]+\.(?:py|sh|lock|toml))(?::[\w,/]+)?`", read(path))):
            places = [path.parent / span, *(ROOT / root / span for root in FILE_ROOTS)]
            if not any(place.exists() for place in places) and not span.startswith("runs/"):
                wrong.append(f"{name_of(path)}: {span}")
    assert not wrong


def test_python_block_names_what_exists():
    (block,) = re.findall(r"```python\n(.*?)```", read(ROOT / "README.md"), re.DOTALL)
    assert len(block.strip().splitlines()) <= 10
    imports = [node for node in ast.parse(block).body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names)
    methods = set(re.findall(r"model\.(\w+)\(", block))
    assert methods == {"generate", "score", "stream"}
    flamingo = importlib.import_module("flamingo_jax.inference.model").Flamingo
    assert all(hasattr(flamingo, method) for method in methods)


def test_nothing_is_left_to_fill_in():
    paths = [*DOCUMENTS, *sorted((ROOT / "configs").glob("*.py"))]
    marker = "<!-- " + "LEAD"
    assert not [path.name for path in paths if marker in path.read_text()]
