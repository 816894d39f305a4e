"""Model cards and datasheets: what the files say is there, and what a person wrote stays."""

import json
import pathlib
import shutil
import types

import pytest

from data_pipelines.inputs import identity
from data_pipelines.write_records import write_records
from flamingo_jax.cards import sections
from flamingo_jax.cards.datasheet import datasheet
from flamingo_jax.cards.model_card import SECTIONS, model_card
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.verify import verify
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import PathError
from flamingo_jax.data.schema import RECORDS, InterleavedPage

RUN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "version_0_4_0" / "flamingo"
REPORT = {
    "in": 10,
    "out": {"train": 2},
    "rejected": {"duplicate_url": 5, "no_image": 3},
    "images_rejected": {"small": 4},
    "damaged": 1,
}
PIPELINE = {
    "pipeline": "m3w",
    "request": {"input": "/crawl", "languages": ["en"], "explicit_filter": "", "files": {}},
}


@pytest.fixture
def run(tmp_path):
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def dataset(tmp_path):
    pages = [InterleavedPage(("a", b"image")), InterleavedPage(("b", b"image"))]
    write_records(tmp_path / "pages", "interleaved_page", {"train": lambda: pages})
    (tmp_path / "pages" / "report.json").write_text(json.dumps(REPORT))
    (tmp_path / "pages" / "pipeline.json").write_text(json.dumps(PIPELINE))
    return tmp_path / "pages"


def answer(text, question):
    """Returns the answer to a question of a card."""
    return text.split(f"# {question}\n\n")[1].split("\n#")[0].strip()


def test_a_model_card_has_the_headings_of_the_paper_and_what_the_files_say(run):
    path, text = model_card(run, [run / "report"])
    assert path == run / "export" / "MODEL_CARD.md"
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("##")]
    assert headings == [name for title, questions in SECTIONS for name in (title, *questions)]
    assert len(headings) == 30
    assert text.startswith("# Model card: tiny_flamingo\n")
    card = json.loads((run / "export" / "model.json").read_text())
    assert f"- {card['parameters']:,} parameters" in answer(text, "Model Type")
    assert "language model: num_layers 2, width 32, num_heads 2" in answer(text, "Model Type")
    assert "image size: 32" in answer(text, "Preprocessing")
    assert "- pages: interleaved, batch 8, weight 1.0" in answer(text, "Training Data")
    assert "Stage flamingo, 20 updates, seed 1." in answer(text, "Training Data")
    assert "| format | ranking | 0 | 0.03 | 32 |" in answer(text, "Unitary Results")
    assert "- format: 32 queries of test" in answer(text, "Datasets")
    for question in ("Out-of-Scope Uses", "Human Life", "Model Date"):
        assert answer(text, question) == "not stated: fill in"


def test_an_export_alone_and_what_a_run_records(run):
    """Without a run nothing is known of the data; a newer export has the record of its run."""
    shutil.copytree(run / "export", run.parent / "copied")
    assert answer(model_card(run.parent / "copied")[1], "Training Data") == "not stated: fill in"
    card = json.loads((run / "export" / "model.json").read_text())
    record = json.loads((run / "config.json").read_text())
    record |= {"name": "mine", "records": {"pages": {"count": 1234}}}
    (run / "export" / "model.json").write_text(json.dumps({**card, "run": {"record": record}}))
    (run / "export" / "manifest.json").unlink(missing_ok=True)
    text = model_card(run / "export")[1]
    assert text.startswith("# Model card: mine\n")
    assert "- pages: interleaved, 1,234 records, batch 8" in answer(text, "Training Data")


def test_a_datasheet_has_what_the_pipeline_counted(dataset):
    path, text = datasheet(dataset)
    assert path == dataset / "DATASHEET.md"
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Motivation",
        "Composition",
        "Collection Process",
        "Preprocessing, Cleaning and Labeling",
        "Uses",
        "Distribution",
        "Maintenance",
    ]
    assert answer(text, "Number of Instances").startswith("- train: 2 records, ")
    assert answer(text, "All Possible Instances or a Sample") == "2 of the 10 records of the input."
    noise = answer(text, "Errors, Noise and Redundancies")
    assert "Left out as duplicate_url: 5." in noise and "which were left out: 1." in noise
    assert answer(text, "What Was Left Out").splitlines() == [
        "- duplicate_url: 5 records",
        "- no_image: 3 records",
        "- small: 4 images of records that were kept",
    ]
    assert "--pipeline=m3w, from /crawl." in answer(text, "How the Data Were Acquired")
    assert "No filter for explicit content" in answer(text, "Offensive Data")
    assert "- languages: ['en']" in answer(text, "What Was Done")
    assert answer(text, "Licence") == "not stated: fill in"


