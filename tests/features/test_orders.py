"""Composed batches beside what one counts by hand, in one process and as Lightning shares them out."""

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper

from xmodal.features.orders import (
    BATCHES_PER_WINDOW,
    EpochBatches,
    EpochShuffle,
    batches_by_image,
    batches_by_length,
    batching_faults,
)

SEEDS = st.integers(0, 2**32)
IMAGES = st.lists(st.integers(0, 12), max_size=60)  # of each pair, in any order


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _pairs(batches: list[np.ndarray] | list[list[int]]) -> list[int]:
    return sorted(int(pair) for batch in batches for pair in batch)


@given(lengths=st.lists(st.integers(0, 9), max_size=60), batch_size=st.integers(1, 8), seed=SEEDS)
def test_batches_by_length_hold_every_pair_once_and_are_full(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = batches_by_length(np.array(lengths, dtype=np.int64), batch_size, _random(seed))
    assert _pairs(batches) == list(range(len(lengths)))
    assert sum(len(batch) == batch_size for batch in batches) == len(lengths) // batch_size
    assert len(batches) == -(-len(lengths) // batch_size)


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=60), batch_size=st.integers(1, 8), seed=SEEDS)
def test_within_one_window_no_length_lies_inside_the_range_of_another_batch(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    batches = batches_by_length(np.array(lengths), batch_size, _random(seed))
    assert len(batches) <= BATCHES_PER_WINDOW * 3 / 2  # so that there is one window
    ranges = sorted((min(found), max(found)) for batch in batches if (found := [lengths[int(k)] for k in batch]))
    for (_, highest), (lowest, _) in pairwise(ranges):
        assert highest <= lowest


def test_over_many_windows_little_of_a_batch_is_padding() -> None:
    lengths = _random(0).poisson(11, 30_000)

    def padding(batches: list[np.ndarray]) -> float:
        return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)

    order = _random(1).permutation(len(lengths))
    assert padding(np.split(order, range(128, len(order), 128))) > 0.4
    assert padding(batches_by_length(lengths, 128, _random(1))) < 0.03


def test_batches_of_one_length_come_in_no_order() -> None:
    lengths = np.repeat(np.arange(40), 10)
    means = [lengths[batch].mean() for batch in batches_by_length(lengths, 10, _random(3))]
    assert abs(np.corrcoef(means, np.arange(40))[0, 1]) < 0.5


def _groups_by_hand(counts: list[int], k: int) -> Counter[int]:
    """How many groups of each size the captions of all images are parted into."""
    sizes: Counter[int] = Counter()
    for count in counts:
        left = count
        while left > 0:
            sizes[min(k, left)] += 1
            left -= k
    return sizes


@settings(max_examples=200)
@given(images=IMAGES, batch_size=st.integers(1, 12), data=st.data(), seed=SEEDS)
def test_batches_by_image_hold_every_pair_once_in_groups_of_k(
    images: list[int], batch_size: int, data: st.DataObject, seed: int
) -> None:
    k = data.draw(st.integers(1, batch_size))
    batches = batches_by_image(np.array(images, dtype=np.int64), batch_size, k, _random(seed))
    assert _pairs(batches) == list(range(len(images)))
    found: Counter[int] = Counter()
    for batch in batches:
        of_images = Counter(images[int(pair)] for pair in batch)
        assert 1 <= len(batch) <= batch_size
        assert len(set(of_images.values())) == 1  # as many of one image as of any other
        found += Counter(of_images.values())
    assert found == _groups_by_hand(list(Counter(images).values()), k)


def test_five_captions_in_twos_are_two_and_two_and_one() -> None:
    images = np.repeat(np.arange(600), 5)
    batches = batches_by_image(images, 128, 2, _random(0))
    sizes = Counter((len(set(images[batch])), len(batch)) for batch in batches)
    assert sizes == {(60, 120): 20, (120, 120): 5}  # 600 images ten by ten: no batch of what is left over
    twos = [batch for batch in batches if len(set(images[batch])) == 60]
    assert len({tuple(sorted(pair % 5 for pair in batch[:2])) for batch in twos}) > 3  # captions in any combination
    assert all((images[batch[::2]] == images[batch[1::2]]).all() for batch in twos)


def test_all_captions_of_an_image_together() -> None:
    images = _random(0).permutation(np.repeat(np.arange(10), 5))
    batches = batches_by_image(images, 12, 5, _random(1))
    assert [Counter(Counter(images[batch]).values()) for batch in batches] == [{5: 2}] * 5


DRAWS = {
    "length": partial(batches_by_length, np.arange(40) % 7, 4),
    "image": partial(batches_by_image, np.arange(40) // 5, 4, 2),
}


@pytest.mark.parametrize("name", DRAWS)
def test_batches_are_a_function_of_seed_and_epoch(name: str) -> None:
    draw = DRAWS[name]
    passes = EpochBatches(draw, seed=3)
    first = list(passes)
    assert list(passes) == first
    passes.set_epoch(1)
    second = list(passes)
    assert first != second
    assert len(passes) == len(first) == len(second)
    assert list(EpochBatches(draw, seed=3, epoch=1)) == second
    passes.set_epoch(0)
    assert list(passes) == first
    orders = {str(list(EpochBatches(draw, seed, epoch))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(images=IMAGES, seed=SEEDS, epoch=st.integers(0, 50))
def test_every_epoch_has_as_many_batches(images: list[int], seed: int, epoch: int) -> None:
    batches = EpochBatches(partial(batches_by_image, np.array(images, dtype=np.int64), 5, 2), seed, epoch)
    assert len(list(batches)) == len(batches)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_whole_batches(name: str, processes: int) -> None:
    """What Lightning puts around the sampler of each of them."""
    whole = [tuple(batch) for batch in EpochBatches(DRAWS[name], seed=5, epoch=2)]
    shares = []
    for rank in range(processes):
        sampler = DistributedSamplerWrapper(EpochBatches(DRAWS[name], seed=5), processes, rank, shuffle=True)
        sampler.set_epoch(2)
        shares.append([tuple(batch) for batch in sampler])
        assert len(shares[-1]) == len(sampler) == -(-len(whole) // processes)
    found = Counter(batch for share in shares for batch in share)
    assert set(found) == set(whole)
    assert sum(found.values()) - len(whole) == -len(whole) % processes  # those that are repeated


def test_seed_and_epoch_do_not_stand_in_for_one_another() -> None:
    assert list(EpochShuffle(50, seed=0, epoch=1)) != list(EpochShuffle(50, seed=1, epoch=0))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ((0, False, 1), ["data.batch_size must be at least 1, found 0."]),
        ((8, False, 0), ["data.captions_together must be from 1 to data.batch_size=8, found 0."]),
        ((8, False, 9), ["data.captions_together must be from 1 to data.batch_size=8, found 9."]),
        (
            (8, True, 2),
            [
                "data.group_by_length=true and data.captions_together=2 exclude one another: captions of one image "
                "differ in length. Set data.group_by_length=false, or data.captions_together=1."
            ],
        ),
        ((8, True, 1), []),
        ((8, False, 8), []),
    ],
)
def test_faults(setting: tuple[int, bool, int], expected: list[str]) -> None:
    assert batching_faults(*setting) == expected
