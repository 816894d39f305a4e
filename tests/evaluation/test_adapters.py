"""The model classes for lmms-eval and VLMEvalKit answer what these harnesses ask.

lmms-eval is not installed here as a rule: its base class and table of models then have stand-ins of
the documented signatures, and the test on the real package is skipped. VLMEvalKit is not on PyPI:
its messages have the form of its guide.
"""

import abc
import dataclasses
import functools
import importlib
import importlib.metadata
import sys
import types

import PIL.Image
import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.adapters import lmms_eval, questions, vlmevalkit
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.prompt import Image, PromptError, Video
from flamingo_jax.tokenizers.chat_template import PAPER, TURNS
from tests.inference import tiny

PICTURE = PIL.Image.fromarray(tiny.image(1))
DOCUMENTS = [
    {"image": PICTURE, "question": "a red circle?", "choices": ["dax", "wug"]},
    {"image": None, "question": "is this a square", "choices": ["red", "blue"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = dataclasses.replace(tiny.CONFIG, max_new_tokens=5)
    return tiny.load(tmp_path_factory.getbasetemp(), config=config)


@dataclasses.dataclass
class Instance:
    """A request with the field of lmms-eval's class that models read."""

    args: tuple


def visuals(document):
    return [document["image"]] if document["image"] else []


def asked(doc_id, second):
    return Instance((DOCUMENTS[doc_id]["question"], second, visuals, doc_id, "own", "test"))


@pytest.fixture
def requests(model):
    made = lmms_eval.Requests(model=model, batch_size=2, form="text")
    made.task_dict = {"own": {"test": DOCUMENTS}}
    return made


def test_answers_are_those_of_the_model(model, requests):
    settings = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "num_beams": 1}
    answers = requests.generate_until(
        [asked(0, settings), asked(1, {**settings, "until": [" "]}), asked(1, settings)]
    )
    prompts = [[PICTURE, "a red circle?"], ["is this a square"]]
    expected = [text.strip() for text in model.generate(prompts, method=Greedy(4))]
    assert answers == [expected[0], expected[1].split(" ")[0], expected[1]]


def test_log_likelihoods_are_those_of_the_model(model, requests):
    scores = model.score([PICTURE, "a red circle?"], [" dax", " wug"])
    greedy = model.generate([[PICTURE, "a red circle?"]], method=Greedy(1))[0].strip()
    found = requests.loglikelihood(
        [asked(0, "dax"), asked(1, "red"), asked(0, lambda document: " wug")]
    )
    # A function of the document is asked by itself; texts of one context are scored together.
    assert found[0] == (pytest.approx(scores[0], abs=1e-4), greedy == "dax")
    assert found[2] == (pytest.approx(scores[1], abs=1e-4), greedy == "wug")
    (without_image,) = model.score("is this a square", [" red"])
    assert found[1][0] == pytest.approx(without_image, abs=1e-4)


def test_what_the_class_refuses(model, requests):
    with pytest.raises(NotImplementedError, match="one round"):
        requests.generate_until_multi_round([])
    with pytest.raises(ConfigError, match="got --model_args colour; expected pretrained"):
        lmms_eval.Requests(model=model, colour="red")
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        lmms_eval.Requests()
    with pytest.raises(ConfigError, match="form is 'poem'; expected one of text, question, chat"):
        lmms_eval.Requests(model=model, form="poem")


@pytest.fixture
def stand_in(monkeypatch):
    """Modules with the names and signatures that lmms-eval 0.7.3 has."""

    class lmms(abc.ABC):
        is_simple = True

        def __init__(self):
            self._rank, self._world_size, self.task_dict = 0, 1, {}

        @abc.abstractmethod
        def loglikelihood(self, requests): ...

        @abc.abstractmethod
        def generate_until(self, requests): ...

        @abc.abstractmethod
        def generate_until_multi_round(self, requests): ...

        @classmethod
        def create_from_arg_string(cls, arguments, additional_config=None):
            named = dict(pair.split("=") for pair in arguments.split(",") if pair)
            return cls(**named, **(additional_config or {}))

    @dataclasses.dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None
        aliases: tuple = ()

    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, content in contents.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    lmms_eval.model_class.cache_clear()
    yield lmms
    lmms_eval.model_class.cache_clear()


def test_the_manifest_names_a_class_that_can_be_made(model, stand_in):
    found = lmms_eval.manifest()
    assert found.model_id == "flamingo_jax"
    module, _, name = found.simple_class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    assert issubclass(cls, stand_in) and cls.is_simple
    made = cls.create_from_arg_string("form=chat", {"batch_size": 4, "model": model})
    assert (made.form, made.batch, made._world_size) == ("chat", 4, 1)


def test_without_lmms_eval_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    lmms_eval.model_class.cache_clear()
    with pytest.raises(ConfigError, match="pip install lmms-eval"):
        _ = lmms_eval.FlamingoJax


def test_lmms_eval_itself_loads_the_class(model):
    """With the real package: its table of models, its base class, its requests."""
    api = pytest.importorskip("lmms_eval.api.instance")
    registry = importlib.import_module("lmms_eval.models.registry_v2").ModelRegistryV2()
    lmms_eval.model_class.cache_clear()
    registry.register_manifest(lmms_eval.manifest())
    cls = registry.get_model_class("flamingo_jax")
    made = cls.create_from_arg_string("form=text", {"batch_size": 2, "model": model})
    made.task_dict = {"own": {"test": DOCUMENTS}}

    def instance(kind, doc_id, second):
        return api.Instance(
            request_type=kind,
            arguments=asked(doc_id, second).args,
            idx=0,
            metadata={"task": "own", "doc_id": doc_id, "repeats": 1},
        )

    answers = made.generate_until(
        [instance("generate_until", number, {"max_new_tokens": 4}) for number in (0, 1)]
    )
    prompts = [[PICTURE, "a red circle?"], ["is this a square"]]
    assert answers == [text.strip() for text in model.generate(prompts, method=Greedy(4))]
    ((score, is_greedy),) = made.loglikelihood([instance("loglikelihood", 0, " dax")])
    assert isinstance(is_greedy, bool)
    assert score == pytest.approx(model.score([PICTURE, "a red circle?"], [" dax"])[0], abs=1e-4)
    made.clean()
    lmms_eval.model_class.cache_clear()


def test_messages_of_vlmevalkit(model, tmp_path):
    path = str(tmp_path / "a.png")
    PICTURE.save(path)
    kit = vlmevalkit.FlamingoJax(model=model, form="text", max_new_tokens=4)
    expected = model.generate([[Image(path), "a red circle?"]], method=Greedy(4))[0].strip()
    message = [{"type": "image", "value": path}, {"type": "text", "value": "a red circle?"}]
    assert kit.generate(message, dataset="MMBench_DEV_EN") == expected
    assert kit.generate(message=[path, "a red circle?"]) == expected
    assert not kit.use_custom_prompt("MMBench_DEV_EN") and kit.INTERLEAVE
    kit.set_dump_image(lambda line: [f"{line}.jpg"])
    assert kit.dump_image("7", "MMBench_DEV_EN") == ["7.jpg"]


def test_forms_of_vlmevalkits_messages():
    parts = vlmevalkit.parts_of(
        [{"type": "text", "value": "a"}, {"type": "video", "value": "b.mp4"}, "c.JPG", "d"]
    )
    assert parts == ["a", Video("b.mp4"), Image("c.JPG"), "d"]
    assert vlmevalkit.parts_of("a") == ["a"]
    for bad in ([{"type": "sound", "value": "a"}], [{"type": "text"}], [7]):
        with pytest.raises(PromptError, match="a part of the message is"):
            vlmevalkit.parts_of(bad)
    with pytest.raises(ConfigError, match="give the checkpoint"):
        vlmevalkit.FlamingoJax()


def test_forms_of_a_question():
    made = functools.partial(questions.prompt_of, template=TURNS)
    a, b = Image("a"), Image("b")
    assert made("What?", [a], "text") == [a, "What?"]
    assert made("What?", [a], "question") == [a, " Question: ", "What?", " Answer:"]
    assert made("What?", [], "question") == ["Question: ", "What?", " Answer:"]
    assert made("What?\n", [a], "chat") == ["User:", a, " What?", "\nFlamingo:"]
    assert made("Is <image> or <image> red?", [a, b], "text") == ["Is ", a, " or ", b, " red?"]
    with pytest.raises(PromptError, match="1 <image> and 2 images"):
        made("Is <image> red?", [a, b], "text")
    in_paper = questions.prompt_of("What?", [a], "chat", PAPER)
    assert in_paper[-4:] == ["User:", a, " What?", "\nFlamingo:"] and len(in_paper) > 10
    assert questions.form_of(None, TURNS) == "chat"
    assert questions.form_of("", PAPER) == "question"


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({}, Greedy(64)),
        ({"max_new_tokens": 8, "temperature": 0, "top_p": None, "num_beams": 1}, Greedy(8)),
        ({"num_beams": 3}, BeamSearch(3, max_new_tokens=64)),
        ({"temperature": 0.5, "top_p": 0.9}, Sample(0.5, 0.9, max_new_tokens=64)),
        ({"temperature": 0.5, "do_sample": False}, Greedy(64)),
        ({"do_sample": True, "temperature": 0}, Greedy(64)),
    ],
)
def test_settings_of_decoding(settings, method):
    assert questions.method_of(settings) == method


def test_the_entry_point_is_in_the_package():
    setup = (importlib.import_module("tests.conftest").ROOT / "setup.py").read_text()
    assert "flamingo_jax = flamingo_jax.evaluation.adapters.lmms_eval:manifest" in setup
