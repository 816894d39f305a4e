"""Cycles, FLOPs and overlap of small programs, compiled for slices of TPU v4 without a TPU."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from flamingo_jax.planning import cost, hlo, matmul

pytestmark = pytest.mark.tpu_compiler
CLOCK = 1.05e9


def cycles(text, pattern):
    """The sum of the estimates of the lines that match the pattern."""
    return sum(
        int(n)
        for line in text.splitlines()
        if re.search(pattern, line)
        for n in re.findall(r'"estimated_cycles":"(\d+)"', line)
    )


def test_loop_counts_its_body_by_its_trips(small_slice):
    def run(length):
        def many(x, w):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

        x, w = small_slice.abstract((1024, 1024)), small_slice.abstract((length, 1024, 1024))
        return small_slice.compile(many, x, w)

    five, seven = run(5), run(7)
    text = five.as_text()
    (body,) = re.findall(r"body=%([\w.\-]+)", text)
    in_body = cycles(text.split(f"\n%{body} ")[1].split("\n}")[0], "")
    whole = cycles(text, "")
    assert in_body > 0
    found = small_slice.analyse(five)
    assert found.compute_seconds == pytest.approx((whole + 4 * in_body) / CLOCK)
    assert found.flops == 5 * 2 * 1024**3
    assert small_slice.analyse(seven).flops == 7 * 2 * 1024**3
    assert found.rows == {} and found.step_seconds == found.compute_seconds


def test_nested_loops_multiply(small_slice):
    def nested(x, w):
        inner = lambda x, _: (jnp.tanh(x @ w), None)
        return jax.lax.scan(
            lambda x, _: (jax.lax.scan(inner, x, None, length=3)[0] + 1, None), x, None, length=4
        )[0]

    x = small_slice.abstract((512, 512))
    assert small_slice.analyse(small_slice.compile(nested, x, x)).flops == 4 * 3 * 2 * 512**3


def test_gradient_needs_twice_the_forward(small_slice):
    def loss(w, x):
        return jnp.sum(jnp.square((x @ w).astype(jnp.float32)))

    w, x = small_slice.abstract((512, 256)), small_slice.abstract((1024, 512))
    found = small_slice.analyse(small_slice.compile(jax.grad(loss, argnums=(0, 1)), w, x))
    assert found.flops == 3 * 2 * 1024 * 512 * 256


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (
            lambda a, b: jnp.einsum("bij,bjk->bik", a, b),
            ((8, 128, 256), (8, 256, 384)),
            2 * 8 * 128 * 256 * 384,
        ),
        (
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            ((2, 10, 10, 128), (3, 3, 128, 256)),
            2 * 2 * 8 * 8 * 9 * 128 * 256,
        ),
        (
            lambda x, w: jax.lax.conv_general_dilated(
                x,
                w,
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            ),
            ((2, 10, 10, 512), (3, 3, 128, 512)),
            2 * 2 * 8 * 8 * 9 * 128 * 512,
        ),
    ],
    ids=["batched matmul", "convolution", "grouped convolution"],
)
def test_flops_of_what_the_compiler_rewrites(small_slice, function, shapes, expected):
    compiled = small_slice.compile(function, *(small_slice.abstract(shape) for shape in shapes))
    assert small_slice.analyse(compiled).flops == expected


def test_padding_multiplies_nothing():
    # "SAME": 10 positions of a kernel of 3; two of the 30 elements are over padding.
    text = "ENTRY %m (x: f32[1,10,1], w: f32[3,1,1]) -> f32[1,10,1] {\n"
    text += "  %x = f32[1,10,1]{2,1,0} parameter(0)\n  %w = f32[3,1,1]{2,1,0} parameter(1)\n"
    text += "  ROOT %c = f32[1,10,1]{2,1,0} convolution(%x, %w), window={size=3 pad=1_1}"
    text += ", dim_labels=b0f_0io->b0f\n}"
    entry = hlo.parse(text).computations["m"]
    assert matmul.flops(entry, entry.root) == 2 * (10 * 3 - 2)


def test_parts_come_from_the_names(small_slice):
    def step(x, w):
        def forward(x):
            for name in ("vision", "resampler", "xattn", "lm"):
                with jax.named_scope(name):
                    x = jnp.tanh(x @ w)
            return x

        y, back = jax.vjp(forward, x)
        (gradient,) = back(x)
        with jax.named_scope("optimizer"):
            return y, gradient @ w

    x = small_slice.abstract((1024, 1024))
    found = small_slice.analyse(small_slice.compile(step, x, x))
    assert {"vision", "resampler", "xattn", "lm_forward", "backward", "optimizer"} <= set(
        found.parts
    )
    assert found.parts["vision"] == pytest.approx(found.parts["xattn"], rel=0.5)
    assert found.parts["backward"] > 3 * found.parts["vision"]


@pytest.mark.parametrize(
    ("op_name", "part"),
    [
        ("jit(step)/optimizer/transpose", "optimizer"),
        ("jit(step)/jvp(flamingo)/vision/stage0/conv", "vision"),
        ("jit(step)/jvp(flamingo)/lm/while/body/xattn/block/dot_general", "xattn"),
        ("jit(step)/jvp(flamingo)/lm/while/body/block/dot_general", "lm_forward"),
        ("jit(step)/transpose(jvp(flamingo))/lm/block/dot_general", "backward"),
        (
            "jit(step)/transpose(jvp(flamingo))/checkpoint/rematted_computation/lm/dot_general",
            "recomputation",
        ),
        ("jit(step)/jvp(encode)/flamingo/media/dot_general", "resampler"),
        ("jit(step)/add", "other"),
        ("jit(step)/vision/attention/transpose", "vision"),
        ("jit(step)/jvp(flamingo)/vision/attention/transpose", "vision"),
    ],
)
def test_part_of(op_name, part):
    assert cost.part_of(op_name) == part


PAIR = "(bf16[64,1024]{1,0}, bf16[64,1024]{1,0})"
OVERLAP = f"""ENTRY %m (x: bf16[64,1024], y: bf16[8]) -> bf16[8] {{
  %x = bf16[64,1024]{{1,0}} parameter(0)
  %y = bf16[8]{{0}} parameter(1)
  %s1 = {PAIR} collective-permute-start(%x), source_target_pairs=PAIRS
  %a = bf16[8]{{0}} fusion(%y), kind=kLoop, backend_config={{"estimated_cycles":"OVERLAPPING"}}
  %d1 = bf16[64,1024]{{1,0}} collective-permute-done(%s1)
  ROOT %b = bf16[8]{{0}} fusion(%a), kind=kLoop, backend_config={{"estimated_cycles":"1050"}}
}}
"""
SECONDS = 64 * 1024 * 2 / 45e9  # 2.9 microseconds: 3058 cycles


@pytest.mark.parametrize(
    ("overlapping", "exposed"),
    [(1050, SECONDS - 1e-6), (10500, 0.0), (0, SECONDS)],
    ids=["partly", "wholly", "not at all"],
)
def test_communication_is_exposed_beyond_the_overlapping_compute(small_slice, overlapping, exposed):
    pairs = "{" + ",".join(f"{{{i},{(i + 4) % 16}}}" for i in range(12)) + "}"  # one step along z
    text = OVERLAP.replace("PAIRS", pairs).replace("OVERLAPPING", str(overlapping))
    found = cost.analyse(text, small_slice.mesh, small_slice.topology)
    assert found.communication_seconds == pytest.approx(SECONDS)
    assert found.exposed_seconds == pytest.approx(exposed)
    assert found.step_seconds == pytest.approx(exposed + overlapping / CLOCK + 1e-6)


def test_collectives_that_share_links_wait_for_each_other(small_slice):
    pairs = "{" + ",".join(f"{{{i},{i + 4}}}" for i in range(12)) + "}"
    again = OVERLAP.splitlines()
    again.insert(4, again[3].replace("%s1", "%s2"))
    again.insert(7, again[6].replace("%d1", "%d2").replace("%s1", "%s2"))
    text = "\n".join(again).replace("PAIRS", pairs).replace("OVERLAPPING", "1050")
    same_way = cost.analyse(text, small_slice.mesh, small_slice.topology)
    assert same_way.exposed_seconds == pytest.approx(2 * SECONDS - 1e-6)
    back = "{" + ",".join(f"{{{i + 4},{i}}}" for i in range(12)) + "}"
    other_way = cost.analyse(text.replace(pairs, back, 1), small_slice.mesh, small_slice.topology)
    # The two directions of a link count as two links.
    assert other_way.exposed_seconds == pytest.approx(SECONDS - 1e-6)


# A gather that goes on in the fusions of a loop, as libtpu writes it for v5e: its start, these
# fusions and its done have one channel.
GATHER = """all-gather(%w), channel_id=7, replica_groups=[1,16]<=[16], dimensions={0}"""
THROUGH_A_LOOP = f"""%started (w: bf16[64,1024]) -> bf16[1024,1024] {{
  %w = bf16[64,1024]{{1,0}} parameter(0)
  %g = bf16[1024,1024]{{1,0}} {GATHER}
  ROOT %c = bf16[1024,1024]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%continued (w: bf16[64,1024]) -> bf16[8] {{
  %w = bf16[64,1024]{{1,0}} parameter(0)
  %g = bf16[1024,1024]{{1,0}} {GATHER}
  ROOT %c = bf16[8]{{0}} bitcast(%g)
}}
%ended (w: bf16[64,1024]) -> bf16[1024,1024] {{
  %w = bf16[64,1024]{{1,0}} parameter(0)
  %g = bf16[1024,1024]{{1,0}} {GATHER}
  ROOT %c = bf16[1024,1024]{{1,0}} custom-call(%g), custom_call_target="AsyncCollectiveDone"
}}
%body (p: (s32[], bf16[64,1024])) -> (s32[], bf16[64,1024]) {{
  %p = (s32[], bf16[64,1024]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = bf16[64,1024]{{1,0}} get-tuple-element(%p), index=1
  %f = bf16[8]{{0}} fusion(%w), calls=%continued, backend_config={{"estimated_cycles":"1050"}}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], bf16[64,1024]) tuple(%next, %w)
}}
%condition (p: (s32[], bf16[64,1024])) -> pred[] {{
  %p = (s32[], bf16[64,1024]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(TRIPS)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}
ENTRY %m (w: bf16[64,1024]) -> bf16[1024,1024] {{
  %w = bf16[64,1024]{{1,0}} parameter(0)
  %s = bf16[1024,1024]{{1,0}} fusion(%w), kind=kCustom, calls=%started
  %zero = s32[] constant(0)
  %both = (s32[], bf16[64,1024]) tuple(%zero, %w)
  %loop = (s32[], bf16[64,1024]) while(%both), condition=%condition, body=%body
  ROOT %d = bf16[1024,1024]{{1,0}} fusion(%w), kind=kCustom, calls=%ended
}}
"""


@pytest.mark.parametrize("trips", [1, 2, 1000])
def test_a_gather_that_goes_on_in_a_loop_is_one_gather(small_slice, trips):
    text = THROUGH_A_LOOP.replace("TRIPS", str(trips))
    found = cost.analyse(text, small_slice.mesh, small_slice.topology)
    ((row, sums),) = found.rows.items()
    assert (row.kind, row.overlapped, sums.count) == ("all-gather", True, 1)
    assert sums.num_bytes == 15 * 64 * 1024 * 2
    assert found.compute_seconds == pytest.approx(trips * 1e-6)
    assert sums.exposed == pytest.approx(max(0.0, sums.seconds - trips * 1e-6))


def test_matmul_faster_than_the_chip_is_implausible(small_slice):
    x = small_slice.abstract((4096, 4096))
    text = small_slice.compile(lambda a, b: a @ b, x, x).as_text()
    plausible = cost.analyse(text, small_slice.mesh, small_slice.topology)
    assert not plausible.implausible and not plausible.unestimated
    least = 2 * 4096**3 / 2.75e14 * CLOCK
    fast = re.sub(r'"estimated_cycles":"\d+"', f'"estimated_cycles":"{int(least)}"', text)
    found = cost.analyse(fast, small_slice.mesh, small_slice.topology)
    ((efficiency, seconds),) = found.implausible.values()
    assert efficiency == pytest.approx(1.0, abs=1e-4)
    assert seconds == pytest.approx(least / CLOCK, rel=1e-4)
    without = re.sub(r'"estimated_cycles":"\d+",', "", text)
    found = cost.analyse(without, small_slice.mesh, small_slice.topology)
    assert found.unestimated == 2 * 4096**3


def test_windowed_and_synchronous_collectives_of_a_sharded_layer(cube):
    """A Megatron layer with the sequence split over model.

    x is gathered before the first matmul, and the sum is scattered after the second.
    """

    def layer(x, up, down):
        whole = jax.lax.all_gather(x, "model", axis=0, tiled=True)
        partial = jnp.tanh(whole @ up) @ down
        return jax.lax.psum_scatter(partial, "model", scatter_dimension=0, tiled=True)

    shapes = (
        ((1024, 1024), P("model")),
        ((1024, 4096), P(None, "model")),
        ((4096, 1024), P("model")),
    )
    args = [cube.abstract(shape, *spec) for shape, spec in shapes]
    found = cube.mapped(layer, tuple(spec for _, spec in shapes), P("model"), *args)
    totals = {row.kind: sums.num_bytes for row, sums in found.rows.items()}
    size = 1024 * 1024 * 2
    assert totals == {"all-gather": size * 15 // 16, "reduce-scatter": size * 15 // 16}
    assert {(row.axis, row.torus) for row in found.rows} == {("model", (0, 1))}
    assert found.flops == 2 * 2 * 1024 * 1024 * 4096 // 16
    assert found.exposed_seconds == pytest.approx(2 * size * 15 / 16 / (4 * 45e9))
