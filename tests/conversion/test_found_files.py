"""Directories of models as they are found: odd tokenizers, several files, broken weights.

Each case changes one thing of a tiny LLaMA with a SentencePiece tokenizer. It is converted right,
or one error names what is wrong, and no output is left.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import mapping, published_tokenizer, publishers, values, writing
from flamingo_jax.conversion.publishers import Inputs
from flamingo_jax.conversion.reading import ConversionError, InMemory, open_weights
from flamingo_jax.core.paths import Path
from flamingo_jax.tokenizers.huggingface import HuggingFaceTokenizer
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece
from tests.conversion.test_hf_lm import byte_level

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

WIDTH, HEADS, MLP, ROWS = 8, 2, 12, 300
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "vocab_size": ROWS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHAPES = {
    "model.embed_tokens": (ROWS, WIDTH),
    "lm_head": (ROWS, WIDTH),
    "model.norm": (WIDTH,),
    "model.layers.0.input_layernorm": (WIDTH,),
    "model.layers.0.post_attention_layernorm": (WIDTH,),
    **{f"model.layers.0.self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"},
    "model.layers.0.mlp.gate_proj": (MLP, WIDTH),
    "model.layers.0.mlp.up_proj": (MLP, WIDTH),
    "model.layers.0.mlp.down_proj": (WIDTH, MLP),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n"
HEAD, TABLE, UP = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{name}.weight": torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory with config.json, model.safetensors and tokenizer.model."""
    directory = tmp_path_factory.mktemp("published")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    safetensors.save_file(weights(), directory / "model.safetensors")
    train_sentencepiece(["what is it? a cat"] * 4, directory / "tokenizer.model", 290, "bpe")
    return directory


