"""The registry of tasks, and what an episode checks."""

import pytest

from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.evaluation.task import Task, UnknownTaskError


def test_the_tasks_of_the_project_are_registered():
    created = registry.create("bind2_hidden", {"world": "somewhere"})
    assert isinstance(created, Task)
    assert created.name == "bind2_hidden"
    assert isinstance(registry.create("lm_lookup", {}), Task)


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(UnknownTaskError, match=r"^unknown task 'formt': did you mean 'format'"):
        registry.create("formt", {})


def test_a_missing_directory_says_which_field():
    with pytest.raises(
        ValueError,
        match="the task 'format' needs the directory of 'world', got none: "
        "pass --config.data.world",
    ):
        registry.create("format", {})


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        registry.merged(registry.TASKS, {"format": lambda data, settings: None})


def test_the_answer_is_among_the_candidates():
    with pytest.raises(ValueError, match="episode 'q': the answer 'dax' is not among"):
        Episode(("this is a",), ("wug",), "dax", "q")
