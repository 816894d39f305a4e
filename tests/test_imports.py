"""Imports point down.

Each package has a floor, and a file imports from its own floor or a lower one. The rules read the
source (AST), so they apply to imports inside functions too, and import nothing. For each rule there
is a file that breaks it.
"""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "flamingo_jax"
PROGRAMS = "programs"  # the modules directly in flamingo_jax/

FLOORS = {
    "core": 0,
    "nn": 1,
    "sharding": 1,
    "tokenizers": 1,
    "models": 2,
    "data": 2,
    "world": 3,
    "checkpoint": 3,
    "training": 3,
    "inference": 4,
    "evaluation": 4,
    "cards": 5,
    "conversion": 5,
    "planning": 5,
    "playground": 5,
    "serving": 5,
    PROGRAMS: 6,
}
# Packages of one floor that must not import each other. models may import the type of its input.
STRANGERS = {("sharding", "nn"), ("nn", "sharding"), ("models", "data"), ("data", "models")}
STRANGERS_EXCEPT = {("models", "flamingo_jax.data.schema")}

# data_pipelines and the processes of the loader run without jax.
WITHOUT_JAX = ("data", "tokenizers", "world")
# What configs/ may import of the package besides models and nn: the dataclasses of a config.
SCHEMA = (
    "flamingo_jax.core.config.",
    "flamingo_jax.core.precision.",
    "flamingo_jax.data.config.",
    "flamingo_jax.evaluation.config.",
    "flamingo_jax.inference.config.",
    "flamingo_jax.sharding.mesh.MeshConfig",
    "flamingo_jax.training.config.",
    "flamingo_jax.training.optimizer.",
)
STANDARD = ("__future__", "dataclasses", "functools", "typing")
# Imported by `__init__` where `python -m` looks for a program (tests/core/test_exit_status.py).
FIRST_OF_PROGRAMS = "flamingo_jax.core.exit_status"
PIPELINES_TOO = (
    FIRST_OF_PROGRAMS,
    *(f"flamingo_jax.core.{name}" for name in ("command_line", "html_page", "paths", "seeds")),
)

# The one file of data_pipelines that runs in the launcher alone; no other may import it at the top.
LAUNCHER = "data_pipelines.benchmarks.items"

