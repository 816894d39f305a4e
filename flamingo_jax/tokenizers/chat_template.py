"""How a dialogue is written, in training and in `Flamingo.chat`.

    paper   This is a conversation between a human, User, ... User: <image>
            Flamingo: That is a cat. ...   example turns of its dialogue (paper, B.1.6)
            User: <image> What breed is it?
            Flamingo: A poodle.
    turns   User:<image> What breed is it?
            Flamingo: A poodle.<EOC>User: Is it old?
            Flamingo: No.<EOC>

    llama   <|start_header_id|>user<|end_header_id|>
            (an empty line)
            <image>What breed is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>
            (an empty line)
            A poodle.<|eot_id|>

A model that was fine-tuned on conversations has "turns", which is ours: the paper fine-tunes on no
dialogues of this kind. Each answer ends in `<EOC>`, which ends decoding. "llama" is that of Llama
3.2's instruct models. The export stores the template as `preprocessing.chat` of model.json.
"""

from __future__ import annotations

import dataclasses

USER, MODEL = "User:", "Flamingo:"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The text around what is said in a dialogue.

    Attributes:
        user: before what the user says.
        model: between what the user says and the answer.
        end: after an answer.
        has_examples: True if the introduction and the example turns of the paper come first.
        space: before each text of the user, and before an answer. Without it, texts are not
            stripped.
        system: before the text of the system, and what comes after that text.
    """

    user: str = USER
    model: str = f"\n{MODEL}"
    end: str = "\n"
    has_examples: bool = True
    space: str = " "
    system: tuple[str, str] = ("", "\n")


PAPER = ChatTemplate()
TURNS = ChatTemplate(end="<EOC>", has_examples=False)


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


LLAMA = ChatTemplate(
    user=_header("user"),
    model=f"<|eot_id|>{_header('assistant')}",
    end="<|eot_id|>",
    has_examples=False,
    space="",
    system=(_header("system"), "<|eot_id|>"),
)