def test_a_dataset_without_reports_is_described_by_its_records(dataset):
    (dataset / "report.json").unlink()
    (dataset / "pipeline.json").unlink()
    text = datasheet(dataset)[1]
    assert answer(text, "What Was Left Out") == answer(text, "Software") == "not stated: fill in"
    assert "interleaved texts and images" in answer(text, "What the Instances Represent")


@pytest.mark.parametrize("kind", RECORDS)
def test_records_of_every_kind_are_described(dataset, kind, monkeypatch):
    source = types.SimpleNamespace(kind=kind)
    monkeypatch.setattr("flamingo_jax.cards.datasheet.Source", lambda *_: source)
    text = datasheet(dataset)[1]
    for question in ("What the Instances Represent", "Data of Each Instance"):
        assert answer(text, question).endswith(".") and kind not in answer(text, question)
    asked = kind.endswith("_answers") or kind == "conversation"
    assert ("The answers are the targets" in answer(text, "Labels or Targets")) == asked


def test_results_of_another_step_are_refused(run):
    file = run / "report" / "results.json"
    file.write_text(file.read_text().replace('"step": 20', '"step": 10'))
    with pytest.raises(ConfigError, match="at step 10, and the export is of step 20"):
        model_card(run, [run / "report"])


def test_a_card_that_was_edited_stays(tmp_path):
    """A card as it was written is written again; with a change, only if it is asked for."""
    card = tmp_path / "CARD.md"
    sections.write(card, "one\n", overwrite=False)
    sections.write(card, "two\n", overwrite=False)
    assert card.read_text().startswith("two\n") and not sections.is_edited(card)
    for edited in ("two and a half\n" + card.read_text()[4:], "two\n", ""):
        card.write_text(edited)
        with pytest.raises(
            sections.EditedCardError, match="was edited: it stays as it is. Give --o"
        ):
            sections.write(card, "three\n", overwrite=False)
        assert card.read_text() == edited
    sections.write(card, "three\n", overwrite=True)
    assert card.read_text().startswith("three\n")
    with pytest.raises(ValueError, match="no question Whoo"):
        sections.render("t", "a", (("Section", ()),), {"Whoo": "?"})


def test_a_card_changes_nothing_else(run, dataset):
    """Neither the check of an export nor the request of a pipeline that reads the dataset."""
    before = identity(str(dataset))
    for path, text in (model_card(run), datasheet(dataset)):
        sections.write(path, text, overwrite=False)
    assert identity(str(dataset)) == before
    assert "damaged" not in {found.state for found in verify(str(run / "export"))}
    assert model_card(run)[1] and datasheet(dataset)[1]


def test_missing_and_damaged_files_are_one_line(run, dataset, tmp_path):
    with pytest.raises(CheckpointError, match="There is no export at"):
        model_card(tmp_path / "none")
    with pytest.raises(PathError, match="There is no file .*none/results.json"):
        model_card(run, [tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="dataset_info.json is missing"):
        datasheet(tmp_path / "none")
    (dataset / "report.json").write_text("[]")
    with pytest.raises(PathError, match="report.json is damaged: expected an object"):
        datasheet(dataset)
    (run / "export" / "model.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged: model.json lacks"):
        model_card(run)


def test_the_program_writes_cards(run_program, run, dataset):
    program = ("-m", "flamingo_jax.cards")
    done = run_program(*program, f"--export={run}", f"--dataset={dataset}")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"Wrote {run}/export/MODEL_CARD.md",
        f"Wrote {dataset}/DATASHEET.md",
    ]
    (dataset / "DATASHEET.md").write_text("mine")
    done = run_program(*program, f"--dataset={dataset}", status=1)
    assert done.stderr.startswith("EditedCardError: ") and len(done.stderr.splitlines()) == 1
    assert (dataset / "DATASHEET.md").read_text() == "mine"
    done = run_program(*program, status=1)
    assert done.stderr == "UsageError: Expected --export=DIR or --dataset=DIR.\n"
