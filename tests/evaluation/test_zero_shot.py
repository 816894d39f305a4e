"""Zero-shot classification: classes from templates; ImageNet, Kinetics and the world."""

import numpy as np
import pytest
from etils import epath

pytest.importorskip("scipy")

from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.benchmarks import class_templates
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.zero_shot import class_embeddings
from tests.evaluation.fixtures import imagenet, kinetics700
from tests.evaluation.meaning import Meaning, compare, direction
from tests.training import small


def test_a_class_is_the_mean_of_its_sentences():
    """The class is the formula written out: the mean of sentences of length 1, with length 1."""
    templates = ("A photo of a {}.", "A toy {}.")
    model = Meaning(list)
    found = class_embeddings(model, ["cat", "red dog"], templates)
    assert model.read == [
        "A photo of a cat.",
        "A toy cat.",
        "A photo of a red dog.",
        "A toy red dog.",
    ]
    for row, name in zip(found, ("cat", "red dog"), strict=True):
        mean = (direction(f"A photo of a {name}.") + direction(f"A toy {name}.")) / 2
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)


@pytest.mark.parametrize("templates", [class_templates.IMAGES, class_templates.VIDEOS])
def test_templates_include_the_papers_and_have_one_place_each(templates):
    assert len(set(templates)) == len(templates) >= 8
    assert all(template.count("{}") == 1 for template in templates)
    assert any(template.startswith("A photo of ") for template in templates)


def test_templates_of_a_file(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("A photo of a {class_name}\n\n  {}, drawn.\n")
    assert class_templates.read(file) == ("A photo of a {}", "{}, drawn.")
    assert class_templates.fill(class_templates.read(file), "cat") == [
        "A photo of a cat",
        "cat, drawn.",
    ]
    made = registry.create("imagenet_zero_shot", {"imagenet": "x"}, Protocol(templates=str(file)))
    assert made.templates == ("A photo of a {}", "{}, drawn.")
    file.write_text("{}\nA photo.\n")
    with pytest.raises(task.TaskError, match=r"template 2, 'A photo\.', has 0 places"):
        class_templates.read(file)
    file.write_text("\n")
    with pytest.raises(task.TaskError, match="holds no template"):
        class_templates.read(file)
    with pytest.raises(task.TaskError, match=r"config.templates=.*nothing.txt cannot be read"):
        class_templates.read(tmp_path / "nothing.txt")


def shows(names, of):
    """A model with images that show every sentence about the classes `of(visual)`."""
    return Meaning(
        lambda visual: [
            sentence for name in of(visual) for sentence in class_templates.fill(names, name)
        ]
    )


def test_imagenet(tmp_path):
    """Two classes have the name crane and are one answer.

    An image that shows another class is wrong, and right among five.
    """
    imagenet.make_imagenet(epath.Path(tmp_path))
    made = registry.create("imagenet_zero_shot", {"imagenet": str(tmp_path)})
    truth = {
        imagenet.val_name(1): "crane",
        imagenet.val_name(2): "tench",
        imagenet.val_name(3): "maillot, tank suit",
    }
    model = shows(made.templates, lambda visual: [truth[visual.path.rpartition("/")[2]]])
    found = compare(made, model, n=0, seed=1)
    assert found.values == {"top1": 1.0, "top5": 1.0}
    assert (found.n, found.templates) == (3, len(class_templates.IMAGES))
    assert all(each["candidates"][0] == each["answer"] for each in found.predictions)
    assert all(each["scores"] == sorted(each["scores"], reverse=True) for each in found.predictions)
    found = compare(made, shows(made.templates, lambda visual: ["tench"]), n=0, seed=1)
    assert found.values == {"top1": pytest.approx(1 / 3), "top5": 1.0}  # there are four classes


def test_kinetics(tmp_path):
    kinetics700.make_kinetics700(epath.Path(tmp_path))
    made = registry.create("kinetics700_zero_shot", {"kinetics700": str(tmp_path)})
    model = shows(made.templates, lambda video: ["abseiling"])
    found = compare(made, model, n=0, seed=1)
    assert list(found.values) == ["top1_top5", "top1", "top5"]
    assert found.values["top1"] == pytest.approx(1 / 3)
    assert found.values["top1_top5"] == pytest.approx((1 / 3 + 1) / 2)
    assert sorted(str(video.path).rpartition("/")[2] for video in model.seen)[0].endswith(".mp4")


def test_the_world(tmp_path):
    """Classes are the training's pairs of colour and shape, each with sentences of both sizes."""
    world = str(small.make_world(tmp_path))
    made = registry.create("world_zero_shot", {"world": world})
    assert made.templates == ("a small {}", "a big {}")
    model = shows(made.templates, lambda image: ["red circle"])
    found = compare(made, model, n=0, seed=1)
    assert found.n == 64 and len(set(model.read)) == 2 * 56
    share = sum(each["answer"] == "red circle" for each in found.predictions) / 64
    assert found.values["top1"] == share > 0
    with pytest.raises(task.TaskError, match="task 'world_zero_shot': got n=65"):
        compare(made, model, n=65, seed=1)


def test_the_queries_are_those_of_the_few_shot_task(tmp_path):
    imagenet.make_imagenet(epath.Path(tmp_path))
    data = {"imagenet": str(tmp_path)}
    protocol = Protocol(n=2, seed=5)
    episodes = registry.create("imagenet", data, protocol).episodes(0)
    made = registry.create("imagenet_zero_shot", data, protocol)
    found = made.compare(shows(made.templates, lambda visual: ["tench"]))
    assert [each["query_id"] for each in found.predictions] == [
        episode.query_id for episode in episodes
    ]
