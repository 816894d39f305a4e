"""The time of what reads untrusted text grows with its length, not with the square of it.

Each regular expression of the packages is timed on inputs that are made from the expression itself,
so that a new one is tested without being listed here.
"""

import ast
import importlib
import pathlib
import re

import pytest

from tests.growth import grows_too_fast, hard_inputs

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRUSTED = {
    "flamingo_jax.planning": "reads what the compiler writes",
    "flamingo_jax.conversion.mapping": "its patterns are rows of our tables, of names of weights",
    "flamingo_jax.checkpoint": "its patterns are options, of names of weights",
    "flamingo_jax.core.trees": "its patterns are rows of our tables, of names of weights",
    "flamingo_jax.core.texts": "reads the command line of the user",
    "flamingo_jax.training.deviations": "its patterns are rows of our tables, of names of fields",
    "flamingo_jax.training.run_record": "its patterns are rows of our tables, of names of fields",
}


def modules():
    """Returns each module that uses regular expressions on untrusted text."""
    found = []
    for package in ("flamingo_jax", "data_pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            uses = re.search(r"^import re$", path.read_text(), re.MULTILINE)
            found += [name] if uses and not name.startswith(tuple(TRUSTED)) else []
    return found


def inline_patterns(tree):
    """Yields the first argument of re.sub(...), re.match(...) and so on in a file."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "re"
            and node.func.attr not in ("compile", "escape")
        ):
            yield node.args[0]


@pytest.mark.parametrize("name", modules())
def test_time_of_regular_expressions_is_linear(name):
    module = importlib.import_module(name)
    patterns = [value for value in vars(module).values() if isinstance(value, re.Pattern)]
    for argument in inline_patterns(ast.parse(pathlib.Path(module.__file__).read_text())):
        assert isinstance(argument, ast.Constant), (
            f"{name}: {ast.unparse(argument)} is not known before it runs. Name it in a constant, "
            "or say in TRUSTED why it reads no untrusted text."
        )
        patterns.append(re.compile(argument.value))
    found = (
        f"{what}: {times}"
        for pattern in patterns
        for what, make in hard_inputs(pattern)
        if (times := grows_too_fast(lambda text, p=pattern: p.sub(text[:0], text), make, 4_000))
    )
    assert not next(found, "")


@pytest.mark.parametrize(
    "pattern", ["<+(image|EOC)>+", r"[.?!]\S*\s+\S", r"charset\s*=\s*'?\s*(\w+)", "(a+)*b"]
)
def test_the_test_finds_patterns_that_are_not(pattern):
    found = (
        grows_too_fast(re.compile(pattern).search, make, 3_000)
        for _, make in hard_inputs(re.compile(pattern))
    )
    assert any(found)
