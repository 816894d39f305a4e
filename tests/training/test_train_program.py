"""python -m flamingo_jax.train: an error of its user is one message without a traceback."""

import pytest

CONFIG = "--config=tests/training/small.py:language_model"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimizer.learning_rte=1"], "did you mean 'learning_rate'?"),
        (["--config.data.datasets.txt.path=3"], "did you mean 'text', not 'txt'?"),
        (["--config.seed", "-1"], "ConfigError: config.seed is -1; expected a whole number from 0"),
        (
            ["--config.steps=0"],
            "ConfigError: config.steps is 0; expected a whole number from 1",
        ),
        (["--config.data.tokenizer=/nowhere"], "No tokenizer at /nowhere"),
        (
            [f"--config.data.tokenizer={__file__}"],  # any file that is none
            f"ConfigError: config.data.tokenizer: {__file__} cannot be used: ",
        ),
        (["--config=tiny:flamingoo"], "tiny.py has no stage 'flamingoo'"),
    ],
)
def test_a_mistake_is_one_message(run_program, tmp_path, flags, message):
    done = run_program(
        "-m", "flamingo_jax.train", CONFIG, f"--workdir={tmp_path / 'run'}", *flags, status=1
    )
    assert message in done.stderr
    assert "Traceback" not in done.stderr
