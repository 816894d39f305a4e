r"""Published language models, as a tower of Flamingo or to train further.

    COMMAND
        python -m flamingo_jax.convert --source=hf_lm --input=DIR --output=OUT
        python -m flamingo_jax.plan --config=configs/lm_open.py:mistral_7b --topology=v4:4x4x4
        python -m flamingo_jax.train --config=configs/lm_open.py:mistral_7b --workdir=WORKDIR \
            --config.initial=OUT --config.data.tokenizer=OUT
    EXPECTED
        `convert` reads the publisher's files in DIR, each weight once. A Flamingo run takes OUT as
        --config.towers.lm, with the options below as its config.model.lm. The plan says "fits",
        25.1 of 32 GiB.

The numbers of weights are those of transformers' own models (tests/conversion/test_hf_lm.py builds
both). V is the number of rows of the token table, which may be more than the tokenizer's pieces:
MPT has 50,432 rows for 50,277 pieces.
"""

import dataclasses
import functools

from ml_collections import config_dict

from flamingo_jax.core.config import editable
from flamingo_jax.data.config import DataConfig, DatasetConfig
from flamingo_jax.evaluation.config import DIRECTORIES
from flamingo_jax.models import sizes
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.nn.embed import RotaryScaling
from flamingo_jax.sharding.mesh import MeshConfig
from flamingo_jax.training.config import EvaluateEvery, TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class Model:
    """One published model.

    Attributes:
        published: publisher/name on the Hugging Face hub.
        weights: number of weights.
        lm: config of the model.
    """

    published: str
    weights: int
    lm: LMConfig


_Block = functools.partial(LMConfig, remat="projections")
_Llama = functools.partial(
    _Block,
    norm_epsilon=1e-5,
    position="rotary",
    activation="swiglu",
    mlp_bias=False,
    tied_head=False,
)
_Qwen2 = functools.partial(_Llama, norm_epsilon=1e-6, rotary_base=1e6, qkv_bias=True)
_Qwen3 = functools.partial(_Llama, norm_epsilon=1e-6, rotary_base=1e6, head_norm=True)
_OLMo2 = functools.partial(
    _Llama, norm_epsilon=1e-6, rotary_base=5e5, norm_place="after", qk_norm=True
)
_Gemma = functools.partial(
    _Llama,
    norm_epsilon=1e-6,
    norm_place="both",
    norm_from_one=True,
    head_dim=256,
    activation="geglu",
    scaled_embedding=True,
    tied_head=True,
)
_Gemma2 = functools.partial(
    _Gemma, sliding_window=4096, global_every=2, score_cap=50.0, logit_cap=30.0
)
_Gemma3 = functools.partial(
    _Gemma, global_every=6, rotary_base=1e6, local_rotary_base=1e4, head_norm=True
)
_NeoX = functools.partial(
    _Block,
    norm="layer",
    position="rotary",
    activation="gelu_exact",
    attention_bias=True,
    tied_head=False,
)
_MPT = functools.partial(
    _Block, norm="layer", norm_bias=False, position="alibi", activation="gelu_exact", mlp_bias=False
)
_Learned = functools.partial(_Block, norm="layer", position="learned", attention_bias=True)
_STRETCHED = RotaryScaling(factor=32.0, low=1.0, high=4.0, original_length=8192)

