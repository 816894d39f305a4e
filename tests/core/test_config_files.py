"""Configs by name or file: what is found, and one line for what is not."""

import pathlib

import pytest

from flamingo_jax.core import config_files

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_names_and_files():
    tiny = str(ROOT / "configs" / "tiny.py")
    assert config_files.find("tiny:flamingo") == f"{tiny}:flamingo"
    assert config_files.find("tiny") == tiny
    assert config_files.find("ablations.contrastive_data:ltip,/data").endswith(
        "ablations/contrastive_data.py:ltip,/data"
    )
    assert config_files.find("configs/tiny.py:flamingo") == "configs/tiny.py:flamingo"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("tinny:flamingo", "has no config 'tinny'. Did you mean 'tiny'"),
        ("mixture", "has no config 'mixture'. Give one of ablations.contrastive_data, "),
        ("nothing.py", "there is no file .*/nothing.py. Give another file, or one of ablations"),
        ("configs/tiny.py:flamingo", "--config=tiny:flamingo finds the config of that name"),
        (".", "there is no file"),
    ],
)
def test_a_config_that_does_not_exist(monkeypatch, tmp_path, config, message):
    """Outside of a clone, too; a part of other configs is none."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as error:
        config_files.find(config)
    assert len(str(error.value).splitlines()) == 1


def test_a_name_is_parsed_as_its_file():
    assert config_files.load("tiny:flamingo").stage == "flamingo"


@pytest.mark.parametrize(
    ("text", "argument", "message"),
    [
        ("def get_config(: pass", "", "cannot be run: SyntaxError: invalid syntax (a.py, line 1)."),
        (
            "\nimport no_such_module",
            "",
            "ModuleNotFoundError: No module named 'no_such_module' (line 2).",
        ),
        ("import os\n{}['a']", "", "cannot be run: KeyError: 'a' (line 2)."),
        ("x = 1", "", "a.py is no config: it has no function get_config."),
        ("def get_config(): return None", "", "get_config returned a NoneType, expected"),
        ("def get_config():\n  return a.b", "", "NameError: name 'a' is not defined (line 2)."),
        ("def get_config(): return {}", ":b", "takes 0 positional arguments but 1 was given."),
        ("def get_config(n):\n  raise ValueError('take 3')", ":4", "a.py:4: take 3"),
    ],
)
def test_a_file_that_is_no_config(tmp_path, text, argument, message):
    """The file is a program, and each error in it is one line with its place."""
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(SystemExit) as error:
        config_files.load(f"{tmp_path / 'a.py'}{argument}")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
