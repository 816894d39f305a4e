"""Packaging of flamingo_jax: what it needs, and which extra adds what.

The bounds here are lower bounds: they say what the code needs. The exact set that the tests ran
with is launch/requirements.lock, which launch/ installs.
"""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CORE = [
    "absl-py>=2.1",
    "array-record>=0.8",
    "av>=16.0",
    "chex>=0.1.90",  # not imported here: optax needs it, and the lock file pins it
    "dm-haiku>=0.0.17",
    "etils[epath]>=1.12",
    "grain>=0.2.16",
    "huggingface-hub>=1.0",  # which tokenizers needs too
    "importlib_resources>=6.4",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2",
    "jaxlib>=0.10.2",
    "jaxtyping>=0.3.3",
    "jinja2>=3.1",
    "markupsafe>=3.0",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11.0",
    "scipy>=1.15",
    "sentencepiece>=0.2.3",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22",
    "tqdm>=4.66",
]

EXTRAS = {
    # An NVIDIA GPU.
    "cuda": ["jax[cuda12]>=0.10.2"],
    # A Cloud TPU slice: libtpu, in the version that this jax wants, and paths on gs://. Also what
    # `plan` needs to compile for a TPU without having one.
    "tpu": ["gcsfs>=2025.2", "jax[tpu]>=0.10.2"],
    # Data collection on Apache Beam, and the SVG files of OpenMoji. The synthetic world and its
    # tokenizer do without.
    "pipelines": [
        "apache-beam>=2.77",
        "faiss-cpu>=1.12",
        "google-crc32c>=1.5",
        "idna>=3.7",
        "ImageHash>=4.3.2",
        "py3langid>=0.3",
        "pyarrow>=18.0",
        "resvg-py>=0.2",
        "selectolax>=0.4",
        "zstandard>=0.23",
    ],
    # The official metrics: CIDEr's tokenizer (it also needs Java), the tagger of NextQA's WUPS
    # (which also needs WordNet's files).
    "evaluation": ["nltk>=3.9", "pycocoevalcap>=1.2"],
    # Reading PyTorch checkpoints. Imported inside functions only, never on the training path.
    "conversion": ["safetensors>=0.5", "torch>=2.6", "transformers>=5.0"],
    # Comparing against other implementations, at the versions that they were compared at.
    # The implementations themselves are in launch/requirements_peers.lock: they ask for what cannot
    # be had together.
    "parity": [
        "einops-exts>=0.0.4",
        "ftfy>=6.3",
        "safetensors>=0.5",
        "torch==2.13.0",
        "transformers>=5.0",
    ],
    # A server that speaks the OpenAI chat format.
    "serve": ["python-multipart>=0.0.20", "starlette>=0.45", "uvicorn>=0.34"],
    # The page to try a model in a browser.
    "playground": ["gradio>=6.0"],
    # Further logs of a run: config.hooks.loggers.
    "wandb": ["wandb>=0.19"],
    "clearml": ["clearml>=1.16"],
    # launch/notebooks.
    "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
    # Linters, type checker and the test-suite.
    "dev": [
        "beartype>=0.22",
        "hypothesis>=6.130",
        # its pytest plugin installs the hook before a conftest imports the package
        "jaxtyping>=0.3.11",
        "mypy>=1.18",
        "pytest>=8.4",
        "pytest-xdist>=3.8",
        "ruff>=0.14",
        "setuptools>=77",  # builds the editable install without a download
        "types-tqdm>=4.67",
        "warcio>=1.7.5",  # writes the archives of the tests
    ],
}


class BuildWithConfigs(build_py):
    """Puts configs/ into the wheel, as flamingo_jax/bundled/configs.

    An editable install reads them where they are.
    """

    def run(self) -> None:
        """Copies the packages, then the configs."""
        super().run()
        if not self.editable_mode:
            for source, target in self.configs().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Returns the files of the packages and of the configs."""
        return [*super().get_outputs(include_bytecode), *map(str, self.configs().values())]

    def configs(self) -> dict[pathlib.Path, pathlib.Path]:
        """Returns each config file, and where its copy is."""
        target = pathlib.Path(self.build_lib) / "flamingo_jax" / "bundled"
        return {path: target / path for path in sorted(pathlib.Path("configs").rglob("*.py"))}


def version() -> str:
    """Returns the version that the package itself states."""
    source = pathlib.Path("flamingo_jax/core/version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert found, "flamingo_jax/core/version.py has no line __version__ = ..."
    return found.group(1)


setup(
    name="flamingo_jax",
    version=version(),
    description="Flamingo, a visual language model for few-shot learning, in JAX and Haiku",
    long_description=pathlib.Path("README.md").read_text(),
    long_description_content_type="text/markdown",
    url="https://arxiv.org/abs/2204.14198",
    project_urls={"Paper": "https://arxiv.org/abs/2204.14198"},
    keywords=["flamingo", "vision-language", "few-shot", "multimodal", "jax", "haiku", "tpu"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["flamingo_jax*", "data_pipelines*"]),
    package_data={"": ["py.typed", "*.css", "*.html"]},
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={
        "console_scripts": [
            *(
                f"flamingo-{name} = flamingo_jax.console:{name}"
                for name in (
                    "train finetune evaluate generate convert plan serve cards playground".split()
                )
            ),
            "flamingo-data = flamingo_jax.console:data",
        ],
        # lmms-eval finds our model class here: --model=flamingo_jax.
        "lmms_eval.models": ["flamingo_jax = flamingo_jax.evaluation.adapters.lmms_eval:manifest"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
