"""IDEFICS-9B (Hugging Face M4, 2023), imported: LLaMA-7B, CLIP-H/14, a cross-attention layer before every 4th block.

    COMMAND  python -m flamingo_jax.convert --source=idefics --input=idefics-9b --output=DIR/idefics_9b
                 # --input: a clone of HuggingFaceM4/idefics-9b of the Hugging Face hub (or idefics-9b-instruct); 18 GB in bfloat16
             python -m flamingo_jax.evaluate --config=configs/evaluate.py:paper --checkpoint=DIR/idefics_9b
                 --output=DIR/report --config.inference.beam_ends=best --config.data.coco=...
                 --task=okvqa,vqav2,textvqa,vizwiz,flickr30k,hateful_memes,coco        writes DIR/report/results.json
    EXPECTED the publishers' scores at 0, 4, 8, 16 and 32 shots (their model card; other prompts than ours, so no promise):
                 VQAv2          50.9 55.4 56.4 57.0 57.9        OKVQA          38.4 45.5 47.7 48.4 49.6
                 TextVQA        25.9 27.6 27.5 27.9 28.3        VizWiz         35.5 36.9 40.4 42.6 43.7
                 COCO           46.0 93.0 97.0 99.7 98.0        Flickr30k      27.3 59.7 61.9 64.5 64.4
                 HatefulMemes   51.7 50.7 51.0 50.9 49.8        COCO's training images are among what it was trained on

    COMMAND  python -m flamingo_jax.train --config=configs/idefics_9b.py:DIR --workdir=DIR/run
    EXPECTED further training from there: its resampler, cross-attention and new tokens on web pages and pairs.

8,929,677,072 weights: LLaMA-7B 6,738,415,616, CLIP-H 630,763,520 (without its last norm), resampler and 8 layers 1.56B, 2 new tokens.
"""

from ml_collections import config_dict

from configs import base, lm_open

LLAMA_7B = lm_open.MODELS["llama_7b"].options
LLAMA = {
    "9b": LLAMA_7B,
    "80b": {**LLAMA_7B, "num_layers": 80, "width": 8192, "num_heads": 64, "mlp_width": 22_016},
}


def shape(parts: config_dict.ConfigDict, size: str) -> None:
    """Gives the parts of a model the shapes of an IDEFICS.

    Args:
        parts: `config.model`, changed in place.
        size: "9b" or "80b".
    """
    lm = LLAMA[size]
    parts.vision = None
    parts.vit = base.vit(
        width=1280,
        num_layers=32,
        num_heads=16,
        mlp_width=5120,
        activation="gelu_exact",
        features="class_and_patches",  # 257 vectors, and no last norm
    )
    parts.lm.update(lm)
    parts.resampler.update(
        width=1280,
        head_dim=96,  # version 2 of the paper
        input_projection=False,
        num_time_embeddings=0,
        activation="relu",
        mlp_bias=False,
        qk_norm=True,
        final_norm=True,
    )
    parts.xattn.update(
        every=4,
        activation="swiglu",
        mlp_width=lm["mlp_width"],
        media="resampler",
        media_norm=False,
        norm="rms",
        norm_epsilon=1e-6,
        qk_norm=True,
    )
    parts.new_tokens = ("<fake_token_around_image>", "<image>")


def datasets(directory: str, *, pages: int, pairs: int) -> config_dict.ConfigDict:
    """Returns public stand-ins of its training sets: OBELICS and LAION, as data_pipelines writes them.

    Args:
        directory: where the records are, one directory for each dataset.
        pages: rows of web pages in a batch.
        pairs: rows of image-text pairs.
    """
    return config_dict.create(
        # Its text attends the image before it, never the next.
        obelics=base.dataset(
            "interleaved", f"{directory}/obelics", batch_size=pages, length=512, max_images=8, p_next=0.0
        ),
        laion=base.dataset("pairs", f"{directory}/laion", batch_size=pairs, length=64, weight=0.2, space_prefix=0.0),
    )


def get_config(data: str = "/data") -> config_dict.ConfigDict:
    """Returns the config.

    Args:
        data: directory of the converted model and of the datasets.
    """
    config = base.get_config()
    config.name = "idefics_9b"
    shape(config.model, "9b")
    config.initial = config.data.tokenizer = f"{data}/idefics_9b"
    config.data.update(image_size=224, image_fit="squash")
    config.data.datasets = datasets(data, pages=256, pairs=512)
    config.optimizer.learning_rate = 1e-5  # ours, like the batches: a tenth of what layers from scratch take (B.1.2)
    config.steps = 10_000
    config.mesh.update(data=16, model=4)
    return config
