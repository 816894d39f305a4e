"""A dataset of text without images among Flamingo's, on a mesh."""

import pytest

from tests.distributed import meshes
from tests.distributed.test_step_on_meshes import assert_same_step
from tests.training import small


def batches(num_shards):
    """Returns batches of pages, and of text in the place of the pairs."""
    text = small.batch(rows=8, length=16, images=0, seed=3)
    return {**meshes.batches(num_shards), "pairs": text}


@pytest.mark.slow
def test_a_step_with_text_is_the_same_on_a_mesh():
    one, many = (
        meshes.step_on.__wrapped__(*sizes, made=batches).first for sizes in ((1, 1, 1), (2, 2, 2))
    )
    assert_same_step(many.gradients, many.weights, many.metrics, one)
