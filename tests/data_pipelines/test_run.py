"""The pipeline program: what it makes, when it does nothing, and what it refuses."""

import json
import pathlib
import re
import sys

# It defines flags. Were it imported later, flagsaver would drop them.
import array_record.python.array_record_data_source  # noqa: F401
import pytest
from absl import flags
from absl.testing import flagsaver

from data_pipelines import run
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from flamingo_jax.world.text import NAMES, WORDS

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SMALL = (
    "--size=smoke",
    "--num_pages=4",
    "--num_videos=1",
    "--num_held_back=2",
    "--num_documents=400",
)


def call(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(["run", *map(str, arguments)])
        run.main(["run"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    call("--pipeline=world", f"--output={directory / 'world'}", *SMALL)
    call(
        "--pipeline=tokenizer",
        f"--input={directory / 'world' / 'text'}",
        f"--output={directory / 'tokenizer'}",
        "--model_type=word",
    )
    return directory


def contents(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_every_word_of_the_world_is_one_piece(made):
    tokenizer = SentencePieceTokenizer.load(made / "tokenizer", ("<EOC>", "<image>"))
    ids = [tokenizer.encode(word) for word in WORDS]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(WORDS)
    unknown = tokenizer.encode("unheardof")
    assert all(tokenizer.encode(name) != unknown for name in NAMES)
    assert tokenizer.vocab_size == len(WORDS) + 4  # pad, BOS, EOS, unknown
    text = "<image> this is a dax <EOC> <image> output :"
    assert len(tokenizer.encode(text)) == 9


def test_report_has_counts_and_seconds(tmp_path, capsys):
    call("--pipeline=world", f"--output={tmp_path / 'world'}", *SMALL)
    out = capsys.readouterr().out
    assert "pages/train" in out
    assert " s\n" in out
    mark = json.loads((tmp_path / "world" / "pipeline.json").read_text())
    assert mark["counts"]["pages/train"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_same_request_again_does_nothing(made, capsys):
    before = contents(made)
    call("--pipeline=world", f"--output={made / 'world'}", *SMALL)
    call(
        "--pipeline=tokenizer",
        f"--input={made / 'world' / 'text'}",
        f"--output={made / 'tokenizer'}",
        "--model_type=word",
    )
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert contents(made) == before


def test_a_field_that_a_former_version_lacked_has_its_default(made, capsys):
    """Worlds from before pages could have more than eight pictures are still whole."""
    mark = made / "world" / "pipeline.json"
    content = mark.read_text()
    former = json.loads(content)
    assert former["request"]["size"].pop("pictures") == 8
    del former["request"]["page_mix"]["qa"]
    mark.write_text(json.dumps(former))
    try:
        call("--pipeline=world", f"--output={made / 'world'}", *SMALL)
        assert "nothing to do" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="request.size.pictures: 8 there, 9 asked for"):
            call("--pipeline=world", f"--output={made / 'world'}", *SMALL, "--num_pictures=9")
    finally:
        mark.write_text(content)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seed=2", *SMALL), "request.seed: 1 there, 2 asked for"),
        ((*SMALL, "--num_pages=5"), "request.size.pages: 4 there, 5 asked for"),
        ((*SMALL, "--page_mix=1,0,0"), "request.page_mix.binding: 0.6 there, 1.0 asked for"),
    ],
)
def test_output_of_another_request_is_kept(made, arguments, message):
    before = contents(made)
    with pytest.raises(SystemExit, match=message):
        call("--pipeline=world", f"--output={made / 'world'}", *arguments)
    assert contents(made) == before


def test_the_current_directory_as_the_output(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    call("--pipeline=world", "--output=.", *SMALL)
    monkeypatch.undo()
    assert (tmp_path / "here" / "world.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_an_input_that_is_missing_is_not_an_output_that_cannot_be_written(made, tmp_path):
    with pytest.raises(SystemExit) as error:
        call(
            "--pipeline=inspect",
            f"--dataset={made / 'world' / 'pages'}",
            f"--tokenizer={tmp_path / 'gone'}",
            f"--output={tmp_path / 'out'}",
        )
    assert str(error.value).startswith(f"data_pipelines.run: No tokenizer at {tmp_path / 'gone'}.")
    assert "writable" not in str(error.value)


def test_every_option_has_a_help():
    options = set().union(*(each.options.__dataclass_fields__ for each in run.PIPELINES.values()))
    helps = {name: flags.FLAGS[name].help for name in options & set(flags.FLAGS)}
    assert helps["num_frames"].endswith("in place of the preset's number: frames of a video.")
    name = f"({'|'.join(run.PIPELINES)}):"
    assert not [each for each, text in helps.items() if re.search(rf"{name} *($|{name})", text)]


def test_directory_of_something_else_is_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="holds something else"):
        call("--pipeline=world", f"--output={tmp_path}", *SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tokenizer_of_another_text_is_made_again(made, tmp_path):
    """The request includes what the input was made from.

    The same path with another text is another request.
    """
    mark = made / "world" / "pipeline.json"
    before = mark.read_text()
    mark.write_text(before.replace('"seed": 1', '"seed": 7'))
    try:
        with pytest.raises(SystemExit, match="another request"):
            call(
                "--pipeline=tokenizer",
                f"--input={made / 'world' / 'text'}",
                f"--output={made / 'tokenizer'}",
                "--model_type=word",
            )
    finally:
        mark.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--pipeline=worlds", "--output=x"),
            "expected one of benchmark, .*, world. Did you mean 'world'",
        ),
        (("--output=x",), "--pipeline is missing: give one of"),
        (("--pipeline=world",), "--output is missing"),
        (("--pipeline=tokenizer", "--output=x", "--input=nowhere"), "no dataset at 'nowhere'"),
        (
            ("--pipeline=tokenizer", "--output=x", "--model_type=words"),
            "model_type='words', expected one of",
        ),
        (("--pipeline=world", "--output=x", "--page_mix=1,0"), "expected 3 numbers"),
        (("--pipeline=world", "--output=x", "--num_one=0"), "one is 0, expected at least 1"),
        (("--pipeline=world", "--output=x", "--num_pictures=7"), "is 7, expected at least 8"),
        (
            ("--pipeline=world", "--output=x", "--page_mix=nan,1,1"),
            "expected 3 numbers",
        ),
        (
            ("--pipeline=world", "--output=x", "--size=huge"),
            "--size=huge: expected one of demo, smoke, gpu",
        ),
        (
            ("--pipeline=world", "--output=x", "--input=y"),
            "--input: pipeline 'world' has no such option",
        ),
        (("--pipeline=m3w", "--output=x"), "--input is missing"),
        (
            ("--pipeline=m3w", "--output=x", "--input=nowhere"),
            "--input=nowhere: there is no such file",
        ),
        (("--pipeline=text", "--output=x", "--max_broken=2"), "--max_broken=2.0: expected a share"),
    ],
)
def test_bad_flags_are_explained_in_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_unwritable_output_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="Give a writable place"):
        call("--pipeline=world", f"--output={tmp_path / 'file' / 'world'}", *SMALL)


