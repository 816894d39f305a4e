"""The few-shot protocol on a benchmark in memory.

Which items are drawn, and how the prompt is written (paper, B.1.5 and Figure 8).
"""

import dataclasses
import functools

import numpy as np
import pytest
from etils import epath

from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.seeds import generator
from flamingo_jax.evaluation import draws, few_shot, registry, task
from flamingo_jax.evaluation.benchmarks.benchmark import Item
from flamingo_jax.evaluation.config import EvaluateConfig
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.task import TaskError
from flamingo_jax.inference.visuals import Deferred, Image, Video
from tests.evaluation.in_memory import WORDS, Colours
from tests.inference import tiny

CLOSED = Colours(metrics=(RANKING,))
LABELLED = Colours(metrics=(RANKING,), labelled=True, num_train=90)


def drawn(benchmark, shots, n=0, seed=3, **choices):
    """The episodes of a benchmark."""
    return FewShotTask(benchmark, Protocol(n=n, seed=seed, **choices)).episodes(shots)


def ids(episodes):
    return [episode.query_id for episode in episodes]


def text(episode):
    return "".join(part if isinstance(part, str) else "<image>" for part in episode.parts)


def test_the_prompt_is_that_of_the_paper():
    """The prompt has the form of B.1.5 and Figure 8.

    <image>Output: A cat.<EOC><image>Output: A dog.<EOC><image>Output: (<BOS> is one of the tokens.)
    """
    (episode,) = drawn(CLOSED, 2, n=1)
    numbers = [int(name.split("/")[1]) for name in episode.support_ids]
    first, second = (WORDS[number % 3] for number in numbers)
    assert (
        text(episode)
        == f"<image>this is a {first}<EOC><image>this is a {second}<EOC><image>this is a"
    )
    images = [part for part in episode.parts if not isinstance(part, str)]
    train, test = CLOSED.train(), {item.id: item for item in CLOSED.test()}
    for image, item in zip(
        images, [*(train[n] for n in numbers), test[episode.query_id]], strict=True
    ):
        np.testing.assert_array_equal(image, item.visual)
    assert (episode.candidates, episode.separator) == (WORDS, " ")
    assert episode.answer == test[episode.query_id].answer and episode.references == (
        episode.answer,
    )
    assert episode.extra == {"question_id": int(episode.query_id.split("/")[1])}


def test_at_0_shots_open_ended_prompts_have_two_examples_without_images():
    open_ended, more = (drawn(Colours(), shots, n=5) for shots in (0, 2))
    for episode, with_images in zip(open_ended, more, strict=True):
        one, two = (WORDS[int(name.split("/")[1]) % 3] for name in episode.support_ids)
        assert text(episode) == f"this is a {one}<EOC>this is a {two}<EOC><image>this is a"
        assert episode.support_ids == with_images.support_ids
    for episode in drawn(CLOSED, 0, n=5):
        assert text(episode) == "<image>this is a" and episode.support_ids == ()


def test_the_number_of_examples_without_images_is_a_choice():
    """None for fine-tuned models, which then need no training split; the first ones stay."""
    two = drawn(Colours(), 0, n=5)
    for number in (0, 1, 3):
        for episode, usual in zip(drawn(Colours(), 0, n=5, text_examples=number), two, strict=True):
            assert text(episode).count("<EOC>") == number == len(episode.support_ids)
            shared = min(number, 2)
            assert episode.support_ids[:shared] == usual.support_ids[:shared]
            assert text(episode).endswith("<image>this is a")
        setting = FewShotTask(Colours(), Protocol(text_examples=number)).setting(0)
        assert setting["num_text_examples"] == number
    assert drawn(Colours(num_train=0), 0, text_examples=0)
    assert not drawn(CLOSED, 0, n=1, text_examples=3)[0].support_ids
    with pytest.raises(ConfigError, match="text_examples is -1"):
        from_dict(EvaluateConfig, {"text_examples": -1})


def test_the_marker_after_an_image_is_written_before_the_text_that_follows_it():
    """The strings of A.2; a model of another publisher has no space there."""
    zero, one = (drawn(Colours(), shots, n=1)[0] for shots in (0, 1))
    words = [WORDS[int(name.split("/")[1]) % 3] for name in zero.support_ids]
    assert text(zero.after_images(" ")) == (
        f"this is a {words[0]}<EOC>this is a {words[1]}<EOC><image> this is a"
    )
    assert text(one.after_images(" ")) == f"<image> this is a {words[0]}<EOC><image> this is a"
    assert zero.after_images("") is zero
    assert text(one.after_images(" ").after_images(" ")) == text(one.after_images(" "))
    many = drawn(CLOSED, 3, n=1, ensemble=2)[0].after_images(" ")
    (order,) = many.orders
    assert text(dataclasses.replace(many, parts=order)).count("<image> this is a") == 4