@pytest.fixture
def found(published, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(published, tmp_path / "in")
    return tmp_path / "in"


def describe(place):
    return publishers.describe("hf_lm", Inputs(Path(place)))


def convert(place, output):
    """Converts; returns the opened export."""
    return open_checkpoint(writing.write(describe(place), output))


def put(directory, name, content):
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


def change_weights(directory, **changed):
    state = {**weights(), **{name.replace("__", "."): w for name, w in changed.items()}}
    kept = {name: w for name, w in state.items() if w is not None}
    safetensors.save_file(kept, directory / "model.safetensors")


def with_value(name, value, dtype=None):
    tensor = weights()[name].to(dtype) if dtype else weights()[name]
    tensor.view(-1)[3] = value
    return lambda d: change_weights(d, **{name.replace(".", "__"): tensor})


def fewer_rows(directory):
    few = {name.replace(".", "__"): weights()[name][:100].clone() for name in (HEAD, TABLE)}
    change_weights(directory, **few)


def half(directory):
    state = {name: w.half() for name, w in weights().items()}
    state[UP][0, 0] = float("inf")
    safetensors.save_file(state, directory / "model.safetensors")


def config(**fields):
    return lambda d: put(d, "config.json", {**CONFIG, **fields})


REFUSED = {
    "a NaN": (
        with_value("model.norm.weight", np.nan),
        r"1 weights are not finite .*norm\.weight: 1",
    ),
    "float16 with an Inf": (half, r"not finite \(NaN or Inf\): .*up_proj\.weight: 1 of 96 numbers"),
    "too large for float32": (
        with_value(UP, 1e300, torch.float64),
        r"1 numbers of .*up_proj\.weight \(float64\) are too large for float32",
    ),
    "no head": (lambda d: change_weights(d, lm_head__weight=None), r"\(1\): lm_head\.weight"),
    "a head that should be tied": (
        config(tie_word_embeddings=True),
        r"lm_head\.weight is model\.embed_tokens\.weight .*, but in the files they differ",
    ),
    "a weight too many": (
        lambda d: change_weights(d, model__extra=torch.zeros(2)),
        r"Only in the files \(1\): model\.extra",
    ),
    "GPTQ": (
        lambda d: change_weights(
            d,
            **{
                UP.replace(".", "__"): None,
                UP.replace(".", "__")[:-8] + "__qweight": torch.zeros(2, 2, dtype=torch.int32),
                UP.replace(".", "__")[:-8] + "__scales": torch.zeros(2, 2),
            },
        ),
        r"2 weights of the files are quantised \(GPTQ or AWQ\): .*up_proj\.qweight",
    ),
    "8 bits": (
        lambda d: change_weights(
            d,
            **{
                UP.replace(".", "__"): torch.zeros((MLP, WIDTH), dtype=torch.int8),
                UP.replace(".", "__")[:-8] + "__SCB": torch.zeros(MLP),
            },
        ),
        r"quantised \(bitsandbytes\): .*up_proj\.SCB",
    ),
    "an adapter's weights": (
        lambda d: change_weights(d, base__lora_A__weight=torch.zeros(2, 2)),
        r"adapters \(LoRA\): base\.lora_A\.weight",
    ),
    "fewer rows than pieces": (fewer_rows, r"has \d+ pieces, and the model's token table has 100"),
    "tiktoken": (
        lambda d: put(d, "tokenizer.model", "IQ== 0\nIg== 1\n" * 90),
        "tokenizer.model is a list of ranks of tiktoken",
    ),
    "a pointer of Git LFS": (
        lambda d: put(d, "tokenizer.model", "version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.model is a pointer of Git LFS",
    ),
    "weights that are a pointer of Git LFS": (
        lambda d: put(d, "model.safetensors", LFS),
        "model.safetensors is a pointer of Git LFS",
    ),
    "pickled weights that are a pointer of Git LFS": (
        lambda d: ((d / "model.safetensors").unlink(), put(d, "pytorch_model.bin", LFS)),
        "pytorch_model.bin is a pointer of Git LFS",
    ),
    "tokenizer.json is a pointer of Git LFS": (
        lambda d: ((d / "tokenizer.model").unlink(), put(d, "tokenizer.json", LFS)),
        "tokenizer.json is a pointer of Git LFS",
    ),
    "an empty tokenizer.model": (
        lambda d: put(d, "tokenizer.model", ""),
        "tokenizer.model is empty; expected SentencePiece's file",
    ),
    "a config with NaN": (
        config(rope_theta=float("nan")),
        r"does not describe a model that can be: rotary_base is nan; expected a number above 0",
    ),
    "weights in the place of the tokenizer": (
        lambda d: shutil.copy(d / "model.safetensors", d / "tokenizer.model"),
        "tokenizer.model is no model of SentencePiece",
    ),
    "no tokenizer": (
        lambda d: (d / "tokenizer.model").unlink(),
        "neither tokenizer.model nor tokenizer.json",
    ),
    "a damaged tokenizer.json": (
        lambda d: ((d / "tokenizer.model").unlink(), put(d, "tokenizer.json", "{}")),
        "tokenizer.json is no tokenizer of Hugging Face",
    ),
    **{
        f"tokenizer_config.json is {text}": (
            lambda d, text=text: put(d, "tokenizer_config.json", text),
            message,
        )
        for text, message in {
            "[1]": "tokenizer_config.json holds a list; expected an object",
            "null": "tokenizer_config.json holds a NoneType; expected an object",
            "{": "tokenizer_config.json is not valid JSON",
            '{"eos_token": 3}': "eos_token is 3; expected a string, or an object",
            '{"add_bos_token": "yes"}': "add_bos_token is 'yes'; expected true or false",
            '{"added_tokens_decoder": [1]}': "tokenizer_config.json is damaged",
        }.items()
    },
    "added_tokens.json is a list": (lambda d: put(d, "added_tokens.json", [1]), "holds a list"),
    "an id in added_tokens.json": (
        lambda d: put(d, "added_tokens.json", {"<x>": None}),
        "added_tokens.json is damaged",
    ),
    "ends": (
        lambda d: put(d, "generation_config.json", {"eos_token_id": ["2"]}),
        r"eos_token_id is \['2'\]; expected an id or a list of ids",
    ),
    "unknown scaling": (
        config(rope_scaling={"type": "dynamic", "factor": 2.0}),
        "type is 'dynamic'; supported is 'default' or 'linear' or 'llama3'",
    ),
    "scaling without its kind": (config(rope_scaling={"factor": 2.0}), "no kind of scaling"),
    "scaling of each layer": (
        config(rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2}}),
        "rotary positions has full_attention",
    ),
    "scaling that is text": (config(rope_scaling="linear"), "is 'linear'; expected an object"),
    "a part of the head is turned": (config(partial_rotary_factor=0.5), "factor is 0.5"),
    "another activation": (config(hidden_act="gelu"), "hidden_act is 'gelu'; supported is 'silu'"),
    "a width that is text": (config(hidden_size="8"), "config"),
    "heads that are a list": (config(num_attention_heads=[2]), "config"),
    "a billion layers": (config(num_hidden_layers=10**9), "describes 1000000000 layers, and the"),
    "no heads": (config(num_attention_heads=0), "config"),
    "quantization_config": (config(quantization_config={"bits": 4}), "quantization_config is"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_one_error_and_leaves_nothing(found, tmp_path, name):
    change, message = REFUSED[name]
    change(found)
    with pytest.raises(ConversionError, match=message):
        convert(found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_export_that_is_there_stays_when_its_replacement_is_refused(found, tmp_path):
    first = convert(found, tmp_path / "out")
    with_value("model.norm.weight", np.nan)(found)
    with pytest.raises(ConversionError, match="not finite"):
        convert(found, tmp_path / "out")
    again = open_checkpoint(tmp_path / "out")  # which verifies the hash
    np.testing.assert_array_equal(again.params["lm"]["embedding"], first.params["lm"]["embedding"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_all_weights_that_are_not_finite_are_named_after_one_pass():
    class Counting(InMemory):
        reads = 0

        def read(self, name):
            self.reads += 1
            return super().read(name)

    broken = np.array([1.0, np.nan, np.inf], np.float32)
    files = Counting({"a": broken, "b": np.ones(3), "c": -broken, "d": broken})
    with pytest.raises(ConversionError, match=r"2 weights .*: a: 2 of 3 numbers; c: 2 of 3"):
        values.Checked(files, ["b", "a", "c"]).read("a")  # d is skipped by the mapping
    assert files.reads == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_numbers_that_are_not_finite_are_counted_in_blocks(dtype, transposed, monkeypatch):
    monkeypatch.setattr(values, "_BLOCK", 10)
    array = np.arange(-30, 30).reshape(6, 10).astype(jnp.dtype(dtype))
    array = array.T if transposed else array
    assert values.count_not_finite(array) == 0
    array[1, 2], array[5, 3], array[3, 3] = np.nan, np.inf, -np.inf
    assert values.count_not_finite(array) == 3


# ---- files next to a model ----


def bin_of(seed):
    return lambda file: torch.save(weights(seed), file)


def safe(seed):
    return lambda file: safetensors.save_file(weights(seed), file)


def other(content):
    return lambda file: torch.save(content, file)


# the file names, in any order -> how each is made; seed 1 is the right model, 2 a wrong one
CHOSEN = {
    "PyTorch's form and the trainer's arguments": {
        "model.safetensors": safe(1),
        "pytorch_model.bin": bin_of(2),
        "training_args.bin": other({"lr": 1}),
    },
    "what a Trainer leaves": {
        "pytorch_model.bin": bin_of(1),
        "training_args.bin": other({"lr": 1}),
        "optimizer.pt": other({"state": 1}),
        "scheduler.pt": other({"step": 1}),
        "rng_state_0.pth": other({"cpu": 1}),
    },
    "a Trainer's files in other names": {
        "weights.bin": bin_of(1),
        "optimizer.bin": other({"s": 1}),
    },
    "Mistral's own form": {"model.safetensors": safe(1), "consolidated.safetensors": safe(2)},
    "an adapter": {"model.safetensors": safe(1), "adapter_model.safetensors": safe(2)},
    "an adapter next to PyTorch's form": {
        "pytorch_model.bin": bin_of(1),
        "adapter_model.safetensors": safe(2),
    },
    "another precision": {"model.safetensors": safe(1), "model.fp16.safetensors": safe(2)},
    "a file of macOS": {"a.safetensors": safe(1), "._a.safetensors": lambda file: file.touch()},
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_canonical_file_wins_and_the_others_are_named(found, name):
    (found / "model.safetensors").unlink()
    for file, make in CHOSEN[name].items():
        make(found / file)
    described = describe(found)
    np.testing.assert_array_equal(described.files.read(TABLE), weights(1)[TABLE])
    passed = sorted(file for file in list(CHOSEN[name])[1:] if not file.startswith("._"))
    assert bool(described.notes) == bool(passed)
    assert all(file in described.notes[0] for file in passed[:3])


def shards(directory, total, seed, stem="model"):
    """Writes `total` shards without an index; returns {weight: file}."""
    state, where = list(weights(seed).items()), {}
    for number in range(total):
        file = directory / f"{stem}-{number + 1:05}-of-{total:05}.safetensors"
        part = dict(state[number::total])
        safetensors.save_file(part, file)
        where |= dict.fromkeys(part, file.name)
    return where


def test_shards_without_an_index_are_one_model_if_none_is_missing(found):
    (found / "model.safetensors").unlink()
    where = shards(found, 3, 1)
    np.testing.assert_array_equal(describe(found).files.read(TABLE), weights(1)[TABLE])
    (found / where[TABLE]).unlink()
    with pytest.raises(ConversionError, match=r"1 of 3 shards .* are missing: N = 1\. Put"):
        describe(found)


def test_of_two_sets_of_shards_the_index_says_which(found):
    (found / "model.safetensors").unlink()
    where = shards(found, 2, 1)
    shards(found, 3, 2)
    with pytest.raises(ConversionError, match="holds 5 files of weights and no index"):
        describe(found)
    put(found, "model.safetensors.index.json", {"weight_map": where})
    described = describe(found)
    np.testing.assert_array_equal(described.files.read(TABLE), weights(1)[TABLE])
    assert "3 files next to the model are not read" in described.notes[0]
    (found / where[TABLE]).unlink()
    with pytest.raises(ConversionError, match="1 of 2 shards that .* are missing"):
        describe(found)


def test_an_adapter_alone_is_no_model(found):
    (found / "model.safetensors").rename(found / "adapter_model.safetensors")
    with pytest.raises(ConversionError, match="holds an adapter, .* Merge them first"):
        open_weights(found)


# ---- tokenizers ----


def test_a_file_of_weights_has_the_tokenizer_next_to_it(found, tmp_path):
    """Named as --input, the weights do not become tokenizer.model."""
    opened = convert(found / "model.safetensors", tmp_path / "out")
    assert opened.tokenizer.read_bytes() == (found / "tokenizer.model").read_bytes()


def test_tiktokens_file_next_to_tokenizer_json_is_passed_over(found, tmp_path):
    put(found, "tokenizer.model", "IQ== 0\nIg== 1\n" * 90)
    put(found, "tokenizer.json", byte_level(with_bos=True).to_str())
    put(found, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    assert "tokenizer.model is not used" in describe(found).notes[0]
    opened = convert(found, tmp_path / "out")
    assert opened.tokenizer.name == "tokenizer.json"


@pytest.mark.parametrize("fields", [None, {}, {"bos_token": None, "eos_token": None}])
def test_special_tokens_are_those_of_the_config_where_the_tokenizer_names_none(
    found, tmp_path, fields
):
    (found / "tokenizer.model").unlink()
    put(found, "tokenizer.json", byte_level(with_bos=True).to_str())
    config(bos_token_id=0, eos_token_id=1)(found)
    if fields is not None:
        put(found, "tokenizer_config.json", fields)
    loaded = load_tokenizer(convert(found, tmp_path / "out").tokenizer)
    assert (loaded.bos_id, loaded.eos_id, loaded.start_ids) == (0, 1, [0])


def test_special_tokens_may_be_objects(found, tmp_path):
    (found / "tokenizer.model").unlink()
    put(found, "tokenizer.json", byte_level(with_bos=False).to_str())
    said = {
        "add_bos_token": None,
        "bos_token": {"content": "<s>"},
        "eos_token": {"content": "</s>"},
    }
    put(found, "tokenizer_config.json", said)
    loaded = load_tokenizer(convert(found, tmp_path / "out").tokenizer)
    assert (loaded.bos_id, loaded.eos_id, loaded.start_ids) == (0, 1, [])


START, END = ROWS - 2, ROWS - 1


def chat(directory, form):
    """Two added tokens in one of the publishers' forms, the second of which ends a turn."""
    decoder = {
        str(number): {"content": token, "special": True}
        for number, token in ((START, "<|im_start|>"), (END, "<|im_end|>"))
    }
    said = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    if form == "added_tokens.json":
        put(directory, form, {"<|im_start|>": START, "<|im_end|>": END})
    elif form == "tokenizer_config.json":
        said["added_tokens_decoder"] = decoder
    else:
        (directory / "tokenizer.model").unlink()
        content = json.loads(byte_level(with_bos=True).to_str())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in decoder.items():
            content["added_tokens"].append({"id": int(number), **flags, **token})
        put(directory, form, content)
    put(directory, "tokenizer_config.json", said)
    put(directory, "generation_config.json", {"eos_token_id": [2, END]})


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_added_tokens_and_several_ends_reach_generation(found, tmp_path, form):
    chat(found, form)
    opened = convert(found, tmp_path / "out")
    text = "<|im_start|>user hi<|im_end|>"
    prompts = load_tokenizer(opened.tokenizer, (), in_prompts=True)
    ids = prompts.encode(text)
    assert (ids[0], ids[-1]) == (START, END)
    assert prompts.vocab_size == ROWS and set(prompts.markers.ends) == {2, END}
    assert prompts.decode([START]) == "<|im_start|>"
    assert prompts.decode(ids).startswith("<|im_start|>user hi")
    # The text of a document cannot end it.
    document = load_tokenizer(opened.tokenizer, ()).encode(text)
    assert document[0] == START and END not in document
    # New tokens come after all rows.
    assert load_tokenizer(opened.tokenizer, ("<EOC>",)).eoc_id == ROWS


def test_decoding_stops_at_each_of_the_ends(found, tmp_path):
    from flamingo_jax.inference.model import Flamingo

    chat(found, "added_tokens.json")
    convert(found, tmp_path / "out")
    engine = Flamingo.load(tmp_path / "out").engine
    assert set(engine.stop) == {2, END}


def test_added_tokens_and_ends_without_a_row_are_named(found):
    put(found, "added_tokens.json", {"[PAD]": ROWS})
    put(found, "generation_config.json", {"eos_token_id": [2, ROWS + 1, -1]})
    described = describe(found)
    assert described.notes == (
        f"1 added tokens have no row in the token table: {ROWS}.",
        f"1 ids that end an answer have no row in the token table: {ROWS + 1}.",
    )
    assert "[PAD]" not in described.markers.in_text and described.markers.ends == (2,)


def test_a_tokenizer_that_is_damaged_in_an_export_is_one_error(found, tmp_path):
    from flamingo_jax.checkpoint.arrays import CheckpointError
    from flamingo_jax.inference.model import Flamingo

    convert(found, tmp_path / "out")
    put(tmp_path / "out", "tokenizer.model", "IQ== 0\n")
    with pytest.raises(
        CheckpointError, match=r"is damaged: tokenizer\.model: cut off: got 7 bytes"
    ):
        Flamingo.load(tmp_path / "out")
    with pytest.raises(ValueError, match="holds a list; expected an object"):
        put(tmp_path, "tokenizer_config.json", [1])
        put(tmp_path, "tokenizer.json", byte_level(with_bos=True).to_str())
        HuggingFaceTokenizer.load(tmp_path)


# ---- open_clip's files without a config ----


def open_clip_weights(width, layers, mlp):
    """The image tower of open_clip, with names and shapes as in its files."""
    block = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (mlp, width),
        "mlp.c_fc.bias": (mlp,),
        "mlp.c_proj.weight": (width, mlp),
        "mlp.c_proj.bias": (width,),
        **{f"{norm}.{end}": (width,) for norm in ("ln_1", "ln_2") for end in ("weight", "bias")},
    }
    shapes = {
        "conv1.weight": (width, 3, 14, 14),
        "class_embedding": (width,),
        "positional_embedding": (5, width),
        "proj": (width, 4),
        **{
            f"{norm}.{end}": (width,)
            for norm in ("ln_pre", "ln_post")
            for end in ("weight", "bias")
        },
        **{
            f"transformer.resblocks.{i}.{name}": shape
            for i in range(layers)
            for name, shape in block.items()
        },
    }
    return {f"visual.{name}": torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("sizes", "heads"), [((384, 12, 1536), 6), ((1280, 32, 5120), 16), ((1408, 40, 6144), 16)]
)
def test_the_heads_of_a_published_open_clip_are_looked_up(monkeypatch, sizes, heads):
    """H/14 has 16 heads of 80 and g/14 has 16 of 88; heads of 64 load too, and are wrong."""
    from flamingo_jax.conversion import open_clip

    width, layers, mlp = sizes
    names = {
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.positional_embedding": (257, width),
        **{
            f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (mlp, width) for i in range(layers)
        },
    }

    class Described(InMemory):
        def __init__(self):
            pass

        def names(self):
            return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in names.items()}

    made = open_clip.config_of_weights(Described(), "gelu_exact", features="patches")
    assert (made.num_heads, made.width, made.mlp_width) == (heads, width, mlp)


def test_the_heads_of_another_open_clip_are_asked_for(tmp_path):
    safetensors.save_file(open_clip_weights(16, 1, 64), tmp_path / "open_clip_model.safetensors")
    options = {"activation": "gelu_exact"}

    def run(**more):
        return publishers.describe("open_clip", Inputs(Path(tmp_path), options=options | more))

    with pytest.raises(ConversionError, match="No published model has width 16.*option=heads="):
        run()
    with pytest.raises(ConversionError, match="heads is 'many'; expected a number"):
        run(heads="many")
    with pytest.raises(ConversionError, match="num_heads|divide"):
        run(heads="3")
    assert run(heads="4").model.vit.num_heads == 4
    mapping.plan(run(heads="4"))
    put(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"layers": 1}}})
    with pytest.raises(ConversionError, match="heads was given, but .* says it: leave it out"):
        publishers.describe("open_clip", Inputs(Path(tmp_path), options={"heads": "4"}))


@pytest.mark.parametrize("source", ["clip", "timm_vit", "idefics", "open_clip"])
@pytest.mark.parametrize("content", [[1], None, {"vision_config": 3}, {"architecture": 3}])
def test_an_odd_config_of_any_source_is_one_error(found, source, content):
    put(found, "config.json", content)
    put(found, "open_clip_config.json", content)
    with pytest.raises(ConversionError):
        mapping.plan(publishers.describe(source, Inputs(Path(found))))


def test_a_number_of_layers_that_is_text_is_one_error(found):
    conversion = describe(found)
    # in tests the class checks its types, outside it does not
    object.__setattr__(conversion.model.lm, "num_layers", "1")
    with pytest.raises(ConversionError, match="a model that cannot be: TypeError"):
        mapping.plan(conversion)


def test_the_tokenizer_of_a_larger_model_is_loaded_with_its_new_tokens(found):
    published = published_tokenizer.load(Path(found), rows=ROWS)
    markers = dataclasses.replace(published.markers, vocab_size=ROWS + 5)
    larger = published.in_model(markers, ("<EOC>", "<image>"))
    assert larger.loaded.id("<image>") == ROWS + 6 and published.loaded.vocab_size == ROWS
