"""Each file of each benchmark, missing or cut off.

The error names the file, its source, and the expected layout of the directory.
"""

import pytest

from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.protocol import Protocol
from tests.evaluation.fixtures import benchmarks

ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
# Files that a benchmark does not need, or that only its other variant needs.
OPTIONAL = {
    "vqav2": (
        "v2_OpenEnded_mscoco_test2015_questions.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_val2014_annotations.json",
    ),
    "vqav2_val": (
        "v2_OpenEnded_mscoco_test2015_questions.json",
        "v2_OpenEnded_mscoco_test-dev2015_questions.json",
    ),
    "vizwiz": ("val.json",),
    "vizwiz_val": ("test.json",),
    "nocaps": ("nocaps_test_image_info.json",),
    "nocaps_test": ("nocaps_val_4500_captions.json",),
    "textvqa": ("train-images-boxable-with-rotation.csv",),
}


@pytest.mark.parametrize("name", benchmarks.IMAGES + benchmarks.VIDEOS)
def test_missing_and_damaged_files(name, tmp_path):
    ((files, _),) = (data := benchmarks.make(name, tmp_path)).items()

    def read():
        benchmark = registry.create(name, data, Protocol(n=0)).benchmark
        return len(benchmark.train() if benchmark.max_shots else ()), len(benchmark.test())

    counts = read()
    annotations = sorted(path for path in tmp_path.rglob("*") if path.suffix in ANNOTATIONS)
    assert annotations
    for path in annotations:
        content = path.read_bytes()
        path.unlink()
        if path.name in OPTIONAL.get(name, ()):
            assert read() == counts
        else:
            with pytest.raises(task.TaskError) as caught:
                read()
            message = str(caught.value)
            assert path.name in message and "Get it from " in message
            assert f"Expected in the directory of {files}, {tmp_path}:\n    " in message
        if path.suffix == ".json" and path.name not in OPTIONAL.get(name, ()):
            path.write_bytes(content[: len(content) // 2 + 5])
            with pytest.raises(task.TaskError, match=f"{path.name} is not (valid )?JSON"):
                read()
        path.write_bytes(content)


# MMBench has its pictures in its table.
@pytest.mark.parametrize("name", [name for name in benchmarks.IMAGES if name != "mmbench"])
def test_missing_images(name, tmp_path):
    """Missing images are an error at the start, not after hours."""
    data = benchmarks.make(name, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix not in ANNOTATIONS:
            path.unlink()
    benchmark = registry.create(name, data, Protocol(n=0)).benchmark
    for read in (benchmark.train, benchmark.test) if benchmark.max_shots else (benchmark.test,):
        with pytest.raises(
            task.TaskError, match=r"it is not there\. Get it from|holds folders without images"
        ):
            read()