def test_a_close_ended_benchmark_needs_no_training_split_at_0_shots():
    rareact = Colours(metrics=(RANKING,), num_train=0, max_shots=0)
    created = FewShotTask(rareact, Protocol(n=0))
    assert len(created.episodes(0)) == rareact.num_test
    assert created.accepts(0) and not created.accepts(1)
    assert isinstance(created, task.Task)


def test_queries_and_supports_do_not_depend_on_n_or_shots():
    some, all_of_them = (drawn(Colours(), 4, n=n, num_support=10) for n in (3, 0))
    assert ids(some) == ids(all_of_them)[:3] and len(set(ids(all_of_them))) == 9
    assert [e.support_ids for e in some] == [e.support_ids for e in all_of_them[:3]]
    for shots in (1, 2, 8):
        other = drawn(Colours(), shots, n=9, num_support=10)
        assert ids(other) == ids(all_of_them)
        shared = min(shots, 4)
        assert [e.support_ids[:shared] for e in other] == [
            e.support_ids[:shared] for e in all_of_them
        ]


def test_supports_are_drawn_per_query_and_by_the_seed():
    episodes, others = (drawn(Colours(), 4, seed=seed, num_support=10) for seed in (3, 4))
    assert len({episode.support_ids for episode in episodes}) > 5
    assert ids(episodes) != ids(others)
    by_query = {episode.query_id: episode.support_ids for episode in others}
    assert all(episode.support_ids != by_query[episode.query_id] for episode in episodes)


def test_supports_are_different_items_of_the_support_set():
    episodes = drawn(Colours(), 10, num_support=10)
    support_set = {name for episode in episodes for name in episode.support_ids}
    assert len(support_set) == 10 and all(
        len(set(episode.support_ids)) == 10 for episode in episodes
    )


@pytest.mark.parametrize(
    ("benchmark", "sizes"),
    [(Colours(num_train=40), (10, 10, 5)), (LABELLED, (6, 6, 12))],
    ids=["plain", "classes"],
)
def test_validation_shares_nothing_with_test(monkeypatch, benchmark, sizes):
    """The training split has three disjoint parts (Table 6).

    They are the validation queries, the validation supports and the test supports.
    """
    benchmark = dataclasses.replace(benchmark, validation_queries=5)
    monkeypatch.setattr(draws, "VALIDATION_QUERIES_PER_CLASS", 4)
    found = {}
    for split in ("test", "validation"):
        episodes = drawn(benchmark, sizes[0], split=split, num_support=10, num_support_per_class=2)
        found[split] = {name for episode in episodes for name in episode.support_ids}
        found[f"{split} queries"] = set(ids(episodes))
    parts = found["test"], found["validation"], found["validation queries"]
    assert tuple(map(len, parts)) == sizes and len(set.union(*parts)) == sum(sizes)
    assert all(name.startswith("train/") for name in set.union(*parts))
    assert found["test queries"] == {f"test/{number}" for number in range(9)}
    if benchmark.labelled:
        for part in parts:
            assert len({int(name.split("/")[1]) % 3 for name in part}) == 3


def test_of_classes_each_has_as_many_supports():
    """Each class has 5 supports (Table 7)."""
    episodes = drawn(LABELLED, 15, n=2, num_support_per_class=5)
    words = [WORDS[int(name.split("/")[1]) % 3] for name in episodes[0].support_ids]
    assert sorted(words) == sorted(WORDS * 5) and words != sorted(words)


@pytest.mark.parametrize(("name", "expected"), [("coco", 5000), ("okvqa", 1024), ("vatex", 1024)])
def test_validation_queries_are_as_many_as_the_paper_has(name, expected):
    number = registry.BENCHMARKS[name].validation_queries
    benchmark = Colours(name=name, num_train=5100, has_images=False, validation_queries=number)
    with pytest.raises(TaskError, match=f"its validation split has {expected} queries"):
        drawn(benchmark, 0, n=6000, seed=1, split="validation", num_support=20)


@dataclasses.dataclass(frozen=True)
class Leaky(Colours):
    """The queries are training items too."""

    def test(self):
        return self.train()[: self.num_test]


