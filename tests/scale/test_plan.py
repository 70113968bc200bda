"""The plan: every sample stands in one batch of one shard, whatever the sizes."""

import pytest

from layerlens.errors import OptionError
from layerlens.scale.store.plan import Plan


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
@pytest.mark.parametrize(("shard", "batch"), [(8, 8), (8, 3), (3, 8), (1, 1)])
def test_every_sample_is_in_one_batch(count, shard, batch):
    plan = Plan(count, shard, batch)
    spans = [span for number in plan.numbers() for span in plan.batches(number)]
    assert [index for span in spans for index in span] == list(range(count))
    assert all(1 <= len(span) <= batch for span in spans)
    assert all(span[0] // shard == span[-1] // shard for span in spans)
    assert len(list(plan.numbers())) == plan.shards


def test_all_samples_in_one_shard_keep_their_batches():
    plan = Plan(10, 4, 2)
    assert plan.whole().shards == 1 and plan.whole().batches(0) == [range(k, k + 2) for k in range(0, 10, 2)]


def test_a_stream_has_no_end():
    plan = Plan(None, 4, 2)
    assert plan.whole() == plan
    numbers = plan.numbers()
    assert plan.shards is None and [next(numbers) for _ in range(3)] == [0, 1, 2]
    assert plan.batches(2) == [range(8, 10), range(10, 12)]


@pytest.mark.parametrize("sizes", [{"shard": 0}, {"batch": 0}, {"batch": 2.5}])
def test_sizes_are_counts(sizes):
    with pytest.raises(OptionError, match="whole number"):
        Plan(3, **sizes)
