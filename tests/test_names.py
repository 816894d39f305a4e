"""No public class and no module name of the project is defined twice."""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Names that still mean two things, each with the reason. Nothing is added to these lists.
CLASSES: dict[str, str] = {}
MODULES = {
    "config": "each package has one, of its own options",
    "embed": "nn: token embeddings; evaluation: writes embeddings of images",
    "run": "training; evaluation; the pipelines' program",
}


def _files() -> list[pathlib.Path]:
    return sorted(
        path for name in ("flamingo_jax", "data_pipelines") for path in (ROOT / name).rglob("*.py")
    )


def _twice(places: dict[str, list[str]], allowed: dict[str, str]) -> list[str]:
    """Returns names that are used twice without permission, and permissions that nothing needs."""
    twice = {name: where for name, where in places.items() if len(where) > 1}
    found = [f"{name}: {', '.join(where)}" for name, where in twice.items() if name not in allowed]
    return found + [f"{name} is allowed and need not be" for name in allowed if name not in twice]


def test_no_public_class_is_defined_twice():
    places = collections.defaultdict(list)
    for path in _files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not _twice(places, CLASSES), "give one of them another name, or take it off the list"


def test_no_module_name_is_used_twice():
    places = collections.defaultdict(list)
    for path in _files():
        if not path.stem.startswith("_"):
            places[path.stem].append(str(path.relative_to(ROOT)))
    assert not _twice(places, MODULES), "give one of them another name, or take it off the list"