BLOCKED = sorted({each for one in run.PIPELINES.values() for each in one.packages})
BLOCK = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED}))
from absl import app
from data_pipelines import run
app.run(run.main)
"""


def test_a_world_needs_no_package_of_the_extra(run_program, tmp_path):
    done = run_program("-c", BLOCK, "--pipeline=world", f"--output={tmp_path / 'world'}", *SMALL)
    assert (tmp_path / "world" / "world.json").exists()
    assert not done.stderr


@pytest.mark.parametrize(("pipeline", "package"), [("m3w", "apache_beam"), ("text", "apache_beam")])
def test_a_missing_package_says_what_to_install(run_program, tmp_path, pipeline, package):
    output = tmp_path / "output"
    done = run_program(
        "-c", BLOCK, f"--pipeline={pipeline}", "--input=x", f"--output={output}", status=1
    )
    assert done.stderr == (
        f"data_pipelines.run: --pipeline={pipeline} needs the package '{package}': "
        "pip install 'flamingo_jax[pipelines]'\n"
    )
    assert not output.exists()


@pytest.mark.parametrize("package", BLOCKED)
def test_each_package_of_a_pipeline_is_looked_for(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    needing = [name for name, each in run.PIPELINES.items() if package in each.packages]
    for name in needing:
        with pytest.raises(SystemExit, match=f"--pipeline={name} needs the package '{package}'"):
            call(f"--pipeline={name}", "--output=x", "--input=y")


def test_the_packages_are_those_of_the_extra():
    """Some distributions have another name than their module."""
    lines = (ROOT / "setup.py").read_text().partition('"pipelines": [')[2].partition("]")[0]
    named = {"faiss-cpu": "faiss"}
    extra = [re.match(r"[\w-]+", line.strip(' ",'))[0] for line in lines.split()]
    modules = {named.get(each, each).replace("-", "_").lower() for each in extra}
    optional = {"resvg_py"}  # for OpenMoji's drawings alone; the pipeline emoji names it
    assert modules - optional == {each for one in run.PIPELINES.values() for each in one.packages}


def test_program_makes_a_world_without_a_backend(run_program, tmp_path):
    """The workers of a pipeline compute with numpy.

    Only the tree utilities of jax are imported, and no backend is started.
    """
    code = (
        "import sys, atexit; from absl import app; from data_pipelines import run\n"
        "def look():\n"
        "  bridge = sys.modules.get('jax._src.xla_bridge')\n"
        "  print('backends:', len(bridge._backends) if bridge else 0, 'haiku' in sys.modules)\n"
        "atexit.register(look)\n"
        "app.run(run.main)"
    )
    done = run_program("-c", code, "--pipeline=world", f"--output={tmp_path / 'world'}", *SMALL)
    assert "backends: 0 False" in done.stdout
    assert (tmp_path / "world" / "world.json").exists()
    assert not done.stderr


def test_a_mark_that_is_damaged_is_named(tmp_path):
    (tmp_path / "pipeline.json").write_text('{"pipeline": "wor')
    with pytest.raises(SystemExit, match="pipeline.json is not valid JSON: .* cut off or damaged"):
        call("--pipeline=world", f"--output={tmp_path}", *SMALL)
