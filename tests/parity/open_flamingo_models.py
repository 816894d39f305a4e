"""OpenFlamingo's `Flamingo` class on small random towers, and its files as users have them."""

import dataclasses
import functools
import json

import numpy as np

from flamingo_jax.conversion import publishers
from flamingo_jax.core.paths import Path
from tests.parity import stand_ins


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large a model is.

    Its gated layers and its perceiver have the heads, the depth and the latents of all that were
    released.

    Attributes:
        pieces: of the tokenizer; the new tokens follow.
        table: rows of the language model's published table, >= pieces.
        width: of the language model.
        num_heads: of the language model.
        num_layers: of the language model.
        length: positions of the language model.
        vision_width: of the CLIP tower.
        vision_layers: of the CLIP tower.
        vision_heads: of the CLIP tower.
        vision_mlp: hidden width of the CLIP tower.
        image_size: in pixels.
        patch_size: in pixels.
    """

    pieces: int = 50
    table: int = 64
    width: int = 32
    num_heads: int = 4
    num_layers: int = 4
    length: int = 64
    vision_width: int = 32
    vision_layers: int = 2
    vision_heads: int = 2
    vision_mlp: int = 48
    image_size: int = 16
    patch_size: int = 8


TINY = Sizes()
PIECES, IMAGE_SIZE = TINY.pieces, TINY.image_size
EOC, IMAGE, PAD = PIECES, PIECES + 1, PIECES + 2


@dataclasses.dataclass(frozen=True)
class Model:
    """A reference: the torch module, and its language model's config and weights as published."""

    flamingo: object
    lm: object
    vision: object
    sizes: Sizes

    def checkpoint(self):
        """{name: tensor} as they publish it: what is trained, and the token tables."""
        kept = ("perceiver.", "lang_encoder.")
        state = {
            name: leaf.cpu().clone()
            for name, leaf in self.flamingo.state_dict().items()
            if name.startswith(kept)
        }
        frozen = (
            ".decoder_layer.",
            "old_decoder_blocks",
            "gated_cross_attn_layers",
            "norm_f",
            "final_layer_norm",
        )
        return {
            name: leaf
            for name, leaf in state.items()
            if not any(part in name for part in frozen) and name != "lang_encoder.model.norm.weight"
        }


FAMILIES = ("mpt", "gpt_neox", "llama", "opt")


def _lm(family, sizes):
    import transformers

    width, heads, layers, table = sizes.width, sizes.num_heads, sizes.num_layers, sizes.table
    common = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": sizes.length,
    }
    if family == "mpt":  # its table is longer than its tokenizer, as in the real one
        config = transformers.MptConfig(
            d_model=width,
            n_heads=heads,
            n_layers=layers,
            vocab_size=table,
            max_seq_len=sizes.length,
        )
        return transformers.MptForCausalLM(config), "transformer.blocks"
    if family == "gpt_neox":
        config = transformers.GPTNeoXConfig(
            **common, intermediate_size=4 * width, vocab_size=table, tie_word_embeddings=False
        )
        return transformers.GPTNeoXForCausalLM(config), "gpt_neox.layers"
    if family == "llama":
        config = transformers.LlamaConfig(
            **common,
            intermediate_size=width * 3 // 2,
            vocab_size=sizes.pieces,
            tie_word_embeddings=False,
        )
        return transformers.LlamaForCausalLM(config), "model.layers"
    config = transformers.OPTConfig(
        **common, ffn_dim=4 * width, vocab_size=table, word_embed_proj_dim=width, pad_token_id=1
    )
    return transformers.OPTForCausalLM(config), "model.decoder.layers"


def _randomise(module, seed):
    """No weight keeps the value that it is born with: norms, biases and gates count."""
    import torch

    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, leaf in module.named_parameters():
            noise = torch.randn(leaf.shape, generator=generator, device=device)
            if name.endswith("_gate"):
                leaf.copy_(0.6 + 0.1 * noise)
            elif leaf.ndim == 1 and name.endswith("weight"):
                leaf.copy_(1 + 0.2 * noise)
            elif leaf.ndim == 1:
                leaf.copy_(0.1 * noise)
            else:
                leaf.copy_(
                    noise * (0.5 if "embed" in name or "wte" in name else leaf[0].numel() ** -0.5)
                )


@functools.cache
def build(family, every, new_tokens=3, sizes=TINY, device="cpu"):
    """Returns the `Model` of a family of language models, a gated layer every `every` blocks."""
    import torch

    with torch.device(device):
        return _build(family, every, new_tokens, sizes)


def _build(family, every, new_tokens, sizes):
    import torch
    import transformers

    torch.set_num_threads(1)
    of = stand_ins.load("open_flamingo.src.flamingo")
    mixin = stand_ins.load("open_flamingo.src.flamingo_lm").FlamingoLMMixin
    extend_instance = stand_ins.load("open_flamingo.src.utils").extend_instance
    vision = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=sizes.vision_mlp,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=sizes.vision_heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            hidden_act="quick_gelu",
        )
    ).eval()
    _randomise(vision, 1)
    lm, layers = _lm(family, sizes)
    _randomise(lm, 2)
    kept, _ = _lm(family, sizes)
    kept.load_state_dict(lm.state_dict())

    class Visual(torch.nn.Module):
        """What the open_clip of their training gave: (pooled, patches before the last norm)."""

        def __init__(self):
            super().__init__()
            self.tower = vision  # a part of the model, so that `to` moves and casts it

        def forward(self, pixels):
            return None, self.tower(pixels).last_hidden_state[:, 1:]

    class Encoder:
        visual = Visual()

    extend_instance(lm, mixin)
    lm.set_decoder_layers_attr_name(layers)
    lm.resize_token_embeddings(sizes.pieces + new_tokens, mean_resizing=False)
    eoc, image = sizes.pieces, sizes.pieces + 1
    flamingo = of.Flamingo(
        Encoder, lm, eoc, image, vis_dim=sizes.vision_width, cross_attn_every_n_layers=every
    ).eval()
    _randomise(flamingo.perceiver, 3)
    _randomise(lm.gated_cross_attn_layers, 4)
    _randomise(lm.get_input_embeddings(), 5)
    return Model(flamingo, kept, vision, sizes)


def write(model, directory, checkpoint=None):
    """Writes checkpoint.pt and the two towers as their publishers do; returns the `Inputs`.

    The tokenizer is stored with the language model.
    """
    import torch

    lm, vision = directory / "lm", directory / "vision"
    torch.save(
        model.checkpoint() if checkpoint is None else checkpoint, directory / "checkpoint.pt"
    )
    model.lm.save_pretrained(lm)
    model.vision.save_pretrained(vision)
    words = [f"w{i}" for i in range(model.sizes.pieces - 2)]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(["<|endoftext|>", "<unk>", *words])},
            "unk_token": "<unk>",
        },
    }
    (lm / "tokenizer.json").write_text(json.dumps(content))
    (lm / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "add_bos_token": False}
        )
    )
    return publishers.Inputs(Path(directory) / "checkpoint.pt", Path(lm), Path(vision))


def pixels(frames):
    """Frames uint8 [B, N, S, S, 3] as their `vision_x` [B, N, 1, 3, S, S], normalised for CLIP."""
    import torch

    mean, std = (
        np.array([0.48145466, 0.4578275, 0.40821073]),
        np.array([0.26862954, 0.26130258, 0.27577711]),
    )
    x = (frames / 255 - mean) / std
    return torch.tensor(x.transpose(0, 1, 4, 2, 3)[:, :, None], dtype=torch.float32)
