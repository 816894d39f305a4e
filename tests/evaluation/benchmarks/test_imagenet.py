"""ImageNet: the layouts of its files, and the names of its classes."""

import shutil

import pytest
from etils import epath

pytest.importorskip("scipy")

from flamingo_jax.evaluation.benchmarks import imagenet_classes
from flamingo_jax.evaluation.benchmarks.annotations import AnnotationError, Files
from flamingo_jax.evaluation.benchmarks.imagenet import IMAGENET
from flamingo_jax.inference.visuals import Image, load_frames
from tests.evaluation.fixtures import imagenet, pictures

NAMES = ("tench", "crane", "maillot", "maillot, tank suit")  # the two cranes are one answer


def facts(item):
    return (item.id, item.prefix, item.answer, item.references, item.candidates, item.label)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("imagenet"))
    imagenet.make_imagenet(directory)
    return directory


def test_items_of_folders(directory):
    train, test = IMAGENET.at(directory).train(), IMAGENET.at(directory).test()
    assert len(train) == 5 * imagenet.NUM_TRAIN
    assert [item.label for item in train] == [
        id for id in imagenet.WORDS for _ in range(imagenet.NUM_TRAIN)
    ]
    assert facts(train[-1]) == (
        "n03710721_20",
        "Output:",
        "maillot, tank suit",
        ("maillot, tank suit",),
        NAMES,
        "n03710721",
    )
    # in the order of the folders
    assert [item.answer for item in test] == ["tench", "crane", "maillot, tank suit"]
    assert [item.id for item in test] == [
        imagenet.val_name(n).removesuffix(".JPEG") for n in (2, 1, 3)
    ]
    assert train[4].visual == Image(f"{directory}/train/n02012849/n02012849_10.JPEG")
    assert IMAGENET.chance == 0.001


@pytest.mark.parametrize("layout", ["kaggle", "official"])
def test_other_layouts_have_the_same_items(directory, tmp_path, layout):
    """The validation images are in one folder, and a list has their classes."""
    getattr(imagenet, f"make_imagenet_{layout}")(epath.Path(tmp_path))
    other = IMAGENET.at(tmp_path)
    assert [facts(item) for item in other.train()] == [
        facts(item) for item in IMAGENET.at(directory).train()
    ]
    by_id = {item.id: facts(item) for item in IMAGENET.at(directory).test()}
    assert [facts(item) for item in other.test()] == [by_id[id] for id in sorted(by_id)]


def test_tfds_gives_the_same_items(directory, tmp_path):
    place = epath.Path(imagenet.make_imagenet_prepared(tmp_path))
    with pytest.raises(AnnotationError, match=r"needs .*LOC_synset_mapping.txt .*classes.txt"):
        IMAGENET.at(place).train()
    (directory / "LOC_synset_mapping.txt").copy(place / "LOC_synset_mapping.txt")
    for split in ("train", "test"):
        files = getattr(IMAGENET.at(directory), split)()
        builder = getattr(IMAGENET.at(place), split)()
        by_id = {item.id: item for item in builder}
        assert len(by_id) == len(files)
        for item in files:
            assert facts(by_id[item.id]) == facts(item)
            assert (load_frames(by_id[item.id].visual, 16) == load_frames(item.visual, 16)).all()


def test_names_of_the_user_are_used_first(tmp_path):
    path = epath.Path(tmp_path)
    imagenet.make_imagenet(path)
    (path / "classes.txt").write_text(
        "tench\ncrane bird\nconstruction crane\nmaillot tights\ntank suit\n"
    )
    assert IMAGENET.at(path).test()[0].candidates == (
        "tench",
        "crane bird",
        "construction crane",
        "maillot tights",
        "tank suit",
    )
    (path / "classes.txt").write_text("tench\ncrane\n")
    with pytest.raises(
        AnnotationError,
        match="classes.txt holds 2 names, expected 5, one per class in the order of their ids",
    ):
        IMAGENET.at(path).test()


def test_classes_with_equal_names_get_more_synonyms(tmp_path):
    (tmp_path / "LOC_synset_mapping.txt").write_text("n1 a, b\nn2 a, b, c\nn3 a, d\nn4 e, f\n")
    files = Files(tmp_path, "imagenet", "", "")
    assert list(imagenet_classes.names(files, ["n1", "n2", "n3", "n4"]).values()) == [
        "a, b",
        "a, b, c",
        "a, d",
        "e",
    ]
    with pytest.raises(AnnotationError, match="holds no name of 1 classes .n5."):
        imagenet_classes.names(files, ["n1", "n5"])


def without_list(path):
    (path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").unlink()


def with_other_numbers(path):
    (path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text(
        "1\n2\n1001\n"
    )


def with_other_meta(path):
    (path / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))


def with_more_images(path):
    pictures.write(path / "val" / imagenet.val_name(4), 4)


def with_training_images(path):
    (path / "val").rmtree()
    shutil.copytree(path / "train", path / "val")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without_list,
            r"needs .*ILSVRC2012_validation_ground_truth.txt \(or LOC_val_solution.csv, "
            r"or val/ with a folder per class\)",
        ),
        (
            with_other_numbers,
            "ground_truth.txt holds '1001' in line 3, expected a number from 1 to 5",
        ),
        (with_other_meta, "meta.mat holds what cannot be read as MATLAB's synsets"),
        (
            with_more_images,
            "val holds ILSVRC2012_val_00000004.JPEG, of which no list says the class",
        ),
        (
            with_training_images,
            r"val holds images of the training split \(n01440764_0\), expected ILSVRC2012_val_",
        ),
    ],
)
def test_files_that_do_not_match_are_an_error(tmp_path, spoil, message):
    path = epath.Path(tmp_path)
    imagenet.make_imagenet_official(path)
    spoil(path)
    with pytest.raises(AnnotationError, match=message):
        IMAGENET.at(path).test()


def test_folders_are_needed(tmp_path):
    path = epath.Path(tmp_path)
    with pytest.raises(AnnotationError, match="needs .*/train, and it is not there"):
        IMAGENET.at(path).train()
    (path / "train").mkdir()
    with pytest.raises(
        AnnotationError, match="train holds no folders, expected a folder of images per class"
    ):
        IMAGENET.at(path).train()
    for id in imagenet.WORDS:
        (path / "train" / id).mkdir()
    (path / "LOC_synset_mapping.txt").write_text(
        "".join(f"{id} {words}\n" for id, words in imagenet.WORDS.items())
    )
    with pytest.raises(AnnotationError, match="train holds folders without images"):
        IMAGENET.at(path).train()


def test_what_other_programs_leave_in_the_folders_is_no_class_and_no_image(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    for folder in ("train", "train/n01440764", "val", "val/n01440764"):
        (tmp_path / "copy" / folder / ".ipynb_checkpoints").mkdir()
        (tmp_path / "copy" / folder / "__MACOSX").mkdir()
        (tmp_path / "copy" / folder / "._n01440764_10.JPEG").write_bytes(b"\0\5\x16\7")
        (tmp_path / "copy" / folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    copy, original = IMAGENET.at(tmp_path / "copy"), IMAGENET.at(directory)
    for items, expected in ((copy.train(), original.train()), (copy.test(), original.test())):
        assert [facts(item) for item in items] == [facts(item) for item in expected]
