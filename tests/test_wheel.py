"""The wheel works without the repository: its commands find the configs by name and train."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.training.small import make_world

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = "train finetune evaluate generate convert plan serve cards playground data".split()


def run(*arguments: object, cwd: pathlib.Path) -> subprocess.CompletedProcess:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")
    }
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel, built from a copy of the sources, since building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("flamingo_jax", "data_pipelines", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("built")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built)
    run(*pip, "wheel", *options, source, cwd=built)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> pathlib.Path:
    """A new environment with the wheel and this environment's packages, without the repository."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=place)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    own = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place
    ).stdout.strip()
    (pathlib.Path(own) / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    return place


def test_the_wheel_has_the_configs_and_nothing_of_the_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py")}
    assert {f"flamingo_jax/bundled/{name}" for name in configs} <= set(names)
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "flamingo_jax",
        "data_pipelines",
    }


def test_the_metadata_names_the_extras_and_the_commands(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (
        archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")
    )
    extras = "cuda tpu pipelines evaluation conversion parity wandb clearml dev"
    for extra in extras.split():
        assert f"Provides-Extra: {extra}\n" in metadata
    (entries,) = (
        archive.read(name).decode()
        for name in archive.namelist()
        if name.endswith("/entry_points.txt")
    )
    for command in COMMANDS:
        assert f"flamingo-{command} = " in entries


def test_an_installed_wheel_trains(environment, tmp_path):
    world = make_world(tmp_path / "world")
    done = run(
        environment / "bin" / "flamingo-train",
        "--config=tiny:language_model",
        f"--workdir={tmp_path / 'run'}",
        "--config.steps=2",
        "--config.until.required=False",
        f"--config.data.datasets.text.path={world / 'text'}",
        f"--config.data.tokenizer={world / 'tokenizer'}",
        "--config.data.datasets.text.batch_size=4",
        "--config.model.lm.num_layers=1",
        cwd=tmp_path,
    )
    assert (tmp_path / "run" / "export" / "model.json").exists(), done.stderr


def test_every_command_has_its_flags(environment, tmp_path):
    """--help lists the flags of the program only if the program runs as the main module."""
    done = subprocess.run(
        [environment / "bin" / "flamingo-plan", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--topology" in done.stdout, done.stderr