def test_a_query_is_never_its_own_support():
    protocol = Protocol(n=0, seed=3, num_support=9)
    for selection in ("random", "rices"):
        leaky = FewShotTask(
            Leaky(num_train=9),
            dataclasses.replace(protocol, selection=selection),
            lambda q, s, k: np.arange(k)[None].repeat(len(q), 0),
        )
        for episode in leaky.episodes(8):
            assert (
                episode.query_id not in episode.support_ids and len(set(episode.support_ids)) == 8
            )
    with pytest.raises(
        TaskError, match="'train/.' needs 9 support examples .* another picture .*; 8 of the 9 do"
    ):
        FewShotTask(Leaky(num_train=9), protocol).episodes(9)


@dataclasses.dataclass(frozen=True)
class Questions(Colours):
    """Ten questions about each of 500 pictures."""

    metrics: tuple = (RANKING,)
    validation_queries: int = 1024

    def train(self):
        return [self._about(number) for number in range(5000)]

    def _about(self, number):
        return Item(
            id=str(number),
            visual=Image(f"images/{number // 10}.jpg"),
            prefix=f"Question {number % 10}?",
            answer=WORDS[number % 3],
            candidates=WORDS,
        )


def picture(name):
    return int(name) // 10


def own_picture_first(queries, supports, k):
    """The k supports with the smallest distance of their pictures: the own picture's come first."""
    number = lambda visual: int(str(visual.path).split("/")[-1].removesuffix(".jpg"))
    found = np.array([number(each) for each in supports])
    return np.stack(
        [np.argsort(abs(found - number(query)), kind="stable")[:k] for query in queries]
    )


@pytest.mark.parametrize("selection", ["random", "rices"])
def test_no_support_shows_the_picture_of_a_validation_query(selection):
    """The three parts of the training split share no picture, however many questions it has."""
    common = {"n": 0, "seed": 0, "num_support": 1500, "selection": selection}
    validation, test = (
        FewShotTask(Questions(), Protocol(split=split, **common), own_picture_first)
        for split in ("validation", "test")
    )
    episodes = validation.episodes(4)
    queries = {picture(episode.query_id) for episode in episodes}
    drawn = [
        draws.draw_from_training(Questions(), each._train, (), each.protocol)
        for each in (validation, test)
    ]
    pools = [{picture(item.id) for item in each.supports} for each in drawn]
    assert len(episodes) == 1024 and [len(each.supports) for each in drawn] == [1500, 1500]
    assert not queries & pools[0] and not queries & pools[1] and not pools[0] & pools[1]
    assert min(map(len, pools)) > 150  # not a few pictures with all of their questions
    assert {picture(name) for each in episodes for name in each.support_ids} <= pools[0]


def test_where_each_picture_has_one_item_the_draws_are_those_of_0_4_0(monkeypatch):
    """Consecutive parts of the shuffled training split."""
    benchmark = dataclasses.replace(Colours(), validation_queries=5)
    order = generator(3, "colours/train", 0).permutation(40).tolist()
    protocol = Protocol(split="validation", seed=3, num_support=10)
    found = draws.draw_from_training(benchmark, benchmark.train(), (), protocol)
    numbers = lambda items: [int(item.id.split("/")[1]) for item in items]
    assert numbers(found.supports) == order[10:20] and numbers(found.queries) == order[20:25]


@dataclasses.dataclass(frozen=True)
class Leaking(Questions):
    """The test questions are about pictures of the training split, under other ids."""

    num_pictures: int = 3

    def train(self):
        return super().train()[: 10 * self.num_pictures]

    def test(self):
        named = {"id": "query", "visual": Image("images/../images/1.jpg")}
        return [dataclasses.replace(self._about(12), **named)]


@pytest.mark.parametrize("selection", ["random", "rices"])
def test_a_picture_of_both_splits_is_no_support_of_its_query(selection):
    """RICES would find it first."""
    task_of = lambda pictures: FewShotTask(
        Leaking(num_pictures=pictures),
        Protocol(n=0, seed=0, selection=selection),
        own_picture_first,
    )
    (episode,) = task_of(3).episodes(20)
    assert sorted(map(picture, episode.support_ids)) == [0] * 10 + [2] * 10
    with pytest.raises(TaskError, match="needs 21 support examples .*; 20 of the 30 do"):
        task_of(3).episodes(21)
    with pytest.raises(TaskError, match="needs 11 support examples .*; 10 of the 20 do"):
        task_of(2).episodes(11)


