"""Tiny datasets, written by the data pipelines, and two kinds of tokenizers."""

import pytest

from data_pipelines.write_records import write_records
from flamingo_jax.data.images.read import encode_png
from flamingo_jax.data.schema import Document, ImageText, VideoText
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from tests.data.tiny import CORRUPT, NUM_DOCUMENTS, NUM_PAGES, NUM_PAIRS, NUM_VIDEOS, page, solid
from tests.data_pipelines.media import mp4


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> SentencePieceTokenizer:
    """One piece per word; <EOC> and <image> are new tokens, as in the synthetic world."""
    names = (
        [f"w{k}" for k in range(40)]
        + [f"i{k}" for k in range(8)]
        + ["intro", "only", "text", "a", "b", "c"]
    )
    file = tmp_path_factory.mktemp("words") / "tokenizer.model"
    train_sentencepiece([" ".join(names)] * 3, file, 500, "word")
    return SentencePieceTokenizer.load(file, ("<EOC>", "<image>"))


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> SentencePieceTokenizer:
    """Unigram pieces with byte fallback; <image> is plain text, as in the paper."""
    lines = [
        "Cute pics of my pets!",
        "My puppy sitting in the grass.",
        "My cat looking very dignified.",
        "an <image> and the output of <image>",
    ] * 20
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    train_sentencepiece(lines, file, 340, "unigram")
    return SentencePieceTokenizer.load(file)


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A directory with the datasets pages, pairs, videos, files, documents and corrupt.

    The image of pair CORRUPT is damaged. All records of the dataset corrupt are corrupt.
    """
    root = tmp_path_factory.mktemp("datasets")

    def pairs():
        for k in range(NUM_PAIRS):
            image = encode_png(solid(k))
            yield ImageText(
                image[: len(image) // 2] if k == CORRUPT else image, f"w{k} a", metadata="{}"
            )

    def videos():
        for k in range(NUM_VIDEOS):  # 2 frames per second; video k has k + 1 frames
            yield VideoText(
                tuple(encode_png(solid(20 * k + f)) for f in range(k + 1)), f"w{k} b", fps=2.0
            )

    def files():
        # The same as files; each frame is ten grey levels lighter than the frame before.
        for k in range(NUM_VIDEOS):
            frames = [solid(20 * k + 10 * f, 16) for f in range(k + 1)]
            yield VideoText((), f"w{k} b", video=mp4(frames, 2))

    def documents():
        return (Document(" ".join([f"w{k}"] * (1 + k % 5))) for k in range(NUM_DOCUMENTS))

    write_records(
        root / "pages", "interleaved_page", {"train": lambda: (page(k) for k in range(NUM_PAGES))}
    )
    write_records(
        root / "pairs", "image_text", {"train": pairs, "test": lambda: [ImageText(b"x", "w0")]}
    )
    write_records(root / "videos", "video_text", {"train": videos})
    write_records(root / "files", "video_text", {"train": files})
    write_records(root / "documents", "document", {"train": documents})
    write_records(
        root / "corrupt", "image_text", {"train": lambda: [ImageText(b"no image", "w0")] * 3}
    )
    return root
