"""Memory per chip, and the largest buffers of a program that does not fit."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.sharding import PartitionSpec as P

from flamingo_jax.planning import memory, topologies

NOTES = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 add.1 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 4096, parameter 0, shape |f32[1024]| at ShapeIndex {}:
 value: <3 weights @0> (size=4096,offset=0): f32[1024]{0:T(1024)}
allocation 2: size 1024, output shape is |f32[256]|, maybe-live-out:
 value: <4 out @0> (size=1024,offset=0): f32[256]{0:T(256)}
allocation 3: size 65536, color 1, preallocated-temp:
 value: <5 in_vmem @0> (size=65536,offset=0): f32[16384]{0:T(1024)S(1)}
allocation 4: size 24576, preallocated-temp:
 value: <6 loop{1} (phi) @0> (size=16384,offset=0): f32[4096]{0:T(1024)}
 value: <7 fusion.1 @0> (size=16384,offset=0): f32[4096]{0:T(1024)}
 value: <8 fusion.2 @0> (size=8192,offset=16384): bf16[4096]{0:T(1024)}
"""
TEXT = """ENTRY %m (p: f32[8]) -> f32[8] {
  ROOT %fusion.1 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(step)/lm/mlp"}
}
"""


def test_buffer_assignment_is_read():
    found, buffers = memory.read_assignment(NOTES, TEXT, most=3)
    assert (found.arguments, found.outputs, found.temporaries) == (4096, 1024, 24576)
    assert found.total == 29696
    assert [(b.name, b.op_name, b.type, b.num_bytes) for b in buffers] == [
        ("fusion.1", "jit(step)/lm/mlp", "f32[4096]", 16384),
        ("fusion.2", "", "bf16[4096]", 8192),
        ("weights", "", "f32[1024]", 4096),
    ]


@pytest.mark.tpu_compiler
def test_donated_arguments_count_once(small_slice):
    x = small_slice.abstract((4096, 4096), "data", "model")  # 2 MiB on each of 16 chips
    kept = memory.of_compiled(small_slice.compile(lambda x: x * 2, x))
    given = memory.of_compiled(small_slice.compile(lambda x: x * 2, x, donate_argnums=0))
    size = 4096 * 4096 * 2 // 16
    assert (kept.arguments, given.arguments) == (size, size)
    assert size <= kept.outputs < 1.01 * size and given.outputs < 0.01 * size
    assert kept.total - given.total == pytest.approx(size, rel=0.01)


@pytest.mark.tpu_compiler
def test_refused_program_names_its_largest_buffer(small_slice, tmp_path):
    def too_large(x):
        with jax.named_scope("lm"):
            saved = jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), x), x, None, length=80)[1]
        return jnp.sum(saved * saved[::-1], axis=0)

    # `saved` is 80 times 512 MiB.
    lowered = jax.jit(too_large).lower(small_slice.abstract((16384, 16384), *P()))
    with topologies.uncached():
        with pytest.raises(jax.errors.JaxRuntimeError) as error:
            lowered.compile()
        assert memory.is_too_large(error.value)
        assert not memory.is_too_large(ValueError("RESOURCE_EXHAUSTED"))
        found, buffers = memory.of_refused(lowered, epath.Path(tmp_path))
    assert found.total > small_slice.topology.kind.hbm_bytes
    assert (buffers[0].num_bytes, buffers[0].type) == (80 * 16384**2 * 2, "bf16[80,16384,16384]")
    assert "lm" in buffers[0].op_name
