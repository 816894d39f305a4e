"""Configs by name or file: what is found, and one line for what is not."""

import pathlib

import pytest

from flamingo_jax.core import config_files

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def test_names_and_files():
    tiny = str(ROOT / "configs" / "tiny.py")
    assert config_files.find("tiny:flamingo") == (tiny, ["flamingo"])
    assert config_files.find("tiny") == (tiny, [])
    file, argument = config_files.find("ablations.contrastive_data:ltip,/data")
    assert file.endswith("ablations/contrastive_data.py") and argument == ["ltip,/data"]
    assert config_files.find("configs/tiny.py:flamingo") == ("configs/tiny.py", ["flamingo"])


def test_a_path_with_colons(tmp_path):
    """The longest part that is a file is the file."""
    (tmp_path / "a:b").mkdir()
    file, longer = tmp_path / "a:b" / "c.py", tmp_path / "a:b" / "c.py:d"
    file.write_text("import ml_collections\ndef get_config(x=''): return {'x': x}")
    assert config_files.find(str(file)) == (str(file), [])
    assert config_files.load(f"{file}:d:e").x == "d:e"
    assert config_files.find(f"{file}:") == (str(file), [""])
    longer.write_text("")
    assert config_files.find(f"{file}:d:e") == (str(longer), ["e"])
    with pytest.raises(SystemExit, match="there is no file .*/a. Give another"):
        config_files.find(str(tmp_path / "a:b" / "nothing.py"))


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
