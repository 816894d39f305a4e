"""Runs a benchmark's official script on `cases.py` and writes what it gives; README.md says how."""

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import types

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import cases

HERE = pathlib.Path(__file__).parent


def load(path, name, *, edit=lambda source: source):
    """The module in a file that lies in no package."""
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(edit(path.read_text()), str(path), "exec"), module.__dict__)
    return module


def one_sentence():
    """The texts here are single sentences.

    NLTK's splitter into sentences would return them whole, and needs data that is hard to get.
    """
    import nltk.tokenize

    nltk.sent_tokenize = nltk.tokenize.sent_tokenize = lambda text, language="english": [text]


def run_vqa(clone, texts, annotated):
    """The official accuracies of each answer, and of all."""

    def python3(source):
        return re.sub(r"^(\s*)print (.*)$", r"\1print(\2)", source, flags=re.M)

    official = load(
        clone / "PythonEvaluationTools/vqaEvaluation/vqaEval.py", "vqa_eval", edit=python3
    )
    truth, said = types.SimpleNamespace(), types.SimpleNamespace()
    truth.qa = {
        index: {
            "question_type": "what",
            "answer_type": "other",
            "answers": [{"answer": answer, "answer_id": at} for at, answer in enumerate(answers)],
        }
        for index, answers in enumerate(annotated)
    }
    said.qa = {index: {"answer": text} for index, text in enumerate(texts)}
    truth.getQuesIds = lambda: list(truth.qa)
    judge = official.VQAEval(truth, said, n=10)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
    return {
        "each": [judge.evalQA[index] / 100 for index in range(len(texts))],
        "mean": judge.accuracy["overall"] / 100,
    }


def vqa_accuracy(clone):
    texts = [text.split(" Question:")[0] for text, _ in cases.VQA]  # as trimmed
    return cases.VQA, run_vqa(clone, texts, [answers for _, answers in cases.VQA])


def okvqa_accuracy(clone, stemmer):
    one_sentence()
    stem = load(
        stemmer / "open_flamingo/eval/ok_vqa_utils.py", "ok_vqa_utils"
    ).postprocess_ok_vqa_generation
    texts = [stem(text) for text, _, _ in cases.OKVQA]
    return cases.OKVQA, {"stems": texts} | run_vqa(
        clone, texts, [stems for _, _, stems in cases.OKVQA]
    )


def cider(clone):
    del clone  # the package is the official code's port to Python 3
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = cases.captions()
    said = {index: [{"caption": text}] for index, (text, _) in enumerate(found)}
    truth = {index: [{"caption": text} for text in texts] for index, (_, texts) in enumerate(found)}
    said, truth = PTBTokenizer().tokenize(said), PTBTokenizer().tokenize(truth)
    mean, each = Cider().compute_score(truth, said)
    tokens = {
        "candidates": [said[index][0] for index in said],
        "references": [truth[index] for index in truth],
    }
    return found, tokens | {"each": each.tolist(), "mean": float(mean)}


def _agreements(clone, texts, answers, *, ivqa):
    import torch

    official = load(clone / "util.py", "util")
    vocabulary = sorted(
        {text.strip() for text in texts} | {answer for each in answers for answer in each}
    )
    # The model's ten best answers; only the first one matters here.
    best = torch.tensor([[vocabulary.index(text.strip())] * 10 for text in texts])
    if ivqa:
        counts = torch.tensor([[each.count(word) for word in vocabulary] for each in answers])
        target = (counts / 2).clamp(max=1)
    else:
        target = (
            torch.tensor([vocabulary.index(each[0]) for each in answers])
            .view(-1, 1)
            .expand_as(best)
        )
    found = official.compute_aggreeings(best, target, [1], ["acc"], {"acc": 0}, ivqa=ivqa)
    return {"mean": found["acc"] / len(texts)}


def ivqa_accuracy(clone):
    return cases.IVQA, _agreements(clone, *zip(*cases.IVQA, strict=True), ivqa=True)


def top1(clone):
    texts, answers = zip(*cases.VIDEO_QA, strict=True)
    return cases.VIDEO_QA, _agreements(clone, texts, [[answer] for answer in answers], ivqa=False)


def visdial_ndcg(clone):
    import torch

    official = load(clone / "visdialch/metrics.py", "visdial_metrics")
    found = cases.dialogues()
    values = official.NDCG()
    values.observe(*(torch.tensor(column) for column in zip(*found, strict=True)))
    return found, {"mean": values.retrieve()["ndcg"]}


def roc_auc(clone):
    del clone
    import numpy as np
    from sklearn.metrics import roc_auc_score

    found = cases.memes()
    scores = np.asarray([scores for scores, _ in found])
    odds = np.round(scores[:, 0] - scores[:, 1])
    return found, {"mean": float(roc_auc_score([label for _, label in found], odds))}


