"""Which of several systems is best on the same queries, and which are not significantly worse.

The test is the paired randomisation test of ``xmodal.retrieval.uncertainty.paired_test``: each query image swaps the
two systems with probability 1/2, for all its queries. Here all pairs with the best are tested at once: swapping is one
matrix product of signs with differences.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from xmodal.retrieval.metrics import Queries

SWAPS = 5000
LEVEL = 0.05
LESS_IS_BETTER = ("medR", "meanR")
_CHUNK = 4_000_000  # signs at a time
_RECALLS = [(way, f"R{k}") for way in ("i2t", "t2i") for k in (1, 5, 10)]  # of rsum


@dataclass(frozen=True)
class Contest:
    """The outcome for one figure.

    Attributes:
        best: index of the best system; None where there is nothing to say.
        tied: indices of those that are not significantly worse than the best, it not among them.
        p_values: of each system against the best, uncorrected; none for those that could not be tested.
    """

    best: int | None
    tied: frozenset[int]
    p_values: dict[int, float]


def contest(
    queries: Sequence[Mapping[str, Queries] | None], values: Sequence[float | None], figure: str, swaps: int = SWAPS
) -> Contest:
    """Test the best of several systems against each of the others, with Holm's correction at 5 %.

    Args:
        queries: of each system, of the same items; None where they are not kept. Those take no part; but where one of
            them has the best value, nothing is said.
        values: of each system.
        figure: ``i2t_R1``, ``t2i_medR``, ``rsum`` …
        swaps: random swaps; p is at least 1 / (swaps + 1).
    """
    having = [i for i, value in enumerate(values) if value is not None]
    if not having:
        return Contest(None, frozenset(), {})
    sign = -1.0 if figure.endswith(LESS_IS_BETTER) else 1.0
    best = max(having, key=lambda i: (sign * _known(values[i]), queries[i] is not None, -i))
    kept = {i: found for i in having if (found := queries[i]) is not None and _has(found, figure)}
    others = [i for i in kept if i != best]
    if best not in kept or not others:
        return Contest(None, frozenset(), {})
    p_values = p_against(kept[best], [kept[i] for i in others], figure, swaps)
    by_system = dict(zip(others, p_values, strict=True))
    return Contest(best, not_rejected(by_system), by_system)


def not_rejected(p_values: Mapping[int, float], level: float = LEVEL) -> frozenset[int]:
    """The hypotheses that Holm's procedure does not reject.

    S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    ordered = sorted(p_values, key=lambda i: (p_values[i], i))
    for place, i in enumerate(ordered):
        if p_values[i] > level / (len(ordered) - place):
            return frozenset(ordered[place:])
    return frozenset()


def p_against(
    one: Mapping[str, Queries], others: Sequence[Mapping[str, Queries]], figure: str, swaps: int = SWAPS, seed: int = 0
) -> list[float]:
    """Two-sided p-values of the hypotheses that it makes no difference which of two systems answers an image's queries.

    Queries may be repeated (several seeds of a system, one after the other), not necessarily as often in all systems.
    """
    if figure.endswith("_medR"):
        way = figure.removesuffix("_medR")
        return [_p_of_medians(one[way], other[way], swaps, seed) for other in others]
    mine = contributions(one, figure)
    differences = np.stack([mine - contributions(other, figure) for other in others])
    observed = np.abs(differences.sum(axis=1))
    exceeded = np.zeros(len(others))
    for signs in _signs(differences.shape[1], swaps, seed):
        exceeded += (np.abs(signs @ differences.T) >= observed - _rounding(observed)).sum(axis=0)
    return ((1 + exceeded) / (1 + swaps)).tolist()


def contributions(queries: Mapping[str, Queries], figure: str) -> Float[np.ndarray, "C"]:
    """What each of the C query images adds to a figure that is a mean (or to rsum): they add up to it."""
    pairs = _RECALLS if figure == "rsum" else [tuple(figure.split("_", 1))]
    images = np.unique(np.concatenate([queries[way].groups for way, _ in pairs]))
    return np.sum([_of_side(queries[way], name, images) for way, name in pairs], axis=0)


def _of_side(side: Queries, name: str, images: np.ndarray) -> Float[np.ndarray, "C"]:
    rows = np.flatnonzero(side.matched)
    folds, fold, per_fold = np.unique(side.folds[rows], return_inverse=True, return_counts=True)
    weights = side.values[name][rows] / (per_fold[fold.reshape(-1)] * len(folds))
    return np.bincount(np.searchsorted(images, side.groups[rows]), weights=weights, minlength=len(images))


