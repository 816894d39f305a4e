"""prompt.json is read as it was written, and mistakes in it are named."""

import pytest

from flamingo_jax.conversion import idefics
from flamingo_jax.core.paths import Path
from flamingo_jax.tokenizers import markers
from flamingo_jax.tokenizers.markers import PAPER, Markers


def test_without_a_file_prompts_are_the_papers_and_they_need_none(tmp_path):
    markers.write(tmp_path, PAPER)
    assert list(tmp_path.iterdir()) == []
    assert markers.read(Path(tmp_path)) == PAPER


def test_what_is_written_is_read(tmp_path):
    image = ("<a>", "<image>")
    written = Markers(
        bos=False, end_of_chunk="<0x0A>", closes_chunks=False, image=image, vocab_size=7
    )
    markers.write(tmp_path, written)
    assert markers.read(Path(tmp_path)) == written


def test_a_file_of_an_earlier_version_is_of_a_model_without_a_space_after_images(tmp_path):
    """The paper writes "<image> Output:"; OpenFlamingo and IDEFICS have no space there."""
    assert PAPER.after_image == " "
    (tmp_path / "prompt.json").write_text('{"bos": false}')
    assert markers.read(Path(tmp_path)) == Markers(bos=False, after_image="")
    assert idefics.markers((), 7).after_image == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "prompt.json does not say how prompts are written"),
        ('{"end_of_chnk": "<EOC>"}', "prompt.json.end_of_chnk.*end_of_chunk"),
        ('{"image": ["<picture>"]}', "expected pieces, '<image>' among them"),
        ('{"vocab_size": -1}', "vocab_size is -1"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    (tmp_path / "prompt.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        markers.read(Path(tmp_path))
