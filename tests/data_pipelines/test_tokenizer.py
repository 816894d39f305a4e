"""Training a tokenizer: all of a text is seen, a large dataset is sampled, the counts are true."""

import itertools

import numpy as np
import pytest
from etils import epath

from data_pipelines.tokenizer import Datasets, TokenizerRequest, build, sample, window
from data_pipelines.write_records import write_records
from flamingo_jax.data.schema import Document, InterleavedPage
from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers import sentencepiece
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece

SYLLABLES = "ba ke li mo nu ra se ti vo zu".split()


def words(number, prefix="", seed=0):
    drawn = np.random.default_rng(seed).choice(SYLLABLES, (number, 3))
    return " ".join(prefix + "".join(word) for word in drawn)


def dataset(path, texts):
    write_records(path, "document", {"train": lambda: map(Document, texts)})
    return str(path)


def run(tmp_path, texts, **fields):
    output = epath.Path(tmp_path / "tokenizer")
    output.mkdir()
    request = TokenizerRequest(dataset(tmp_path / "text", texts), **fields)
    return build(request, output), SentencePieceTokenizer.load(output, ())


def pieces_with(tokenizer, letter):
    names = map(tokenizer._pieces.id_to_piece, range(tokenizer.vocab_size))
    return sum(letter in name for name in names)


def test_documents_longer_than_a_line_of_sentencepiece_are_seen(tmp_path):
    long = words(12_000, "q")  # 86 kB
    counts, tokenizer = run(tmp_path, [words(200, "s"), long], vocab_size=300)
    assert pieces_with(tokenizer, "q") > 5
    assert counts == {
        "records": 2,
        "records not drawn": 0,
        "damaged records": 0,
        "records read in part": 0,
        "texts": 2,
        "bytes": len(long) + len(words(200, "s")),
        "pieces": 300,
    }


@pytest.mark.parametrize(
    "text", ["ab " * 100, "a" * 300, "日本語" * 90, " " * 300, "x\n" + "y" * 70 + "\t" + "z" * 300]
)
def test_lines_are_cut_at_white_space_and_nothing_is_lost(text, monkeypatch):
    monkeypatch.setattr(sentencepiece, "_MAX_LINE", 64)
    parts = list(sentencepiece._parts(text))
    assert "".join(parts) == text
    assert all(len(part.encode()) <= 64 for part in parts)
    if " " in text.strip():
        assert all(part[0] == " " for part in parts[1:])


@pytest.mark.parametrize("reserved", ["\u2585", "\0", "\t"])
def test_no_character_hides_a_text_from_the_training(reserved, tmp_path):
    texts = [words(200, "s"), words(200, "q") + reserved]
    train_sentencepiece(texts * 5, tmp_path / "m", 330)
    assert pieces_with(SentencePieceTokenizer.load(tmp_path / "m", ()), "q") > 3


def test_a_large_dataset_is_sampled_over_its_whole_length(tmp_path):
    texts = [words(30, seed=number) for number in range(500)]
    size = len(texts[0])
    counts, _ = run(tmp_path, texts, vocab_size=300, max_bytes=150 * size)
    assert 149 <= counts["texts"] <= 151
    assert counts["records not drawn"] == 500 - counts["texts"]
    assert counts["bytes"] <= 150 * size
    datasets = Datasets([tmp_path / "text"])
    drawn = [sample(datasets, 150 * size, seed).records for seed in range(3)]
    for numbers in drawn:
        assert 180 < numbers.mean() < 320
        assert len(set(numbers.tolist())) == len(numbers)
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_long_record_does_not_take_the_place_of_the_others(tmp_path):
    """It is much longer than all of the sample."""
    texts = [words(30_000, "q"), *(words(30, seed=number) for number in range(100))]
    size = len(texts[1])
    counts, tokenizer = run(tmp_path, texts, vocab_size=300, max_bytes=150 * size)
    assert counts["texts"] == 101
    assert counts["records read in part"] == 1
    assert 140 * size < counts["bytes"] <= 150 * size
    assert pieces_with(tokenizer, "q") > 0


