"""Every field of a training run, with the paper's value where the paper gives one: the schema that all configs share.

A config starts from here and changes what it is about; `flamingo_jax.training.config.TrainConfig` is the same schema as
types, and a test holds the two together. Not an experiment by itself: it names no data.

    from configs import base
    config = base.get_config()
    config.data.datasets = {"pages": base.dataset("interleaved", "/data/pages", batch_size=24, length=256)}

Any field can be set on the command line: `--config.optimizer.learning_rate=3e-4`.
"""

from ml_collections import config_dict

from configs import evaluate


def get_config() -> config_dict.ConfigDict:
    """Returns the schema, filled with the Flamingo-80B values of the paper (Tables 4 and 5, B.1)."""
    config = config_dict.ConfigDict()
    config.name = ""  # shown in the log
    config.stage = "flamingo"  # language_model | contrastive | flamingo
    config.seed = 0  # initialisation, data order, everything random
    config.steps = 500_000
    config.model = model()
    config.data = config_dict.create(
        tokenizer="",
        image_size=320,
        datasets={},
        image_fit="pad",  # crop: CLIP's, squash: IDEFICS'
        augment=augment(),
        num_threads=0,  # of a process, for its batches; 0: one per core
        prefetch=4,  # batches made ahead
        max_corrupt=0.05,  # share of a dataset's records; beyond it the run stops
    )
    config.initial = config_dict.placeholder(str)  # export of the same stage whose trained weights this run begins with
    config.unfrozen = ()  # flamingo stage: ("vision",) trains the vision encoder too (paper, B.2.2)
    config.mixing = "accumulate"  # gradients of all datasets summed in each step (paper, 2.4); round_robin | merged
    config.optimizer = optimizer()
    config.precision = config_dict.create(compute="bfloat16")  # float32 | bfloat16
    config.mesh = config_dict.create(  # devices per axis; -1: all that are left
        replica=1,
        data=1,
        model=1,
        model_chips=(),  # the block of the torus that holds a model group, as (4, 4, 1)
        zero=True,  # ZeRO-1 over data
        sequence_parallel=True,  # over model, between blocks
    )
    # Exports of the stages whose weights are frozen in the flamingo stage.
    config.towers = config_dict.create(lm=config_dict.placeholder(str), vision=config_dict.placeholder(str))
    config.hooks = config_dict.create(log_every=50, save_every=1_000, keep=3, tensorboard=True, progress=True)
    config.until = None  # see until()
    # Evaluation during training, few-shot or (contrastive) zero-shot classification and retrieval; every 0 steps: never.
    config.evaluate = config_dict.create(every=0, tasks=(), shots=(0, 4), n=64, data=evaluate.directories())
    return config.lock()


def model() -> config_dict.ConfigDict:
    """Returns all parts of the model; a stage uses those it needs."""
    parts = config_dict.ConfigDict()
    parts.vision = config_dict.create(  # NFNet-F6 (Brock et al. 2021, Table 1)
        widths=(256, 512, 1536, 1536),
        depths=(7, 14, 42, 21),
        strides=(1, 2, 2, 2),
        stem_channels=(16, 32, 64, 128),
        stem_strides=(2, 1, 1, 2),
        expansion=0.5,
        big_width=True,
        group_width=128,
        se_ratio=0.5,
        alpha=0.2,
        skip_init=0.0,
        final_multiplier=2.0,
        stochastic_depth=0.0,
        activation="gelu",
        weight_standardisation="apply",
        loop="scan",  # unrolled: for training on a CPU
        remat="none",
    )
    parts.vit = None  # instead of vision: see vit()
    parts.text_encoder = config_dict.create(  # BERT-mini, as in the ablation (B.3.2); the final size is not stated
        vocab_size=0,  # the tokenizer's
        num_layers=4,
        width=256,
        num_heads=4,
        max_length=32,
        mlp_ratio=4,
        norm="after",  # before: CLIP's
        causal=False,
        activation="gelu_exact",  # quick_gelu
        epsilon=1e-5,
        token_types=0,
        vocab_multiple=128,
        remat="none",
    )
    parts.contrastive = config_dict.create(
        joint_dim=1376,
        initial_temperature=10.0,
        label_smoothing=0.1,
        duplicates="negatives",
        text_pooling="mean",  # last: CLIP's
        chunk=0,  # rows of a data shard that are encoded at a time; 0: all, with all their activations
    )
    parts.lm = config_dict.create(  # Chinchilla-70B (Table 4)
        vocab_size=0,  # the tokenizer's
        num_layers=80,
        width=8192,
        num_heads=64,
        head_dim=0,  # width / num_heads
        num_kv_heads=0,  # num_heads
        mlp_width=0,  # 4 width
        norm="rms",
        norm_epsilon=1e-5,
        norm_bias=True,  # of LayerNorm
        position="relative",
        rotary_base=10_000.0,
        rotary_fraction=1.0,
        rotary_scaling=config_dict.create(factor=1.0, low=1.0, high=4.0, original_length=0),
        max_length=2048,
        sliding_window=0,  # all
        activation="gelu",
        attention_bias=False,
        qkv_bias=False,
        mlp_bias=True,
        parallel_residual=False,
        qk_norm=False,
        tied_head=True,
        qkv_conv_width=0,
        vocab_multiple=128,
        remat="projections",
        fused=False,  # set by the programs where the LM is frozen
    )
    parts.resampler = config_dict.create(  # Table 4
        num_layers=6,
        width=1536,
        num_heads=16,
        head_dim=128,
        num_latents=64,
        input_projection=True,
        num_time_embeddings=8,
        mlp_ratio=4,
        activation="squared_relu",
        attention_bias=False,
        mlp_bias=True,
        qk_norm=False,
        final_norm=False,
        epsilon=1e-5,
        remat="none",
    )
    parts.xattn = config_dict.create(  # a layer before every 7th block of the LM (Table 5)
        every=7,
        offset=0,
        num_heads=0,  # the LM's
        head_dim=0,  # the LM's
        mlp_ratio=4,
        activation="squared_relu",
        mlp_width=0,  # mlp_ratio times the LM's width
        media="language",  # resampler: no map to the LM's width
        media_norm=True,
        norm="layer",
        norm_epsilon=1e-5,
        qk_norm=False,
        gate="scalar",  # vector
        unseen="zero",  # average
    )
    parts.new_tokens = ("<EOC>",)  # trained rows beside the frozen vocabulary
    return parts


