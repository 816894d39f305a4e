"""Measures OpenFlamingo's loader, for `tests.benchmarks.loader --peer`.

    PYTHON tests/benchmarks/open_flamingo_loader.py pictures.tar 32

It prints images per second of processor time. PYTHON needs torch, webdataset 0.2.57 (it does not
run with 1.0), and open_flamingo 2.0.1 (pip install --no-deps). This runs their `get_laion_dataset`
unchanged, in this process with one thread. These parts are replaced, each to its advantage:

- torchvision, of which there is no build for torch without CUDA: its Resize (bicubic, shorter
  side), CenterCrop, ToTensor and Normalize are the same calls of PIL and torch; the flip of a whole
  batch is left out, as ours runs on the device.
- The tokenizer takes no time.
- DataLoader has no worker process, and no copy between processes.
"""

import importlib.util
import os
import sys
import time
import types

import numpy as np
import torch
import webdataset
from PIL import Image

SIZE = 320
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def image_processor(image: Image.Image) -> torch.Tensor:
    """The evaluation transform of open_clip, which OpenFlamingo trains with, at 320 px."""
    width, height = image.size
    short = min(width, height)
    image = image.resize((SIZE * width // short, SIZE * height // short), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
    image = image.crop((left, top, left + SIZE, top + SIZE)).convert("RGB")
    pixels = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    )
    return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


class Tokenizer:
    """Takes no time."""

    eos_token = "</s>"

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        ids = torch.zeros((len(texts), 32), dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}


def stand_in_for_torchvision() -> None:
    """Only `torchvision.transforms.RandomHorizontalFlip` is used."""
    transforms = types.ModuleType("torchvision.transforms")
    transforms.RandomHorizontalFlip = lambda p: lambda images: images
    module = types.ModuleType("torchvision")
    module.transforms = transforms
    sys.modules |= {"torchvision": module, "torchvision.transforms": transforms}


def main() -> None:
    """Prints that of the better of two passes."""
    torch.set_num_threads(1)
    tar, batch_size = sys.argv[1], int(sys.argv[2])
    stand_in_for_torchvision()
    package = os.path.dirname(importlib.util.find_spec("open_flamingo").origin)
    sys.path.insert(0, os.path.join(package, "train"))
    import data  # of open_flamingo.train

    webdataset.WebLoader = lambda dataset, **_: dataset
    data.wds.WebLoader = webdataset.WebLoader
    number = len(list(webdataset.WebDataset(tar, shardshuffle=False))) // batch_size * batch_size
    args = types.SimpleNamespace(
        laion_shards=tar,
        train_num_samples_laion=number,
        batch_size_laion=batch_size,
        workers=1,
        world_size=1,
        seed=0,
    )
    best = 0.0
    for _ in range(2):
        batches = iter(data.get_laion_dataset(args, image_processor, Tokenizer()).dataloader)
        start, seen = time.process_time(), 0
        for images, _texts in batches:
            assert images.shape == (batch_size, 3, SIZE, SIZE)
            seen += len(images)
        assert seen == number, f"{seen} of {number} images came"
        best = max(best, seen / (time.process_time() - start))
    sys.stdout.write(f"{best:.1f}\n")


if __name__ == "__main__":
    main()