def test_windows_are_whole_words_from_any_place():
    text = " ".join(f"w{number:03}" for number in range(500))
    seen = set()
    for seed in range(20):
        part = window(text, 100, (0, seed))
        assert 90 <= len(part) <= 100
        assert part in text
        assert all(len(word) == 4 for word in part.split())
        seen.add(part)
    assert len(seen) > 15
    assert len(window("日本" * 100, 100, (0, 0)).encode()) in range(95, 101)


def test_texts_of_pages_are_read_and_damage_is_counted(tmp_path, monkeypatch):
    page = InterleavedPage(("some words", b"\xff\xd8", "and more"))
    write_records(tmp_path / "pages", page.kind, {"train": lambda: itertools.repeat(page, 3)})
    real = Source.__getitem__

    def damaged(self, number):
        from flamingo_jax.data.schema import CorruptRecord

        if number == 1:
            raise CorruptRecord("a bad checksum")
        return real(self, number)

    monkeypatch.setattr(Source, "__getitem__", damaged)
    output = epath.Path(tmp_path / "out")
    output.mkdir()
    counts = build(TokenizerRequest(str(tmp_path / "pages"), model_type="word"), output)
    assert counts["texts"] == 4
    assert counts["damaged records"] == 1
    assert counts["records not drawn"] == 0
    assert counts["bytes"] == 2 * len("some wordsand more")


def test_several_datasets_are_read_one_after_the_other(tmp_path):
    pages = InterleavedPage(("a page", b"\xff\xd8"))
    write_records(tmp_path / "pages", pages.kind, {"train": lambda: [pages]})
    first, second = (dataset(tmp_path / name, [name, f"{name} two"]) for name in ("x,y", "z"))
    names = [first, str(tmp_path / "pages"), second]
    output = epath.Path(tmp_path / "out")
    output.mkdir()
    request = TokenizerRequest(",".join(names), model_type="word")
    counts = build(request, output)
    assert (counts["records"], counts["texts"]) == (5, 5)
    read = [text for number in range(5) for text in Datasets(names).texts(number)]
    assert read == ["x,y", "x,y two", "a page", "z", "z two"]
    known = SentencePieceTokenizer.load(output, ())
    unknown = known.encode("nowhere")[-1]
    assert unknown not in known.encode("x,y two z page")
    alone = [TokenizerRequest(name).input_files for name in names]
    assert request.input_files == f"[{', '.join(one[1:-1] for one in alone)}]"


@pytest.mark.parametrize(
    ("texts", "fields", "message"),
    [
        (["", ""], {}, "There is no text to train a tokenizer on"),
        (["some words"], {"vocab_size": 50}, "of 50 pieces is too small: .* are 2[67][0-9]"),
        (["a b"], {"vocab_size": 2, "model_type": "word"}, "cannot train a model of 2 pieces"),
    ],
)
def test_texts_that_cannot_be_trained_on(texts, fields, message, tmp_path):
    with pytest.raises(ValueError, match=f"tokenizer: --input=.*{message}"):
        run(tmp_path, texts, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "--input is missing"),
        ({"input": "nowhere"}, "no dataset at 'nowhere'.*--pipeline=text makes one"),
        ({"input": "x", "vocab_size": 0}, "--vocab_size=0, expected at least 1"),
        ({"input": "x", "max_bytes": 0}, "--max_bytes=0, expected at least 1"),
        ({"input": "x", "seed": -1}, "--seed=-1"),
    ],
)
def test_requests_that_cannot_work_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenizerRequest(**fields)


def test_a_wrong_one_of_several_datasets_is_named(tmp_path):
    first = dataset(tmp_path / "text", ["a"])
    with pytest.raises(ValueError, match="no dataset at 'nowhere'"):
        TokenizerRequest(f"{first},nowhere")
    with pytest.raises(ValueError, match="text' twice"):
        TokenizerRequest(f"{first},{first}/")