def optimizer() -> config_dict.ConfigDict:
    """Returns AdamW as the paper used it (B.1.2); it leaves betas and epsilon open."""
    return config_dict.create(
        learning_rate=1e-4,
        warmup_steps=5_000,
        schedule="constant",  # cosine | linear | exponential
        decay_steps=config_dict.placeholder(int),  # where the fall ends; None: at `steps`
        final_fraction=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=1.0,
        vision=config_dict.create(  # what is different for a vision encoder that is trained
            learning_rate=config_dict.placeholder(float),
            agc=config_dict.placeholder(float),  # adaptive clipping (B.1.3); clip_norm is then over all other weights
        ),
    )


def augment() -> config_dict.ConfigDict:
    """Returns the random flip and colours of training images; the paper has both and gives no number: these are ours.

    Mild, since captions name colours. A fifth of a turn is from red to yellow: 0.02 is a tenth of that.
    """
    return config_dict.create(flip=0.5, brightness=0.1, contrast=0.2, saturation=0.2, hue=0.02)


def dataset(kind: str, path: str, *, batch_size: int, length: int, **fields: object) -> config_dict.ConfigDict:
    """Returns one dataset of the mixture.

    Args:
        kind: interleaved (pages), pairs (image-text or video-text), captions (contrastive) or text.
        path: directory of the records, as the TFDS builder wrote it.
        batch_size: rows per update, over all devices.
        length: L, tokens per row.
        **fields: what else differs from the defaults below.

    Raises:
        KeyError: for a field that a dataset does not have.
    """
    config = config_dict.create(
        kind=kind,
        path=path,
        split="train",
        batch_size=batch_size,
        weight=1.0,  # lambda_m (paper, 2.4)
        length=length,
        max_images=1,
        num_frames=1,
        frame_rate=1.0,  # frames per second of a video (paper, 2.1)
        pool=config_dict.placeholder(int),  # images per data shard; None: rows * max_images
        p_next=0.5,  # how often a page's text attends the next image, not the last (paper, A.3.2)
        space_prefix=0.5,  # how often a caption gets a space in front (paper, B.1.2)
        documents_per_row=8,
        rows_per_group=1,
    )
    config.lock().update(fields)
    return config


def vit(**fields: object) -> config_dict.ConfigDict:
    """Returns a vision transformer, to stand instead of the NFNet: `model.vision = None`, `model.vit = base.vit(...)`.

    Args:
        **fields: what differs from OpenAI's ViT-L/14 as OpenFlamingo reads it.

    Raises:
        KeyError: for a field that it does not have.
    """
    config = config_dict.create(
        patch_size=14,
        width=1024,
        num_layers=24,
        num_heads=16,
        mlp_width=4096,
        image_size=224,  # of the table of positions; other sizes interpolate it
        activation="quick_gelu",  # gelu_exact: LAION's weights
        features="patches",  # class_and_patches | class
        final_norm=False,  # CLIP's last norm, over all that comes out
        interpolation="bicubic",  # antialiased
        epsilon=1e-5,
        mean=(0.48145466, 0.4578275, 0.40821073),  # of pixels 0..1
        std=(0.26862954, 0.26130258, 0.27577711),
        remat="none",
    )
    config.lock().update(fields)
    return config


def until(probe: str, *, metric: str, below: float, every: int) -> config_dict.ConfigDict:
    """Returns the rule that ends a stage early: when `probe`'s `metric`, taken every `every` steps, is below a bound."""
    return config_dict.create(probe=probe, metric=metric, below=below, every=every, required=True)
