"""Tokenizes captions like the COCO caption evaluation.

The tokenizer is Stanford's PTBTokenizer 3.4.1; tokens are in lower case, without punctuation. It is
a Java program that the package pycocoevalcap contains. One run of it tokenizes all captions, one
per line.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
from collections.abc import Sequence

from etils import epath

from flamingo_jax.evaluation.metrics.required import MissingResourceError

# The tokens of punctuation. Tokens of brackets, "-lrb-" and so on, are kept: the official list has
# them in capitals, which do not occur.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_JAR = "stanford-corenlp-3.4.1.jar"
# The program ends a line at each of these, which would shift the captions after it.
_LINE_ENDS = re.compile("[\n\r\v\f\x85\u2028\u2029]")


@functools.cache
def _command() -> tuple[str, ...]:
    """Returns the command line of the tokenizer."""
    try:
        subprocess.run(("java", "-version"), capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingResourceError(
            "CIDEr needs Java for the PTB tokenizer, and the program `java` does not run. On "
            "Debian or Ubuntu: apt-get install default-jre-headless."
        ) from error
    package = importlib.util.find_spec("pycocoevalcap")
    places = list(package.submodule_search_locations or ()) if package else []
    jars = [jar for place in places if (jar := epath.Path(place) / "tokenizer" / _JAR).exists()]
    if not jars:
        raise MissingResourceError(
            f"CIDEr needs {_JAR} of the package pycocoevalcap, which is not installed: pip install "
            "'flamingo_jax[evaluation]' (or pip install pycocoevalcap)."
        )
    return (
        "java",
        "-cp",
        str(jars[0]),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    )


def check() -> None:
    """Raises MissingResourceError unless Java and the tokenizer are installed."""
    _command()


def tokenize(captions: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the tokens of each caption; () if it has only blanks or punctuation.

    Raises:
        MissingResourceError: Java or the package pycocoevalcap is missing.
        RuntimeError: the tokenizer failed.
    """
    lines = [_LINE_ENDS.sub(" ", caption) for caption in captions]
    text = "".join(f"{line}\n" for line in lines)
    run = subprocess.run(
        _command(), input=text.encode("utf-8", "replace"), capture_output=True, check=False
    )
    found = run.stdout.decode("utf-8").split("\n")[:-1]
    if run.returncode or len(found) != len(lines):
        raise RuntimeError(
            f"the PTB tokenizer ({' '.join(_command())}) exited with status {run.returncode} and "
            f"{len(found)} lines for {len(lines)} captions; its last words: "
            f"{run.stderr.decode('utf-8', 'replace').strip()[-500:]!r}."
        )
    return [tuple(token for token in line.split() if token not in _PUNCTUATION) for line in found]
