"""`from flamingo_jax import ...` has typed names, and imports a part only when a name is used."""

import importlib
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import flamingo_jax
from flamingo_jax.inference.methods import BeamSearch
from flamingo_jax.inference.model import Flamingo

ROOT = pathlib.Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from typing import assert_type

    def types_of_the_overloads(model: Flamingo, image: flamingo_jax.Image) -> None:
        """Read by mypy (pyproject.toml names this file), never called."""
        prompt: list[str | flamingo_jax.Image] = [image, "this is a"]
        assert_type(model.generate("this is a"), str)
        assert_type(model.generate(prompt), str)
        assert_type(model.generate([image, "this is a"], method=BeamSearch(3)), str)
        assert_type(model.generate(["this is a", "output :"]), list[str])
        assert_type(model.generate([prompt, prompt]), list[str])
        assert_type(model.generate([prompt, "output :"]), list[str])
        assert_type(model.score("this is a", ["dax"]), list[float])
        assert_type(model.score(prompt, ["dax"]), list[float])
        assert_type(model.score(["this is a", "output :"], ["dax"]), list[list[float]])
        assert_type(model.score([prompt, prompt], ["dax"]), list[list[float]])
        assert_type(model.chat().say(prompt), str)
        assert_type(flamingo_jax.load("export"), Flamingo)


def test_every_public_name_is_there():
    assert flamingo_jax.__all__ == sorted(flamingo_jax._MODULES)
    for name in flamingo_jax.__all__:
        assert getattr(flamingo_jax, name) is not None
    assert set(flamingo_jax.__all__) <= set(dir(flamingo_jax))
    assert flamingo_jax.Flamingo is Flamingo and flamingo_jax.load == Flamingo.load
    assert (ROOT / "flamingo_jax" / "py.typed").exists()


def test_a_name_that_is_not_there():
    with pytest.raises(
        AttributeError, match=r"no attribute 'Flamigo'. Its public names are BeamSearch, Flamingo"
    ):
        importlib.import_module("flamingo_jax").Flamigo  # noqa: B018


def test_no_public_name_is_a_submodule():
    """Importing a submodule of that name would replace the public name.

    So `train` and `evaluate` are the programs.
    """
    modules = {path.stem for path in (ROOT / "flamingo_jax").iterdir()}
    assert not modules & set(flamingo_jax.__all__)


def test_importing_the_package_imports_nothing_of_it():
    code = (
        "import sys, flamingo_jax; print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('jax', 'flamingo_jax')));from flamingo_jax import BeamSearch; print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["['flamingo_jax']", "False"]