def rareact_mwap(clone):
    import numpy as np

    rows, scores = cases.clips()
    with tempfile.TemporaryDirectory() as directory:
        np.save(f"{directory}/scores.npy", np.asarray(scores))
        with open(f"{directory}/rareact.csv", "w", newline="") as file:
            csv.writer(file).writerows(
                ["id video_id start end class_id verb noun annotation".split(), *rows]
            )
        command = [sys.executable, str(clone.resolve() / "compute_score.py"), "scores.npy"]
        text = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=True
        ).stdout
    return {"rows": rows, "scores": scores}, {"mean": float(re.search(r"mWAP (\S+)", text)[1])}


def wups(clone):
    import nltk

    one_sentence()
    tags, tag_words = {}, nltk.pos_tag

    def record(words):
        tagged = tag_words(words)
        tags[" ".join(words)] = [tag for _, tag in tagged]
        return tagged

    nltk.pos_tag = record
    with contextlib.chdir(clone):
        sys.path.insert(0, str(clone))
        import eval_oe
    each, contents = [], []
    for text, answer, kind, additional in cases.WUPS:
        said, *wanted = (
            eval_oe.remove_stop(one) for one in (text, answer, additional) if one is not None
        )
        exact = kind in ("DB", "DC")
        each.append(
            max(float(said == one) if exact else eval_oe.get_wups(said, one, 0) for one in wanted)
        )
        contents.append([said, *wanted])
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        with open(root / "test.csv", "w", newline="") as file:
            header = "video,frame_count,width,height,question,answer,qid,type".split(",")
            rows = [
                [f"v{i}", 1, 1, 1, "q", answer, 0, kind]
                for i, (_, answer, kind, _) in enumerate(cases.WUPS)
            ]
            csv.writer(file).writerows([header, *rows])
        (root / "said.json").write_text(
            json.dumps({f"v{i}": {"0": case[0]} for i, case in enumerate(cases.WUPS)})
        )
        more = {f"v{i}": {"0": case[3]} for i, case in enumerate(cases.WUPS) if case[3] is not None}
        (root / "more.json").write_text(json.dumps(more))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            eval_oe.evaluate(
                str(root / "said.json"), str(root / "test.csv"), str(root / "more.json")
            )
    total = float(printed.getvalue().split()[-1])
    return cases.WUPS, {"tags": tags, "contents": contents, "each": each, "printed": total}


OFFICIAL = {  # metric -> (how it is run, repository, packages)
    "vqa_accuracy": (vqa_accuracy, "GT-Vision-Lab/VQA", ()),
    "okvqa_accuracy": (okvqa_accuracy, "GT-Vision-Lab/VQA", ("nltk", "inflection")),
    "cider": (cider, "salaniz/pycocoevalcap", ("pycocoevalcap",)),
    "ivqa_accuracy": (ivqa_accuracy, "antoyang/just-ask", ("torch",)),
    "top1": (top1, "antoyang/just-ask", ("torch",)),
    "visdial_ndcg": (visdial_ndcg, "batra-mlp-lab/visdial-challenge-starter-pytorch", ("torch",)),
    "roc_auc": (roc_auc, "scikit-learn/scikit-learn", ("scikit-learn",)),
    "rareact_mwap": (rareact_mwap, "antoine77340/RareAct", ("scikit-learn", "pandas", "numpy")),
    "wups": (wups, "doc-doc/NExT-OE", ("nltk", "pywsd", "wn", "pandas")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metric", choices=sorted(OFFICIAL))
    parser.add_argument(
        "--clone",
        type=pathlib.Path,
        help="clone of the official repository (none for roc_auc and cider)",
    )
    parser.add_argument(
        "--stemmer", type=pathlib.Path, help="okvqa_accuracy: clone of mlfoundations/open_flamingo"
    )
    arguments = parser.parse_args()
    run, repository, packages = OFFICIAL[arguments.metric]
    clones = {name: path for name in ("clone", "stemmer") if (path := getattr(arguments, name))}
    predictions, values = run(**({"clone": None} | clones))

    def commit(path):
        return subprocess.run(
            ["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()

    record = {
        "repository": repository,
        "commit": commit(clones["clone"]) if "clone" in clones else "the package below",
        "command": " ".join(
            [
                f"python tests/golden/metrics/regenerate.py {arguments.metric}",
                *(f"--{name} DIRECTORY" for name in clones),
            ]
        ),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "predictions": predictions,
        "values": values,
    }
    if "stemmer" in clones:
        record["stemmer"] = {
            "repository": "mlfoundations/open_flamingo",
            "commit": commit(clones["stemmer"]),
        }
    (HERE / f"{arguments.metric}.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    main()
