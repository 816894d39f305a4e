"""The predictions of the golden files.

Ordinary ones, and those that official scripts treat oddly.
"""

import string

import numpy as np

YES = ["yes"] * 10


def _ten(*answers):
    """Ten annotators: the answers given, the last one repeated."""
    return [*answers, *[answers[-1]] * (10 - len(answers))]


VQA = [  # (decoded text, annotators' answers)
    ("yes", YES),
    ("Yes", YES),  # unanimous: nothing is normalised
    ("yes.", YES),
    (" yes\n", YES),
    ("yes\tsir", ["yes sir"] * 10),
    ("Yes.", _ten("no", "yes")),
    ("a dog", _ten("cat", "dog")),
    ("the dog", _ten("cat", "the dog", "dog")),
    ("two", _ten("2", "3")),
    ("2", _ten("two", "2", "two", "3")),
    ("none", _ten("0", "nothing", "0", "1")),
    ("eleven", _ten("11", "eleven")),
    ("ten", _ten("10", "x")),
    ("dont know", _ten("don't know", "unsure")),
    ("don't know", _ten("dont know", "unsure")),
    ("couldntve", _ten("couldn't've", "x")),
    ("couldnt've", _ten("couldn't've", "couldn't've", "x")),
    ("somebody'd", _ten("somebodyd", "somebodyd", "somebodyd", "x")),
    ("yall'll", _ten("y'all'll", "x")),
    ("Im", _ten("i'm", "i'm", "i'm", "im")),
    ("red/white", _ten("red white", "red/white", "red / white")),
    ("red / white", _ten("redwhite", "red  white", "red white")),
    ("t-shirt", _ten("t shirt", "tshirt", "t-shirt")),
    ("1,000", _ten("1000", "1,000", "1 000")),
    ("1,000-ish", _ten("1000ish", "1000 ish")),
    ("$5.50", _ten("$5.50", "5.50")),
    ("3.5", _ten("3.5", "35")),
    ("3.m", _ten("3m", "3.m", "x")),
    ("p.m.", _ten("pm", "p.m.", "p.m")),
    (".5", _ten("5", ".5")),
    ("5.", _ten("5", "5.", "6")),
    ("." * 40 + "a1", _ten("." * 8 + "a1", "a1")),  # only 32 full stops go
    ("what?!", _ten("what", "why")),
    ('<unk> `quoted` "text"', _ten("unk quoted text", "x")),
    ("", _ten("", "", "x")),
    ("", ["no"] * 10),
    ("the", _ten("a", "an", "x")),
    ("Café", _ten("café", "cafe")),
    ("٣,٤ x-y", _ten("٣٤ xy", "x")),
    ("É\u00a0b", _ten("é b", "x")),
    ("one", _ten("1", "one", "2")),
    ("one", ["1", "one", "2", "2", "2"]),
    ("x", ["x"]),
    ("x", ["x", "y"]),
    ("blue", _ten("blue", "blue", "red")),
    ("blue", _ten("blue", "red")),
    ("blue", _ten("blue", "blue", "blue", "red")),
    ("blue", _ten("blue", "blue", "blue", "blue", "red")),
    ("blue Question: what? Answer: red", _ten("blue", "red", "blue")),
]

OKVQA = [  # (decoded text, raw answers, stemmed answers)
    ("riding", _ten("riding", "ride"), _ten("ride", "ride")),
    ("skateboarding", _ten("skateboarding", "skateboard"), _ten("skateboard", "skateboard")),
    ("dogs", _ten("dog", "cat"), _ten("dog", "cat")),
    ("Dogs", _ten("dog", "cat"), _ten("dog", "cat")),
    ("dogs.", _ten("dog", "cat"), _ten("dog", "cat")),
    ("tennis", _ten("tennis", "sport"), _ten("tennis", "sport")),
    ("glass", _ten("glass", "glasses"), _ten("glass", "glass")),
    ("jeans", _ten("jeans", "jean", "pants"), _ten("jean", "jean", "pant")),
    ("clothing", _ten("clothing", "clothes"), _ten("cloth", "cloth")),
    ("surfing", _ten("surfing", "surf", "water"), _ten("surf", "surf", "water")),
    ("running", _ten("run", "walk"), _ten("run", "walk")),
    ("kites", _ten("kite", "bird"), _ten("kite", "bird")),
    ("buses", _ten("bus", "car"), _ten("bus", "car")),
    ("hot dogs", _ten("hot dog", "hot dogs", "sausage"), _ten("hot dog", "hot dog", "sausage")),
    ("boys", _ten("boy", "men"), _ten("boy", "men")),
    ("wooden spoon", _ten("wooden spoon", "spoon"), _ten("wooden spoon", "spoon")),
    ("yes", _ten("yes", "no"), _ten("yes", "no")),
    ("", _ten("x", "y"), _ten("x", "y")),
    ("christmas", _ten("christmas", "xmas"), _ten("christmas", "xmas")),
    ("gas", _ten("gas", "oil"), _ten("gas", "oil")),
]