# Third-party modules that only some packages may import: name -> these packages.
EDGES = {
    "torch": ("conversion",),
    "safetensors": ("conversion",),
    "transformers": ("conversion",),
    "starlette": ("playground", "serving"),
    "tensorflow": (),
    "uvicorn": ("playground", "serving"),
    "absl.app": (PROGRAMS, "data_pipelines"),
    "absl.flags": (PROGRAMS, "data_pipelines"),
    "apache_beam": ("data_pipelines",),
    "tensorflow_datasets": ("data", "data_pipelines"),
}
INSIDE_FUNCTIONS_ONLY = (
    *("torch", "safetensors", "transformers"),  # the extra conversion
    *("apache_beam", "faiss", "google_crc32c", "idna", "imagehash", "py3langid"),  # pipelines
    *("pyarrow", "resvg_py", "scipy", "selectolax", "zstandard"),
    *("wandb", "clearml"),
    *("gradio", "fastapi", "uvicorn"),  # playground
)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[str, bool]]:
    """Yields everything that the source of `module` imports, functions included.

    Yields:
        (absolute dotted name, True if importing the module imports it).
    """

    def walk(node: ast.AST, *, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parents = module.split(".")
                    parents = parents[: len(parents) - child.level + is_package]
                    base = ".".join([*parents, base] if base else parents)
                yield from ((f"{base}.{alias.name}", top) for alias in child.names)
            else:
                inner = isinstance(
                    child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
                ) or is_for_types(child)
                yield from walk(child, top=top and not inner)

    yield from walk(ast.parse(source), top=True)


def is_for_types(node: ast.AST) -> bool:
    """Returns True for an `if TYPE_CHECKING:` without an `else`: nothing in it runs."""
    return (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
    )


def owner(name: str) -> str | None:
    """Returns the package that a dotted name belongs to.

    A key of FLOORS or a top-level directory; None for third-party names.
    """
    parts = name.split(".")
    if parts[0] in ("data_pipelines", "configs", "tests"):
        return parts[0]
    if parts[0] != PACKAGE:
        return None
    if parts == [PACKAGE] or parts[1].startswith("__"):
        return None  # the package itself; importing it imports nothing (see below)
    if parts[-1] == "__main__":
        return PROGRAMS
    return parts[1] if parts[1] in FLOORS else PROGRAMS


def violations(path: str, source: str) -> list[str]:
    """Returns one sentence for each forbidden import in the file `path`, relative to the root."""
    module = path.removesuffix(".py").replace("/", ".")
    is_package = module.endswith(".__init__")
    module = module.removesuffix(".__init__")
    here = owner(module)
    found = []
    for name, top_level in imports(source, module, is_package):
        there, library = owner(name), name.split(".")[0]

        def forbid(reason: str, name: str = name) -> None:
            found.append(f"{path} imports {name}: {reason}")

        if here == "configs":
            schema = library == PACKAGE and (there in ("models", "nn") or name.startswith(SCHEMA))
            if (
                not schema
                and library not in STANDARD
                and library not in ("ml_collections", "configs")
            ):
                forbid("a config imports the schema, ml_collections and other configs only")
            continue
        if library == "tests" or (library == "configs" and here != "tests"):
            forbid("the package does not know its tests and configs")
        if here == "data_pipelines":
            if module == LAUNCHER and there in ("evaluation", "inference"):
                continue
            if (
                library == PACKAGE
                and there not in WITHOUT_JAX
                and not name.startswith(PIPELINES_TOO)
            ):
                allowed = ", ".join((*WITHOUT_JAX, *PIPELINES_TOO))
                forbid(f"data_pipelines imports {allowed} only")
            if library == "jax":
                forbid("data_pipelines runs on workers without jax")
            if top_level and name.startswith(LAUNCHER):
                forbid("its workers would import jax: import it inside the launcher's function")
        elif library == "data_pipelines":
            forbid("data_pipelines is above the package")
        elif module == PACKAGE and there and top_level and name != FIRST_OF_PROGRAMS:
            forbid("importing one part must not import all: resolve names in __getattr__")
        elif there in FLOORS and here in FLOORS:
            if FLOORS[there] > FLOORS[here]:
                forbid(f"{there} (floor {FLOORS[there]}) is above {here} (floor {FLOORS[here]})")
            excepted = any(
                here == package and name.startswith(f"{prefix}.")
                for package, prefix in STRANGERS_EXCEPT
            )
            if (here, there) in STRANGERS and not excepted and (here, name) not in STRANGERS_EXCEPT:
                forbid(f"{here} and {there} do not know each other")
            if there == PROGRAMS == here and name.split(".")[1:2] not in (
                [],
                ["cli"],
                module.split(".")[1:2],
            ):
                forbid("a program is not a library: move what is shared to cli.py or down")
        edge = next((edge for edge in EDGES if f"{name}.".startswith(f"{edge}.")), None)
        if edge and here not in EDGES[edge]:
            forbid(f"only {EDGES[edge] or 'nothing'} may import {edge}")
        elif library in INSIDE_FUNCTIONS_ONLY and top_level:
            forbid(f"{library} is optional: import it inside the function that needs it")
        if here == "data":
            allowed = module in (
                "flamingo_jax.data.to_device",
                "flamingo_jax.data.images.augment",
            ) or (module == "flamingo_jax.data.schema" and name.startswith("jax.tree_util"))
            if library == "haiku" or (library == "jax" and not allowed):
                forbid(
                    "the loader is numpy: jax in data/to_device and data/images/augment only "
                    "(jax.tree_util in data/schema), haiku nowhere"
                )
    return found


def source_files() -> list[str]:
    """Returns the files that the rules apply to, relative to the root."""
    directories = (PACKAGE, "data_pipelines", "configs")
    return sorted(
        str(path.relative_to(ROOT)) for name in directories for path in (ROOT / name).rglob("*.py")
    )


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert packages <= set(FLOORS), f"give these packages a floor here: {packages - set(FLOORS)}"


def test_every_directory_with_code_is_a_package():
    directories = {
        path.parent for name in (PACKAGE, "data_pipelines") for path in (ROOT / name).rglob("*.py")
    }
    missing = [
        str(path.relative_to(ROOT)) for path in directories if not (path / "__init__.py").exists()
    ]
    assert not missing, (
        f"no __init__.py, so find_packages leaves them out of an installation: {missing}"
    )


def test_imports_point_down():
    files = source_files()
    assert len(files) > 10
    found = [line for path in files for line in violations(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_packages_form_no_cycle():
    edges: dict[str, set[str]] = {name: set() for name in FLOORS}
    for path in source_files():
        module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        here = owner(module)
        if here in FLOORS:
            names = imports((ROOT / path).read_text(), module, path.endswith("__init__.py"))
            edges[here] |= {
                there for name, _ in names if (there := owner(name)) in FLOORS and there != here
            }
    while removable := [name for name, uses in edges.items() if not uses & set(edges)]:
        for name in removable:
            del edges[name]
    assert not edges, (
        "these packages import each other in a circle: "
        f"{ {k: v & set(edges) for k, v in edges.items()} }"
    )


def circles(sources: dict[str, str]) -> dict[str, set[str]]:
    """Returns the modules that import each other in a circle, with these imports.

    The result is {} if there is no circle. An import inside a function counts too: it hides a
    circle, and does not remove it.

    Args:
        sources: text by path.
    """
    modules = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path
        for path in sources
    }
    edges: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for name, _ in imports(sources[path], module, path.endswith("__init__.py"))}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        edges[module] = (found & set(modules)) - {module}
    while True:  # a module that imports no other, or that no other imports, is on no circle
        imported = set().union(*edges.values()) if edges else set()
        kept = {
            module: uses & set(edges)
            for module, uses in edges.items()
            if uses & set(edges) and module in imported
        }
        if kept == edges:
            return edges
        edges = kept


def test_modules_form_no_circle():
    found = circles({path: (ROOT / path).read_text() for path in source_files()})
    assert not found, f"these modules import each other in a circle: {found}"


def test_a_circle_is_seen_in_functions_too():
    sources = {
        "a/__init__.py": "",
        "a/b.py": "from a import c",
        "a/c.py": "def f():\n  from a.b import g",
        "a/d.py": "from a.b import g",
        "a/e.py": "import os",
    }
    assert circles(sources) == {"a.b": {"a.c"}, "a.c": {"a.b"}}
    assert circles(sources | {"a/c.py": "from a.e import g"}) == {}


def test_a_folder_can_be_taken_in_at_a_glance():
    folders = [(ROOT / path).parent for path in source_files()]
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    full = {folder: count for folder, count in counts.items() if count > 30}
    assert not full, f"more than 30 files: {full}; split these folders by topic"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flamingo_jax/core/trees.py", "from flamingo_jax.nn import linear"),
        ("flamingo_jax/nn/linear.py", "def f():\n  from flamingo_jax.models.lm import LM"),
        ("flamingo_jax/nn/linear.py", "from ..models import lm"),
        ("flamingo_jax/sharding/mesh.py", "from flamingo_jax.nn.linear import linear"),
        ("flamingo_jax/models/nfnet.py", "from flamingo_jax.data.images.read import decode"),
        ("flamingo_jax/data/captions.py", "from flamingo_jax.models.sizes import LMS"),
        ("flamingo_jax/data/captions.py", "import jax"),
        ("flamingo_jax/data/schema.py", "import jax.numpy as jnp"),
        ("flamingo_jax/data/to_device.py", "import haiku as hk"),
        ("flamingo_jax/models/lm.py", "import torch"),
        ("flamingo_jax/conversion/clip.py", "import torch"),
        ("flamingo_jax/conversion/clip.py", "from flamingo_jax.convert import main"),
        ("flamingo_jax/training/loop.py", "from absl import flags"),
        ("flamingo_jax/train.py", "from flamingo_jax.evaluate import main"),
        ("flamingo_jax/cli.py", "from flamingo_jax.train import main"),
        ("flamingo_jax/training/run.py", "from flamingo_jax import cli"),
        ("flamingo_jax/train.py", "from configs import tiny"),
        ("flamingo_jax/__init__.py", "from flamingo_jax.inference.model import Flamingo"),
        (
            "flamingo_jax/__init__.py",
            "if TYPE_CHECKING:\n  pass\nelse:\n  from flamingo_jax.inference.model import Flamingo",
        ),
        ("flamingo_jax/data/sources.py", "from data_pipelines import world"),
        ("data_pipelines/world.py", "from flamingo_jax.training import loop"),
        ("data_pipelines/world.py", "from flamingo_jax.evaluation import registry"),
        (
            "data_pipelines/benchmarks/pipeline.py",
            "from data_pipelines.benchmarks.items import training_units",
        ),
        ("data_pipelines/world.py", "import jax.numpy"),
        ("data_pipelines/obelics.py", "import pyarrow.parquet"),
        ("data_pipelines/web/urls.py", "from idna import uts46_remap"),
        ("configs/tiny.py", "import numpy as np"),
        ("configs/tiny.py", "from flamingo_jax.training import run"),
    ],
)
def test_rules_see_a_forbidden_import(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flamingo_jax/models/flamingo.py", "from flamingo_jax.data.schema import Batch"),
        ("flamingo_jax/models/lm.py", "from ..nn.linear import linear"),
        ("flamingo_jax/evaluation/runner.py", "from flamingo_jax.inference import api"),
        ("flamingo_jax/conversion/clip.py", "def read():\n  import torch"),
        (
            "flamingo_jax/data/schema.py",
            "import jax.tree_util\nfrom jax.tree_util import register_dataclass",
        ),
        ("flamingo_jax/data/to_device.py", "import jax"),
        ("flamingo_jax/train.py", "from absl import app\nfrom flamingo_jax.training import loop"),
        ("flamingo_jax/train.py", "from flamingo_jax import cli"),
        (
            "flamingo_jax/__init__.py",
            "if TYPE_CHECKING:\n  from flamingo_jax.inference.model import Flamingo",
        ),
        (
            "flamingo_jax/__init__.py",
            "def __getattr__(name):\n  from flamingo_jax.inference.model import Flamingo",
        ),
        ("data_pipelines/world.py", "from flamingo_jax.data import synthetic"),
        ("configs/tiny.py", "from configs import mixture\nfrom ml_collections import config_dict"),
        (
            "configs/tiny.py",
            "import dataclasses\nfrom flamingo_jax.training.config import TrainConfig",
        ),
        ("configs/tiny.py", "from flamingo_jax.models import sizes"),
    ],
)
def test_rules_allow(path, source):
    assert not violations(path, source)
