"""The notebooks of launch/ are stored clean, import what exists, and run from top to bottom.

A run has tiny settings, in a cell after the one with the tag "parameters".
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece
from flamingo_jax.training import logs
from flamingo_jax.world.text import WORDS
from tests.conftest import BASE_XLA_FLAGS, ROOT
from tests.training import small

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = ROOT / "launch" / "notebooks"
NAMES = ("few_shot", "own_data", "sharding_on_8_cpus", "ablation")
SMALL = f"{ROOT}/tests/training/small.py"
# A path of the machine on which a notebook was saved.
OF_A_MACHINE = re.compile(r"/(?:home|Users|root|work|tmp|content)/|\b[A-Z]:\\\\")
LONGEST_CELL = 40  # lines
SECONDS = 600


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def tagged(name, tag):
    (found,) = [cell for cell in code(name) if tag in cell.metadata.get("tags", ())]
    return found


def test_all_notebooks_are_known():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_without_outputs_and_without_a_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in code(name):
        assert not cell.outputs and cell.execution_count is None
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
    assert not OF_A_MACHINE.findall(text)
    assert "widgets" not in json.loads(text)["metadata"]


@pytest.mark.parametrize("name", NAMES)
def test_it_explains_itself_in_short_cells(name):
    """A title, words before what is done, cells that fit on a screen, and a picture or a table."""
    cells = read(name).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    words = [cell for cell in cells if cell.cell_type == "markdown"]
    assert 2 * len(words) >= len(code(name))
    assert all(len(cell.source) < 700 for cell in words)
    assert all(len(cell.source.splitlines()) <= LONGEST_CELL for cell in code(name))
    assert re.search(r"plt\.show\(\)|Markdown\(|Image\(", code(name)[-1].source)


def missing(node):
    """Returns the names that an import does not find."""
    if isinstance(node, ast.Import):
        return [each.name for each in node.names if not importlib.import_module(each.name)]
    found = importlib.import_module(node.module)
    return [
        f"{node.module}.{each.name}"
        for each in node.names
        if not hasattr(found, each.name)
        and importlib.util.find_spec(f"{node.module}.{each.name}") is None
    ]


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_compile_and_import_what_exists(name):
    trees = [ast.parse(cell.source, f"{name}.ipynb") for cell in code(name)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) > 5
    assert not [wrong for node in imports for wrong in missing(node)]


@pytest.mark.parametrize("name", NAMES)
def test_the_wheel_is_installed_where_the_package_is_missing(name, tmp_path, monkeypatch):
    cell, commands = compile(tagged(name, "install").source, name, "exec"), []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert not commands
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="`pip wheel --no-deps .` makes"):
        exec(cell, {})
    (tmp_path / "flamingo_jax-0.4.0-py3-none-any.whl").touch()
    exec(cell, {})
    extra = "[pipelines]" if name == "own_data" else ""
    wheel = f"./flamingo_jax-0.4.0-py3-none-any.whl{extra}"
    assert commands == [[sys.executable, "-m", "pip", "install", "-q", wheel]]


@pytest.mark.parametrize("name", ["few_shot", "own_data"])
def test_without_a_model_it_says_how_to_get_one(name, monkeypatch):
    monkeypatch.setenv("FLAMINGO_CHECKPOINT", "/nowhere")
    cells, place = code(name), tagged(name, "parameters")
    at = next(number for number, cell in enumerate(cells) if cell.id == place.id)
    names: dict = {}
    exec(cells[at].source, names)
    with pytest.raises(FileNotFoundError, match=r"no model at /nowhere.*launch/demo\.sh"):
        exec(cells[at + 1].source, names)


def execute(name, directory, parameters, **environment):
    """Runs a notebook in a kernel of its own, in a directory; returns it with its outputs."""
    notebook = read(name)
    ids = [cell.id for cell in notebook.cells]
    at = ids.index(tagged(name, "parameters").id) + 1
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    notebook.cells.insert(at, nbformat.v4.new_code_cell("\n".join(lines)))
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(directory)}}
    )
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    fast = f"{BASE_XLA_FLAGS} --xla_backend_optimization_level=0"
    variables = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": fast, **environment}
    variables.pop("MPLBACKEND", None)  # the kernel's own shows pictures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter_client, about its own settings
        client.execute(env=variables)
    return notebook


def outputs(notebook, kind):
    """Returns the outputs of one media type, in order."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found += [output.data[kind]] if kind in output.get("data", {}) else []
            found += [output.text] if kind == "text" and output.output_type == "stream" else []
    return found


