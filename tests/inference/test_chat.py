"""The dialogue of B.1.6: its prompt word by word, what ends an answer, what is forgotten.

Also the program that reads a dialogue from a pipe.
"""

import subprocess
import sys

import PIL.Image
import pytest

from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.padding import PromptTooLong
from flamingo_jax.inference.prompt import Image, PromptError
from tests.conftest import ROOT
from tests.evaluation.test_programs import write_export
from tests.inference import tiny

# From the paper, Appendix B.1.6, with <n> for image n.
PROMPT = """\
This is a conversation between a human, User, and an intelligent visual AI, Flamingo. \
User sends images, and Flamingo describes them.
User:<0>
Flamingo: That is a cat. It's a tiny kitten with really cute big ears.
User:<1>
Flamingo: This is a picture of a group of people having dinner. They are having a great time!
User: Can you guess what are they celebrating?
Flamingo: They might be celebrating the end of a successful project or maybe a birthday?
User:<2>
Flamingo: This is a graph, it looks like a cumulative density function graph.
"""
IMAGES = [Image(str(number)) for number in range(4)]


class Parrot:
    """Answers from a list and records the prompts; longer ones than `longest` are too long."""

    def __init__(self, *answers, longest=10_000):
        self.answers, self.longest, self.prompts = list(answers), longest, []

    def __call__(self, parts):
        text = "".join(part if isinstance(part, str) else f"<{part.path}>" for part in parts)
        if len(text) > self.longest:
            raise PromptTooLong("too long")
        self.prompts.append(text)
        return self.answers.pop(0)


def test_the_prompt_is_the_papers():
    parrot = Parrot(" A dog.", " A poodle.\nUser: And this?\nFlamingo: A", " Yes.")
    chat = Chat(parrot, IMAGES[:3])
    assert chat.say([IMAGES[3]]) == "A dog."
    assert parrot.prompts[-1] == f"{PROMPT}User:<3>\nFlamingo:"
    # it began to speak as the user
    assert chat.say([IMAGES[0], " What breed is it? "]) == "A poodle."
    assert chat.say("Sure?") == "Yes."
    said = (
        "User:<3>\nFlamingo: A dog.\n"
        "User:<0> What breed is it?\nFlamingo: A poodle.\n"
        "User: Sure?\nFlamingo:"
    )
    assert parrot.prompts[-1] == PROMPT + said


def test_without_images_the_example_turns_are_text_alone():
    parrot = Parrot("")
    assert Chat(parrot).say("Hello") == ""
    assert parrot.prompts == [
        PROMPT.replace("<0>", "").replace("<1>", "").replace("<2>", "") + "User: Hello\nFlamingo:"
    ]


def test_the_oldest_exchange_is_forgotten_first():
    parrot = Parrot("one", "two", "three", longest=len(PROMPT) + 60)
    chat = Chat(parrot, IMAGES[:3])
    for words in ("first thing", "second thing", "third thing"):
        chat.say(words)
    assert (
        parrot.prompts[-1]
        == f"{PROMPT}User: second thing\nFlamingo: two\nUser: third thing\nFlamingo:"
    )
    with pytest.raises(PromptTooLong):
        chat.say("x" * 100)
    parrot.answers.append("four")
    assert chat.say("b") == "four"
    assert "third thing" in parrot.prompts[-1]  # what failed has changed nothing


def test_a_tag_that_the_model_says_is_no_image(tmp_path):
    """Or the next turn, and all after it, would lack an image."""
    parrot = Parrot("<image>red <image>", "blue")
    chat = Chat(parrot)
    assert chat.say("one") == "<image>red <image>"
    chat.say("two")
    assert "<image>" not in parrot.prompts[1]
    assert parrot.prompts[1].endswith("User: one\nFlamingo: red \nUser: two\nFlamingo:")


def test_what_cannot_be_said():
    with pytest.raises(PromptError, match=r"got 2 image\(s\) for the example turns; expected 3"):
        Chat(Parrot(), IMAGES[:2])
    with pytest.raises(PromptError, match="nothing was said"):
        Chat(Parrot()).say([" "])


def test_chat_on_a_pipe(tmp_path_factory, tmp_path):
    """Images in braces; a line that cannot be read; the end of the input ends the dialogue."""
    directory = tmp_path_factory.getbasetemp()
    export = write_export(tmp_path / "export", "flamingo", directory)
    PIL.Image.fromarray(tiny.image(2)).save(tmp_path / "cat.png")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flamingo_jax.generate",
            f"--checkpoint={export}",
            "--chat",
            "--max_new_tokens=4",
        ],
        input=f"{{{tmp_path}/cat.png}}\n\n{{cow.png}} and this\nthis is a big circle\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["Flamingo:", "Flamingo:"]
    assert done.stderr.startswith("PromptError: prompt: there is no image file 'cow.png'")
    assert "Traceback" not in done.stderr


def test_a_prompt_or_a_dialogue(run_program):
    for arguments in ([], ["--chat", "output :"]):
        done = run_program(
            "-m", "flamingo_jax.generate", "--checkpoint=nowhere", *arguments, status=1
        )
        assert "Give prompts, such as" in done.stdout + done.stderr