# The arithmetic, with D the width, M the width of the feed-forward layer, H heads and G key/value
# heads: a layer of LLaMA has 4 D^2 + 3 D M + 2 D weights if G = H; keys and values have G / H of
# D^2 each. A layer of GPT has 12 D^2 + 13 D with all biases, 12 D^2 + 2 D without. The token table
# has V D, an untied head has V D more.
# The first four numbers of each model are V, the number of layers, D and H.
MODELS: dict[str, Model] = {
    "llama_7b": Model(
        "huggyllama/llama-7b",
        6_738_415_616,
        _Llama(32_000, 32, 4096, 32, mlp_width=11_008, norm_epsilon=1e-6),
    ),
    "llama2_7b": Model(
        "meta-llama/Llama-2-7b-hf", 6_738_415_616, _Llama(32_000, 32, 4096, 32, mlp_width=11_008)
    ),
    "llama3_8b": Model(
        "meta-llama/Meta-Llama-3-8B",
        8_030_261_248,
        _Llama(128_256, 32, 4096, 32, mlp_width=14_336, num_kv_heads=8, rotary_base=5e5),
    ),
    "llama3.2_1b": Model(
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        _Llama(
            128_256,
            16,
            2048,
            32,
            mlp_width=8192,
            num_kv_heads=8,
            rotary_base=5e5,
            rotary_scaling=_STRETCHED,
            tied_head=True,
        ),
    ),
    "mistral_7b": Model(
        "mistralai/Mistral-7B-v0.1",
        7_241_732_096,
        _Llama(32_000, 32, 4096, 32, mlp_width=14_336, num_kv_heads=8, sliding_window=4096),
    ),
    "qwen2_7b": Model(
        "Qwen/Qwen2-7B",
        7_615_616_512,
        _Qwen2(152_064, 28, 3584, 28, mlp_width=18_944, num_kv_heads=4),
    ),
    "qwen2_0.5b": Model(
        "Qwen/Qwen2-0.5B",
        494_032_768,
        _Qwen2(151_936, 24, 896, 14, mlp_width=4864, num_kv_heads=2, tied_head=True),
    ),
    # Qwen3 has norms of K on queries and keys, OLMo 2 of H K and G K. Gemma has 4 D for norms.
    "qwen3_0.6b": Model(
        "Qwen/Qwen3-0.6B-Base",
        596_049_920,
        _Qwen3(151_936, 28, 1024, 16, head_dim=128, mlp_width=3072, num_kv_heads=8, tied_head=True),
    ),
    "qwen3_8b": Model(
        "Qwen/Qwen3-8B-Base",
        8_190_735_360,
        _Qwen3(151_936, 36, 4096, 32, mlp_width=12_288, num_kv_heads=8),
    ),
    "olmo2_7b": Model(
        "allenai/OLMo-2-1124-7B", 7_298_617_344, _OLMo2(100_352, 32, 4096, 32, mlp_width=11_008)
    ),
    "gemma2_2b": Model(
        "google/gemma-2-2b",
        2_614_341_888,
        _Gemma2(256_000, 26, 2304, 8, mlp_width=9216, num_kv_heads=4),
    ),
    "gemma2_9b": Model(
        "google/gemma-2-9b",
        9_241_705_984,
        _Gemma2(256_000, 42, 3584, 16, mlp_width=14_336, num_kv_heads=8),
    ),
    "gemma3_1b": Model(
        "google/gemma-3-1b-pt",
        999_885_952,
        _Gemma3(262_144, 26, 1152, 4, mlp_width=6912, num_kv_heads=1, sliding_window=512),
    ),
    "pythia_1.4b": Model(
        "EleutherAI/pythia-1.4b",
        1_414_647_808,
        _NeoX(50_304, 24, 2048, 16, mlp_width=8192, parallel_residual=True, rotary_fraction=0.25),
    ),
    "redpajama_3b": Model(
        "togethercomputer/RedPajama-INCITE-Base-3B-v1",
        2_775_864_320,
        _NeoX(50_432, 32, 2560, 32, mlp_width=10_240),
    ),
    # A layer has 12 D^2 + 2 D, and norms of D on queries and keys.
    "mpt_1b": Model(
        "mosaicml/mpt-1b-redpajama-200b",
        1_311_442_944,
        _MPT(50_432, 24, 2048, 16, mlp_width=8192, qk_norm=True),
    ),
    "mpt_7b": Model("mosaicml/mpt-7b", 6_649_286_656, _MPT(50_432, 32, 4096, 32, mlp_width=16_384)),
    # Without the first 2 rows of the position table, which no text uses.
    "opt_1.3b": Model(
        "facebook/opt-1.3b",
        1_315_753_984,
        _Learned(50_272, 24, 2048, 32, mlp_width=8192, activation="relu"),
    ),
    "gpt2": Model(
        "openai-community/gpt2", 124_439_808, _Learned(50_257, 12, 768, 12, max_length=1024)
    ),
}


def get_config(name: str = "llama2_7b") -> config_dict.ConfigDict:
    """Returns a run that trains one of `MODELS` further on packed text.

    Args:
        name: key of `MODELS`.

    Raises:
        ValueError: if there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"lm_open:{name}: expected one of {', '.join(MODELS)}.")
    # GPT-2 has 1024 positions. 4 documents of 512 tokens fill a row of 2048. For other data,
    # `data_pipelines.run --pipeline=pool --rows_per_group=16` says how many documents suit them.
    lm = MODELS[name].lm
    length = min(2048, lm.max_length)
    text = DatasetConfig(
        "text",
        "/data/text",
        batch_size=128,
        length=length,
        documents_per_row=length // 512,
        rows_per_group=16,
    )
    config = TrainConfig(
        name=f"lm_{name}",
        stage="language_model",
        steps=10_000,
        model=dataclasses.replace(sizes.PARTS, lm=lm),
        # /data/lm: the tokenizer that `convert` wrote
        data=DataConfig("/data/lm", image_size=320, datasets={"text": text}),
        optimizer=OptimizerConfig(
            learning_rate=2e-5, warmup_steps=500, schedule="cosine", final_fraction=0.1
        ),
        mesh=MeshConfig(data=32, model=2),
        evaluate=EvaluateEvery(data=DIRECTORIES),
    )
    return editable(config)
