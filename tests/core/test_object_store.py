"""Single requests to an object store, here one in memory."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from flamingo_jax.core import object_store, paths


class Bucket(MemoryFileSystem):
    """An object store in memory. It records how objects are written."""

    modes: list[str] = []

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.modes.append(mode)
        super().pipe_file(path, value, mode=mode, **kwargs)


def test_a_bucket_creates_an_object_on_the_condition_that_there_is_none(monkeypatch):
    bucket = Bucket()
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (bucket, url.replace("gs:/", "")))
    assert paths.create("gs://bucket/run.json", "first")
    assert not paths.create("gs://bucket/run.json", "second")
    assert bucket.modes == ["create", "create"]
    assert object_store.read("gs://bucket/run.json") == b"first"
    with pytest.raises(FileNotFoundError):
        object_store.read("gs://bucket/nothing")