def test_what_items_show():
    """A picture is known by its name in the annotations, its file, or its content."""
    item = Item("q", None, "", "")
    shown = lambda visual, **fields: dataclasses.replace(item, visual=visual, **fields).shown
    assert shown(Image("a/./b.jpg")) == shown(Image("a//b.jpg")) == shown(epath.Path("a/b.jpg"))
    assert (
        shown(Video("v.mp4", 0.0, 5.0)) == shown(Video("v.mp4", 7.0, 9.0)) != shown(Video("w.mp4"))
    )
    assert shown(Image("x.jpg"), source="42") == shown(Image("y.jpg"), source="42") == "42"
    assert shown(tiny.image(1)) == shown(tiny.image(1).copy()) != shown(tiny.image(2))
    assert shown(None) == "q" and shown(Deferred("d", bytes)) == "d"


def test_examples_without_an_answer_are_no_supports():
    @dataclasses.dataclass(frozen=True)
    class Gaps(Colours):
        def train(self):
            return [
                dataclasses.replace(item, answer="") if i % 2 else item
                for i, item in enumerate(super().train())
            ]

    episodes = drawn(Gaps(num_train=20), 10)
    assert all(
        int(name.split("/")[1]) % 2 == 0 for episode in episodes for name in episode.support_ids
    )
    with pytest.raises(
        TaskError,
        match="11 shots need 11 support examples, the training split has 10 with an answer",
    ):
        drawn(Gaps(num_train=20), 11)
    with pytest.raises(TaskError, match="need 4 support examples, num_support=3 allows 3"):
        drawn(Colours(num_train=20), 4, num_support=3)


def test_rices_puts_the_most_similar_last():
    asked = []

    def nearest(queries, supports, k):
        asked.append((len(queries), len(supports), k))
        return np.array([[5, 2, 7, 1][:k]] * len(queries))

    protocol = Protocol(n=1, seed=3, selection="rices", num_support=8)
    rices = FewShotTask(Colours(), protocol, nearest)
    (whole_support_set,) = drawn(Colours(), 8, n=1, num_support=8)
    (episode,) = rices.episodes(3)
    assert asked == [(1, 8, 3)]
    assert set(episode.support_ids) < set(whole_support_set.support_ids)
    (fewer,) = rices.episodes(2)
    # At 2 shots the supports are the two nearest of those at 3 shots, in the same order.
    assert episode.support_ids[1:] == fewer.support_ids
    (random,) = drawn(Colours(), 0, n=1, num_support=8)
    assert text(rices.episodes(0)[0]) == text(random)
    with pytest.raises(TaskError, match="selection=rices needs the features of a vision encoder"):
        drawn(Colours(), 1, n=1, selection="rices")


@pytest.mark.parametrize(("shots", "orders"), [(0, 1), (1, 1), (2, 2), (3, 6), (8, 6)])
def test_an_ensemble_has_six_orders_of_the_same_supports(shots, orders):
    plain, ensemble = (drawn(CLOSED, shots, n=4, ensemble=size) for size in (1, 6))
    for one, six in zip(plain, ensemble, strict=True):
        assert one.orders == () and one.support_ids == six.support_ids and text(one) == text(six)
        prompts = [six.parts, *six.orders]
        assert len(prompts) == orders
        images = [
            tuple(id(part) for part in parts if not isinstance(part, str)) for parts in prompts
        ]
        assert len(set(images)) == orders
        assert (
            len({frozenset(each) for each in images}) == 1
            and len({each[-1] for each in images}) == 1
        )
        for parts in prompts:  # each image keeps its text
            assert sorted(
                (id(a), b) for a, b in zip(parts[:-2:2], parts[1:-2:2], strict=True)
            ) == sorted(
                (id(a), b) for a, b in zip(six.parts[:-2:2], six.parts[1:-2:2], strict=True)
            )


@pytest.mark.parametrize(
    ("benchmark", "choices", "shots", "n", "message"),
    [
        (
            Colours(),
            {},
            4,
            10,
            "task 'colours': got n=10; its test split has 9 queries. Take n from 1 to that",
        ),
        (
            Colours(),
            {"split": "validation"},
            4,
            1,
            "split=validation needs 2048 test supports, .*; got 40 items",
        ),
        (
            LABELLED,
            {"split": "validation"},
            4,
            1,
            "32 test supports.* each class of the training split.*; got 30 items of '",
        ),
        (
            Colours(num_train=1),
            {},
            0,
            1,
            "0 shots need 2 support examples, the training split has 1 ",
        ),
    ],
)
def test_too_few_items_are_an_error(benchmark, choices, shots, n, message):
    with pytest.raises(TaskError, match=message):
        drawn(benchmark, shots, n=n, seed=1, **choices)