VIDEO_QA = [  # (decoded text, the answer)
    ("dog", "dog"),
    (" dog", "dog"),
    ("dogs", "dog"),
    ("cat", "dog"),
    ("", "dog"),
]

IVQA = [  # (decoded text, five answers)
    ("spoon", ["spoon", "spoon", "spoon", "spoon", "spoon"]),
    ("spoon", ["spoon", "spoon", "fork", "knife", "pan"]),
    ("spoon", ["spoon", "fork", "knife", "pan", "pot"]),
    ("fork", ["spoon", "spoon", "spoon", "fork", "fork"]),
    ("bowl", ["spoon", "spoon", "spoon", "fork", "fork"]),
]

WUPS = [  # (decoded text, answer, type of question, additional answer)
    ("run", "walk", "CW", None),
    ("the boy runs", "a boy is running", "CW", None),
    ("running", "run fast", "CH", "ran"),
    ("to play with the dog", "play with cat", "CH", None),
    ("dogs", "puppies", "TN", None),
    ("he moved backwards", "move back", "TN", "walk away"),
    ("pick up the toy", "picks the toys up", "TP", None),
    ("smile", "laughing", "TC", "smiles at the camera"),
    ("living room", "room", "DL", "lounge"),
    ("park", "garden", "DL", None),
    ("yes", "yes", "DB", None),
    ("no", "yes", "DB", "no"),
    ("yes it is", "yes", "DB", None),
    ("two", "two", "DC", None),
    ("2", "two", "DC", "2"),
    ("three dogs", "three", "DC", None),
    ("red", "blue", "DO", None),
    ("happily", "slowly", "DO", None),
    ("beautiful", "pretty", "DO", "ugly"),
    ("", "ball", "DO", None),
    ("the", "ball", "DO", None),
    ("xyzzy", "xyzzy", "DO", None),
    ("xyzzy", "ball", "DO", None),
    ("Don't know.", "can't see", "DO", None),
    ("ball, bat and (glove)!", "baseball", "DO", "mitten"),
    ("quickly", "dog", "DO", None),
    ("eat", "food", "CW", None),
    ("holding the baby's hand", "hold hands", "CH", None),
    ("Paris", "London", "DL", None),
    ("men", "women", "DO", "policeman"),
    ("geese were swimming", "goose swims", "CW", None),
    ("chef", "fireman", "DO", None),
]


def captions():
    """CIDEr.

    (decoded text, references), with repeated words, empty and long candidates, brackets, Unicode.
    """
    rng = np.random.default_rng(5)
    words = "a the man dog cat on in table red isn't two-wheeled it's café 3.5 , !".split()
    words += ["(left)", '"quoted"']
    found = [
        (
            "A man riding a red bike.",
            ["A man rides a bike.", "a man on a red bike !", "Somebody cycles."],
        ),
        ("", ["a cat"]),
        ("...", ["a cat", ""]),
        ("dog", ["dog", "dog dog dog dog dog"]),
        ("dog dog dog dog dog", ["dog"]),
        ("a cat on a table", ["a cat on a table"] * 5),
        ("A CAT (left)\non a table", ["a cat on the left - table -- here"]),
    ]
    for _ in range(25):
        texts = [
            " ".join(rng.choice(words, size=rng.integers(0, 14)))
            for _ in range(1 + rng.integers(1, 6))
        ]
        found.append((texts[0], texts[1:]))
    return found


def dialogues():
    """VisDial: (scores, relevance) of 100 options; no two scores are equal.

    The official sort is not stable.
    """
    rng = np.random.default_rng(6)
    found = []
    for num_relevant in (1, 2, 7, 30, 100, 5):
        relevance = np.zeros(100)
        relevance[rng.permutation(100)[:num_relevant]] = rng.integers(1, 6, num_relevant) / 5
        found.append(((rng.permutation(100) / 2 - 60.5).tolist(), relevance.tolist()))
    return found


def memes():
    """HatefulMemes: (log-likelihoods of yes and no, is hateful), with ties."""
    rng = np.random.default_rng(7)
    return [
        ([float(-rng.integers(1, 9)), float(-rng.integers(1, 9))], bool(rng.integers(2)))
        for _ in range(60)
    ]


def clips():
    """RareAct: rows of rareact.csv, and a score of each for each class, with ties.

    Some actions are never shown.
    """
    rng = np.random.default_rng(8)
    actions = [
        (verb, noun)
        for verb in ("cut", "wash", "blend")
        for noun in ("phone", "pizza", "rope", "car")
    ]
    rows = []
    for index in range(150):
        class_id = int(rng.integers(len(actions)))
        annotation = int(rng.integers(5)) if class_id % 4 else int(rng.choice([0, 2, 3]))
        verb, noun = actions[class_id]
        rows.append(
            [
                index,
                "video_" + string.ascii_letters[rng.integers(30)],
                10,
                20,
                class_id,
                verb,
                noun,
                annotation,
            ]
        )
    return rows, (-rng.integers(0, 25, (len(rows), len(actions))) / 4).tolist()