def _p_of_medians(one: Queries, other: Queries, swaps: int, seed: int) -> float:
    images = np.unique(np.concatenate([one.groups, other.groups]))
    folds = [_MedianOfFold.of(one, other, fold, images) for fold in np.unique(one.folds[one.matched]).tolist()]
    straight, exceeded = np.ones((1, len(images))), 0
    observed = abs(_mean_difference(folds, straight)[0])
    for signs in _signs(len(images), swaps, seed):
        exceeded += int((np.abs(_mean_difference(folds, signs)) >= observed - _rounding(observed)).sum())
    return (1 + exceeded) / (1 + swaps)


@dataclass(frozen=True)
class _MedianOfFold:
    """The queries of two systems in one fold, for medians after swaps.

    Attributes:
        ranks: the U ranks among which the medians lie, whatever is swapped, ascending.
        mean: (C, U) queries of each image up to each rank, mean of the two systems, as shares of its system's queries.
        half: half of their difference.
        middles: shares of the queries below the lower and the upper median.
    """

    ranks: Int[np.ndarray, "U"]
    mean: Float[np.ndarray, "U"]
    half: Float[np.ndarray, "C U"]
    middles: tuple[float, float]

    @classmethod
    def of(cls, one: Queries, other: Queries, fold: int, images: np.ndarray) -> "_MedianOfFold":
        first, second = (side.matched & (side.folds == fold) for side in (one, other))
        count = int(np.lcm(int(first.sum()), int(second.sum())))
        middles = ((count - 1) // 2 / count, count // 2 / count)
        ranks = np.unique(np.concatenate([one.ranks[first], other.ranks[second]]))
        ends = [np.sort(side.ranks[rows]) for side, rows in ((one, first), (other, second))]
        lowest, highest = _reach(ends, ranks, middles)
        ranks = ranks[lowest : highest + 1]
        up_to = [_up_to(side, rows, ranks, images) for side, rows in ((one, first), (other, second))]
        return cls(ranks, (up_to[0] + up_to[1]).sum(axis=0) / 2, (up_to[0] - up_to[1]) / 2, middles)

    def difference(self, signs: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B"]:
        """Median of the one less that of the other, in each of B swaps."""
        shift = signs @ self.half
        return self._medians(self.mean + shift) - self._medians(self.mean - shift)

    def _medians(self, shares: Float[np.ndarray, "B U"]) -> Float[np.ndarray, "B"]:
        lower, upper = (
            self.ranks[np.minimum((shares <= middle + 1e-9).sum(axis=1), len(self.ranks) - 1)]
            for middle in self.middles
        )
        return (lower + upper) / 2


def _reach(ends: Sequence[np.ndarray], ranks: np.ndarray, middles: tuple[float, float]) -> tuple[int, int]:
    """First and last of the ranks that can be a median.

    After a swap, at most twice as many queries as in both systems together lie up to a rank, and at least as many as
    both have there less those of one whole system.
    """
    both = np.sum([np.searchsorted(end, ranks, side="right") / len(end) for end in ends], axis=0)
    lowest = int((both <= middles[0]).sum())
    highest = int((both <= 1 + middles[1]).sum())
    return min(lowest, len(ranks) - 1), min(highest, len(ranks) - 1)


def _up_to(side: Queries, rows: np.ndarray, ranks: np.ndarray, images: np.ndarray) -> Float[np.ndarray, "C U"]:
    """Share of the queries that belong to each image and have at most each rank."""
    place = np.searchsorted(images, side.groups[rows])
    column = np.searchsorted(ranks, side.ranks[rows])
    counts = np.zeros((len(images), len(ranks) + 1))
    np.add.at(counts, (place, column), 1.0 / rows.sum())
    return np.cumsum(counts, axis=1)[:, : len(ranks)]


def _mean_difference(folds: Sequence[_MedianOfFold], signs: np.ndarray) -> Float[np.ndarray, "B"]:
    return np.mean([fold.difference(signs) for fold in folds], axis=0)


def _signs(images: int, swaps: int, seed: int) -> Iterator[Float[np.ndarray, "B {images}"]]:
    """+1 where an image keeps its system, −1 where it swaps."""
    random = np.random.default_rng(seed)
    size = max(1, _CHUNK // images)
    for start in range(0, swaps, size):
        yield 2.0 * random.integers(0, 2, size=(min(size, swaps - start), images)) - 1.0


def _rounding(observed: np.ndarray | float) -> np.ndarray | float:
    """A swap that is as far off but for rounding counts as being as far off."""
    return 1e-9 * np.maximum(1.0, observed)


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _has(queries: Mapping[str, Queries], figure: str) -> bool:
    if figure == "rsum":
        return all(way in queries and name in queries[way].values for way, name in _RECALLS)
    way, name = figure.split("_", 1)
    return way in queries and (name == "medR" or name in queries[way].values)
