"""How a dialogue is written, in training and in `Flamingo.chat`.

    paper   This is a conversation between a human, User, ... User: <image>
            Flamingo: That is a cat. ...   example turns of its dialogue (paper, B.1.6)
            User: <image> What breed is it?
            Flamingo: A poodle.
    turns   User:<image> What breed is it?
            Flamingo: A poodle.<EOC>User: Is it old?
            Flamingo: No.<EOC>

A model that was fine-tuned on conversations has "turns", which is ours: the paper fine-tunes on no
dialogues of this kind. Each answer ends in `<EOC>`, which ends decoding. The export stores it as
`preprocessing.chat` of model.json.
"""

from __future__ import annotations

import dataclasses

USER, MODEL = "User:", "Flamingo:"


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The text around what is said in a dialogue.

    Attributes:
        user: before what the user says.
        model: between what the user says and the answer; a space follows.
        end: after an answer.
        has_examples: True if the introduction and the example turns of the paper come first.
    """

    user: str = USER
    model: str = f"\n{MODEL}"
    end: str = "\n"
    has_examples: bool = True


PAPER = ChatTemplate()
TURNS = ChatTemplate(end="<EOC>", has_examples=False)