def table(text):
    """Returns the cells of a Markdown table's rows, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Flamingo that knows the words of the world."""
    place = tmp_path_factory.mktemp("model")
    (place / "tokenizer").mkdir()
    path = place / "tokenizer" / "tokenizer.model"
    train_sentencepiece([" ".join(WORDS)] * 3, path, len(WORDS) + 8, model_type="word")
    return small.make_export(place / "flamingo", place, "flamingo", rng=np.random.default_rng(1))


def test_few_shot_runs(checkpoint, tmp_path):
    made = execute("few_shot", tmp_path, {"NUM_QUERIES": 2}, FLAMINGO_CHECKPOINT=str(checkpoint))
    (answers,) = outputs(made, "text/markdown")
    assert [row[0] for row in table(answers)] == ["0", "2", "4", "8"]
    (seen,) = [text for text in outputs(made, "text/html") if "<sub>" in text]
    assert re.findall(r"<sub>(\d)</sub>", seen)[-1] == "5" and "&lt;EOC&gt;" in seen
    assert len(outputs(made, "image/png")) == 3  # pictures, scores, the curve


def test_sharding_runs(tmp_path):
    """The losses agree, ZeRO-1 splits the moments, and eight devices keep less each."""
    made = execute("sharding_on_8_cpus", tmp_path, {"CONFIG": f"{SMALL}:flamingo", "STEPS": 2})
    weights, losses = map(table, outputs(made, "text/markdown"))
    assert any("model" in row[2] and "data" in row[3] for row in weights)
    assert len(losses) == 2 and all(float(row[3]) < 1e-4 for row in losses)
    assert len(outputs(made, "image/png")) == 2
    said = "".join(outputs(made, "text"))
    split, every = map(int, re.search(r"(\d+) of (\d+) arrays of the optimizer", said).groups())
    assert every / 2 < split < every


@pytest.mark.slow
def test_own_data_runs(checkpoint, tmp_path):
    """All pictures become records, and the loss falls."""
    sizes = {"NUM_PICTURES": 40, "NUM_TEST": 4, "STEPS": 40, "BATCH": 8}
    sizes["CONFIG"] = f"{SMALL}:flamingo"
    made = execute("own_data", tmp_path, sizes, FLAMINGO_CHECKPOINT=str(checkpoint))
    assert "out: train" in "".join(outputs(made, "text"))
    (answers,) = map(table, outputs(made, "text/markdown"))
    assert [row[0] for row in answers[:2]] == ["red and green", "red and blue"]
    assert len(answers) == 5 and answers[-1][0] == "**exact match, 4 flags**"
    log = logs.read(tmp_path / "runs" / "own_data" / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 40 and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert len(outputs(made, "image/png")) == 2


@pytest.mark.slow
def test_ablation_runs(tmp_path):
    """Both rows are trained and evaluated; the gates are the only weights that differ."""
    narrow = ["--config.model.lm.num_layers=1", "--config.model.lm.width=32"]
    sizes = {"TOWER_STEPS": 4, "STEPS": 4, "NUM_QUERIES": 4, "FIELDS": narrow}
    made = execute("ablation", tmp_path, sizes)
    (counts,) = map(table, outputs(made, "text/markdown"))
    differ = [row for row in counts if row[1] != row[2]]
    assert {row[0] for row in differ} == {"xattn", "**all**"}
    said = "".join(outputs(made, "text"))
    assert "Ablations of the tiny Flamingo" in said and "no_gate" in said
    assert len(outputs(made, "image/png")) == 2
