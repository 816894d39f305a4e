"""The answers of a run so far, on disk: a run that was stopped goes on from there.

    DIR/TASK-SHOTS.jsonl
        {"model": "5f0c...", "settings": {...}}          the model and its settings
        {"query": "test_one/17", "prompt": "9be1...",    one line per answer
         "text": " red", "scores": [-0.1, -2.3]}

An answer is reused if the same model got the same prompt (by hash: text, images, candidates) with
the same settings; all other queries are answered again. So a later run may ask more queries, and a
change of the data or of the seed is noticed. If a last line was cut off, it is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax

from flamingo_jax.core import paths
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.core.processes import from_first_process
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.inference.identity import identity

# The decoded text and the scores of the candidates; None for the one that was not asked for.
TextAndScores: TypeAlias = "tuple[str | None, tuple[float, ...] | None]"


class Journal:
    """The finished queries of one task at one number of shots.

    In a run of several processes the first one reads and writes for all.

    Attributes:
        finished: text and scores of each answer by `prompt_hash`: those of the file, and those that
            were added.
    """

    def __init__(self, file: PathLike | None, header: Mapping[str, Any]) -> None:
        """Reads the file, if there is one. A file with another header is replaced.

        Args:
            file: the journal; None: nothing is stored.
            header: the model and the settings that its answers depend on; JSON values.

        Raises:
            PathError: the file cannot be written.
        """
        self._file = None if file is None else Path(file)
        self._first = json.dumps(dict(header), sort_keys=True, allow_nan=False)
        self.finished: dict[str, TextAndScores] = {}
        if self._file is None:
            return
        is_writer = jax.process_index() == 0
        found = _whole_lines(self._file) if is_writer else []
        if found[:1] != [self._first]:
            found = [self._first]
        self._lines = from_first_process("\n".join(found) if is_writer else "").split("\n")
        for line in self._lines[1:]:
            entry = json.loads(line)
            scores = None if entry["scores"] is None else tuple(entry["scores"])
            self.finished[entry["prompt"]] = (entry["text"], scores)
        self._num_written = len(self._lines)
        if is_writer:
            self._write_whole()

    def add(
        self, episodes: Sequence[Episode], keys: Sequence[str], answers: Sequence[TextAndScores]
    ) -> None:
        """Adds answers, to the file too.

        Args:
            episodes: what was asked.
            keys: `prompt_hash` of each.
            answers: text and scores of each.

        Raises:
            PathError: the file cannot be written.
        """
        self.finished.update(zip(keys, answers, strict=True))
        if self._file is None or jax.process_index() > 0:
            return
        for episode, key, (text, scores) in zip(episodes, keys, answers, strict=True):
            entry = {"query": episode.query_id, "prompt": key, "text": text, "scores": scores}
            self._lines.append(json.dumps(entry, ensure_ascii=False, allow_nan=False))
        if not paths.is_local(self._file):
            # An object of a bucket cannot be appended to: it is written whole, at each tenth more.
            if len(self._lines) > 1.1 * self._num_written:
                self._write_whole()
            return
        try:
            new = "".join(f"{line}\n" for line in self._lines[self._num_written :])
            with paths.regular(self._file).open("ab") as file:
                file.write(paths.to_utf8(new))
        except OSError as error:
            raise paths.PathError(
                f"Cannot write {self._file}: {error.strerror}. Give a writable place with room."
            ) from error
        self._num_written = len(self._lines)

    def _write_whole(self) -> None:
        assert self._file is not None
        paths.write_atomically(self._file, "".join(f"{line}\n" for line in self._lines))
        self._num_written = len(self._lines)


def prompt_hash(episode: Episode) -> str:
    """Returns 32 hexadecimal digits that differ for all prompts.

    They depend on the text, the content of the images and the candidates of all orders of a query:
    the answers about a picture that was replaced are asked for again.

    Raises:
        PromptError: the file of an image is missing.
    """
    digest = hashlib.blake2b(digest_size=16)
    for parts in (episode.parts, *episode.orders):
        for part in parts:
            if isinstance(part, str):
                digest.update(paths.to_utf8(f"text {part}\0"))
            else:
                digest.update(b"data " + identity(part))
        digest.update(b"order\0")
    rest = (episode.query_id, episode.masked, episode.separator, episode.candidates)
    digest.update(repr(rest).encode())
    return digest.hexdigest()


def _whole_lines(file: Path) -> list[str]:
    """Returns the lines of a journal up to the first that is not JSON: that one was cut off."""
    if not file.exists():
        return []
    *lines, _ = paths.regular(file).read_bytes().split(b"\n")  # the last is empty or cut off
    whole = []
    for line in lines:
        try:
            json.loads(line)
            whole.append(line.decode())
        except ValueError:  # JSONDecodeError or UnicodeDecodeError
            break
    return whole
