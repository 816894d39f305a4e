"""The rank of the first right entry is the one that sorting gives."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.evaluation.ranks import ranks, recall


def by_sorting(queries, gallery, query_groups, gallery_groups):
    """Sorts the whole gallery for each query; equal entries keep their order."""
    found = []
    for query, group in zip(queries, query_groups, strict=True):
        order = np.argsort(-(gallery @ query), kind="stable")
        found.append(
            next(place for place, entry in enumerate(order) if gallery_groups[entry] == group)
        )
    return found


@hypothesis.given(
    seed=st.integers(0, 10**6),
    num_queries=st.integers(1, 9),
    block=st.sampled_from([None, 1, 2, 5]),
)
def test_it_is_what_sorting_gives(seed, num_queries, block):
    """Embeddings are small integers, so that products are exact and often equal.

    A query has several right entries.
    """
    rng = np.random.default_rng(seed)
    queries = rng.integers(-1, 2, (num_queries, 3)).astype(np.float32)
    gallery = rng.integers(-1, 2, (12, 3)).astype(np.float32)
    gallery_groups = np.concatenate([np.arange(4), rng.integers(0, 4, 8)])
    query_groups = rng.integers(0, 4, num_queries)
    found = ranks(queries, gallery, query_groups, gallery_groups, block=block)
    assert found.tolist() == by_sorting(queries, gallery, query_groups, gallery_groups)


def test_of_equal_entries_the_first_in_the_gallery_comes_first():
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
    query = np.array([[1.0, 0.0]], np.float32)
    found = [int(ranks(query, gallery, np.array([group]), np.arange(4))[0]) for group in range(4)]
    assert found == [0, 1, 3, 2]


def test_recall_counts_queries_with_a_rank_below_k():
    found = np.array([0, 3, 1, 9, 10])
    assert [recall(found, k) for k in (1, 2, 5, 10)] == [0.2, 0.4, 0.6, 0.8]


def test_a_query_without_a_right_entry_is_refused():
    one = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="no entry of the gallery is of group 7"):
        ranks(one, one, np.array([7]), np.array([0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 4)], ids=["all", "one"])
@pytest.mark.parametrize("side", [0, 1], ids=["queries", "gallery"])
def test_embeddings_that_are_not_finite_have_no_rank(side, rows, bad):
    """No comparison with NaN is true: nothing would come before the right entry."""
    both = [np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32)]
    both[side][rows, 2] = bad
    one = np.arange(8)
    with pytest.raises(NonFiniteError, match=f"Embeddings of .*{('queries', 'gallery')[side]}"):
        ranks(*both, one, one)


def test_a_cosine_that_overflows_has_no_rank():
    large, one = np.full((2, 2), 3e38, np.float32), np.arange(2)
    with pytest.warns(RuntimeWarning), pytest.raises(NonFiniteError, match="Cosines"):
        ranks(large, large, one, one)


def test_recall_of_nothing_is_refused():
    with pytest.raises(ValueError, match="recall at 1 of no queries"):
        recall(np.array([], np.int64), 1)
