"""Few-shot evaluation: one setting for all tasks (paper, B.1.5).

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=runs/demo/flamingo --output=runs/demo/report
                 --config.data.world=runs/demo/world [--task=format,bind2] [--shots=0,4]
    EXPECTED of the tiny Flamingo: `format` exact match at most 0.45 at 0 shots, at least 0.90 from 1 shot on; `bind2` at
             least 0.70 at 4 shots, 0.75 at 8; shuffled labels and hidden images at what guessing gives.

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper --checkpoint=DIR --output=DIR
                 --config.data.coco=DIR --config.data.okvqa=DIR --task=coco,okvqa [--shots=0,4,8,16,32] [--config.mesh.data=-1]
    EXPECTED the rows of the paper's Table 1, beside the paper's in the report. Its choices were made on
             `--config.split=validation`.

    Table 7  --task=imagenet,kinetics700 --shots=8,16 --config.selection=rices --config.num_support_per_class=5
             and the last row with --config.ensemble=6

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py:contrastive --checkpoint=DIR --output=DIR
                 --config.data.coco=DIR --task=coco_retrieval [--config.templates=FILE] [--config.mesh.data=-1]
    EXPECTED of a contrastive model: the rows of Table 9, and zero-shot classification as in the first row of Table 7.
             The tiny one: --task=world_retrieval, at least 0.9 recall at 1 both ways among 64 pictures.

    COMMAND  python -m flamingo_jax.evaluate --config=configs/evaluate.py --checkpoint=DIR --output=DIR --task=embed
                 --config.data.embed=DIR     image features, as data_pipelines.run --pipeline=dedup reads them

The tasks of the tiny world are reported greedily; the paper decodes with 3 beams.
"""

from ml_collections import config_dict

# Each family, and its controls: the same queries and code, one thing changed.
TASKS = (
    "format",
    "format_shuffled",
    "format_hidden",
    "format_held_out",
    "bind2",
    "bind2_shuffled",
    "bind2_hidden",
    "bind2_held_out",
    "bind4",
)

# Table 6, and the classification of Table 7; "world" is the demo's, "embed" what --task=embed reads.
IMAGE_BENCHMARKS = ("coco", "flickr30k", "okvqa", "vqav2", "vizwiz", "textvqa", "visdial", "hateful_memes")
VIDEO_BENCHMARKS = ("msvdqa", "vatex", "msrvttqa", "ivqa", "youcook2", "star", "nextqa", "rareact")
CLASSIFICATION = ("imagenet", "kinetics700")
COMPARISONS = ("imagenet_zero_shot", "kinetics700_zero_shot", "coco_retrieval", "flickr30k_retrieval")
DATA = (*IMAGE_BENCHMARKS, *VIDEO_BENCHMARKS, *CLASSIFICATION, "embed", "embed_split")


def get_config(setting: str = "demo") -> config_dict.ConfigDict:
    """Returns the schema of `flamingo_jax.evaluation.config.EvaluateConfig`; setting: "demo", "paper" or "contrastive".

    Raises:
      ValueError: another setting.
    """
    if setting not in ("demo", "paper", "contrastive"):
        raise ValueError(f"configs/evaluate.py:{setting} is not known: take demo, paper or contrastive.")
    config = _demo()
    if setting == "paper":
        config.tasks = (*IMAGE_BENCHMARKS, *VIDEO_BENCHMARKS)
        config.shots = (0, 4, 8, 16, 32)
        config.n = 0  # all queries
        config.batch_size = 32
        config.inference.decoding = "beam"
        config.inference.max_new_tokens = 20  # the paper gives no bound
        config.inference.compute = "bfloat16"
        config.inference.lengths = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # VisDial, 16 shots: 16 * 21 sentences
        config.inference.num_images = (1, 5, 9, 17, 33)
        config.inference.latents_megabytes = 4096  # 2048 supports * 64 latents * 8192 channels * 2 bytes = 2 GiB
    if setting == "contrastive":
        config.tasks = COMPARISONS
        config.n = 0  # all: with fewer, retrieval is easier
        config.inference.compute = "bfloat16"
    return config.lock()


def directories() -> config_dict.ConfigDict:
    """Returns a place for each benchmark's directory, to be filled in on the command line."""
    return config_dict.create(**{name: config_dict.placeholder(str) for name in ("world", *DATA)})


def _demo() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.tasks = TASKS
    config.shots = (0, 1, 2, 4, 8)
    config.n = 400  # standard error at most (.25 / 400)**.5 = 0.025
    config.seed = 1
    config.split = "test"  # validation: queries from the training split, to choose settings with
    config.selection = "random"  # of support examples; rices: those whose images are most like the query's
    config.ensemble = 1  # 6: the paper's, for close-ended benchmarks, over orders of the support examples
    config.num_support = 2048  # supports of a benchmark (paper, B.1.4); where items have classes:
    config.num_support_per_class = 32  # Table 7: 1 or 5
    config.templates = config_dict.placeholder(str)  # file of sentences around a class's name; None: ours
    config.features = config_dict.placeholder(str)  # of images, for rices; kept in OUTPUT/features by default
    config.batch_size = 100
    config.num_samples = 2  # per task and number of shots, kept with their images for the sheet
    config.data = directories()
    config.data.world = "runs/demo/world"
    # Where frozen towers lie that have moved since training.
    config.towers = config_dict.create(lm=config_dict.placeholder(str), vision=config_dict.placeholder(str))
    config.inference = config_dict.create(
        decoding="greedy",  # beam: the paper's, for open-ended tasks
        beams=3,  # beam search (paper, A.2)
        max_new_tokens=8,  # an answer of the tiny world is one word and <EOC>; captions need 20
        length_penalty=0.0,  # the paper mentions none
        beam_ends="any",  # best: as transformers', with which OpenFlamingo and IDEFICS were evaluated
        temperature=1.0,  # with top_p and seed: of decoding=sample alone
        top_p=1.0,
        seed=0,
        normalise="sum",  # of a candidate's log-likelihoods; mean: per token
        terminate="nothing",  # end_of_chunk: <EOC> counts as a candidate's last token
        compute="float32",  # bfloat16 on accelerators
        layers="scanned",  # unrolled: each compiled by itself, for long runs on a CPU
        # Shapes that prompts are padded to: a program is compiled for each that occurs. The tiny world needs two:
        # 8 shots of bind2 are 8 x 6 + 5 = 53 tokens and 9 images, 4 shots 29 and 5.
        lengths=(32, 64, 128, 256, 512, 1024, 2048),
        num_images=(5, 9, 17, 33),
        images_per_pass=64,
        candidates_per_pass=16,
        latents_megabytes=256,
        xattn_chunk=64,
        video_frames=30,  # B.1.2: 30 frames at 3 per second
        video_rate=3.0,
    )
    config.mesh = config_dict.create(replica=1, data=1, model=1)  # data=-1: prompts spread over all devices
    return config