def test_an_ensemble_of_decoded_answers_is_an_error():
    with pytest.raises(TaskError, match="'colours' is open-ended"):
        FewShotTask(Colours(), Protocol(ensemble=6))


def test_a_protocol_says_what_it_expects():
    with pytest.raises(ValueError, match="ensemble is 0; expected a whole number from 1"):
        Protocol(ensemble=0)
    with pytest.raises(ConfigError, match="num_support is -1; expected a whole number from 1"):
        EvaluateConfig(num_support=-1)
    for field, value in {"split": "train", "selection": "best"}.items():
        with pytest.raises(ConfigError, match=f"{field}.*{value}"):
            from_dict(EvaluateConfig, {field: value})


def test_a_task_that_draws_its_own_supports_refuses_other_choices():
    with pytest.raises(
        TaskError, match="the task 'format' draws its own support examples .* selection=rices"
    ):
        registry.create("format", {"world": "somewhere"}, Protocol(selection="rices"))
    with pytest.raises(TaskError, match="the task 'lm_lookup' draws its own"):
        registry.create("lm_lookup", {}, Protocol(ensemble=6))


def test_a_registered_benchmark_is_a_task(monkeypatch):
    registered = Colours(name="colours_of_tests", data="paint")
    monkeypatch.setitem(
        registry.TASKS, "colours_of_tests", functools.partial(few_shot.make, benchmark=registered)
    )
    protocol = Protocol(num_support=10)
    created = registry.create("colours_of_tests", {"paint": "there"}, protocol)
    assert (
        isinstance(created, FewShotTask)
        and created.benchmark.directory == "there"
        and created.protocol == protocol
    )
    with pytest.raises(
        TaskError, match=r"'colours_of_tests' needs the directory of 'paint', got none"
    ):
        registry.create("colours_of_tests", {})


def test_two_queries_of_one_id_are_refused():
    """The journal finds finished queries by id, so one of the two would be lost."""

    class Twice(Colours):
        def test(self):
            return [*super().test(), super().test()[4]]

    with pytest.raises(TaskError, match="1 queries have the id of another one, such as test/4"):
        drawn(Twice(), 0, seed=1)

    class TwiceInTraining(Colours):
        def train(self):
            return [*super().train(), super().train()[4]]

    with pytest.raises(TaskError, match="1 training items have the id of another .* train/4"):
        drawn(TwiceInTraining(), 2, seed=1)


@pytest.mark.parametrize(
    ("benchmark", "shots", "sizes"),
    [
        (Colours(), 0, (10, None, 2)),
        (Colours(), 2, (10, None, 0)),
        (CLOSED, 0, (None, None, 0)),
        (LABELLED, 2, (None, 4, 0)),
    ],
    ids=["text examples", "supports", "nothing", "classes"],
)
def test_a_row_has_the_split_and_the_sizes_of_what_was_drawn(benchmark, shots, sizes):
    names = ("num_support", "num_support_per_class", "num_text_examples")
    protocol = Protocol(num_support=10, num_support_per_class=4)
    on_val = dataclasses.replace(benchmark, own_queries="val")
    found = FewShotTask(on_val, protocol).setting(shots)
    assert found == {"split": "val", **dict(zip(names, sizes, strict=True))}
    assert isinstance(FewShotTask(benchmark), task.HasSetting)
    validation = FewShotTask(benchmark, dataclasses.replace(protocol, split="validation"))
    assert validation.setting(shots)["split"] == "validation, from train"


def test_a_directory_without_a_benchmark_is_refused():
    """It would have no effect."""
    with pytest.raises(ConfigError, match=r"config\.data\.coca is '/c', .*: did you mean 'coco'"):
        from_dict(EvaluateConfig, {"data": {"coca": "/c"}})
    with pytest.raises(ConfigError, match=r"config\.data\.tokenizer is '/t', and no benchmark"):
        from_dict(EvaluateConfig, {"data": {"tokenizer": "/t"}})
    assert from_dict(EvaluateConfig, {"data": {"coco": "/c", "mine": None}}).data["coco"] == "/c"
