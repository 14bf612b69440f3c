"""How sure a figure is: bootstrap intervals, and a paired test between two evaluations of the same queries.

Both take the query images for the sample and the galleries for given. What is drawn is a cluster: an image with all its
queries in every direction, since the captions of one image succeed and fail together.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from xmodal.config.evaluation import FEWEST_RESAMPLES
from xmodal.errors import ConfigError, DataError
from xmodal.retrieval.metrics import Queries, named_figures

_ENDS = (2.5, 97.5)  # percentiles of a 95 % interval
_RECALLS = [f"{way}_R{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]  # of rsum
_CHUNK = 2_000_000  # numbers in the largest array of a chunk of resamples


@dataclass(frozen=True)
class PairedDifference:
    """One figure of two evaluations of the same queries.

    Attributes:
        first: the figure of the one.
        second: of the other.
        difference: second − first.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p_value: two-sided, of the hypothesis that it makes no difference which system answers an image's queries.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_intervals(
    queries: Mapping[str, Queries], resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of every figure, by the names of ``named_figures``.

    A resample draws as many query images as there are, with replacement, each with all its queries; where there are
    folds, within each fold. One draw serves all directions, so that rsum is of one piece. The galleries stay as they
    are: the interval speaks of other queries to the same gallery. Only images with a matched query are drawn. Where a
    draw leaves a direction without any query in a fold (possible where some images are queries of one direction
    alone), that fold is drawn again. A single image is drawn every time and would seem certain: figures of a direction
    that has fewer than two images with a match in one of its folds have no interval, nor has rsum then.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval); Field and Welsh,
    Bootstrapping clustered data, JRSS B 69(3), 2007; Sakai, Evaluating evaluation metrics based on the bootstrap,
    SIGIR 2006 (in retrieval).

    Raises:
        ConfigError: fewer than 40 resamples.
        DataError: a direction without any match, or an image with queries in two folds.
    """
    _check_resamples(resamples)
    random = np.random.default_rng(seed)
    folds = folds_of(queries)
    single = {way for fold in folds for way, side in fold.sides.items() if np.count_nonzero(side.counts) < 2}
    if single.issuperset(queries):
        return {}
    drawn = distribution(folds, resamples, lambda fold, size: fold.figures(resample(fold.counts, size, random)))
    without = tuple(f"{way}_" for way in single) + (("rsum",) if single & {"i2t", "t2i"} else ())
    return {name: ends for name, ends in _intervals(drawn).items() if not name.startswith(without)}


def paired_test(
    first: Mapping[str, Queries], second: Mapping[str, Queries], resamples: int = 10_000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Difference between two evaluations of the same queries, for every figure that both have.

    The interval is that of the clustered bootstrap (see ``bootstrap_intervals``), each draw taken from both. The
    p-value is that of a randomisation test in which each query image swaps the two systems, for all its queries, with
    probability 1/2: ``p = (1 + #{|T*| ≥ |T|}) / (resamples + 1)``, T the difference. Each p-value stands for itself;
    where many figures are compared, some are small by chance.

    Smucker, Allan and Carterette, A comparison of statistical significance tests for information retrieval
    evaluation, CIKM 2007.

    Raises:
        ConfigError: fewer than 40 resamples.
        DataError: the two differ in directions, queries, matches or folds; says where.
    """
    _check_resamples(resamples)
    _require_same_queries(first, second)
    folds = folds_of(_side_by_side(first, second))
    random = np.random.default_rng(seed)
    intervals = _intervals(distribution(folds, resamples, lambda fold, size: _of_same_draw(fold, size, random)))
    swapped = distribution(folds, resamples, lambda fold, size: _of_swaps(fold, size, random))
    before, after = named_figures(first), named_figures(second)
    return {
        name: PairedDifference(
            before[name],
            after[name],
            after[name] - before[name],
            *intervals[name],
            p_value=_p_value(after[name] - before[name], swapped[name]),
        )
        for name in before
        if name in after
    }


@dataclass(frozen=True)
class _Side:
    """The matched queries of one direction in one fold, added up over each of C clusters.

    Attributes:
        names: of the V metrics that are means.
        sums: of the values of each cluster's queries.
        counts: number of each cluster's queries.
        ranks: the U ranks that occur, ascending.
        by_rank: (U, C) number of each cluster's queries of each rank.
    """

    names: tuple[str, ...]
    sums: Float[np.ndarray, "V C"]
    counts: Float[np.ndarray, "C"]
    ranks: Int[np.ndarray, "U"]
    by_rank: sparse.csr_array

    @classmethod
    def of(cls, side: Queries, asked: Bool[np.ndarray, "Q"], clusters: Int[np.ndarray, "C"]) -> "_Side":
        place, count = np.searchsorted(clusters, side.groups[asked]), len(clusters)
        sums = [np.bincount(place, weights=values[asked], minlength=count) for values in side.values.values()]
        ranks, row = np.unique(side.ranks[asked], return_inverse=True)
        by_rank = sparse.coo_array((np.ones(len(place)), (row.reshape(-1), place)), shape=(len(ranks), count))
        counts = np.bincount(place, minlength=count).astype(np.float64)
        return cls(tuple(side.values), np.stack(sums), counts, ranks, by_rank.tocsr())

    def figures(self, weights: Float[np.ndarray, "C B"]) -> dict[str, Float[np.ndarray, "B"]]:
        number = self.counts @ weights
        return dict(zip(self.names, self.sums @ weights / number, strict=True)) | {
            "medR": self._medians(weights, number)
        }

    def _medians(self, weights: Float[np.ndarray, "C B"], number: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
        """Mean of the two middle ranks, which are one where ``number`` is odd."""
        up_to = np.cumsum(self.by_rank @ weights, axis=0)
        lower, upper = (self.ranks[(up_to <= middle).sum(axis=0)] for middle in ((number - 1) // 2, number // 2))
        return (lower + upper) / 2


@dataclass(frozen=True)
class Fold:
    """The C clusters of one fold, in the order of their ids, in every direction that has a match there."""

    sides: dict[str, _Side]

    @property
    def counts(self) -> Float[np.ndarray, "D C"]:
        """Number of queries of each cluster in each direction."""
        return np.stack([side.counts for side in self.sides.values()])

    @property
    def size(self) -> int:
        """Numbers that one resample takes in the largest array."""
        return max(max(side.by_rank.shape) for side in self.sides.values())

    def figures(self, weights: Float[np.ndarray, "C B"]) -> dict[str, Float[np.ndarray, "B"]]:
        """Every figure of this fold in each of B resamples, given how often each cluster occurs in it."""
        return {
            f"{way}_{name}": values
            for way, side in self.sides.items()
            for name, values in side.figures(weights).items()
        }


def folds_of(queries: Mapping[str, Queries]) -> list[Fold]:
    """The folds with their clusters: the images that have a matched query in any direction.

    Raises:
        DataError: a direction without any match, or an image with queries in two folds.
    """
    for way, side in queries.items():
        if not side.matched.any():
            raise DataError(f"{way}: not one of {len(side.ranks)} queries has a match, so there is nothing to resample")
    coded = _with_numbers_for_groups(queries)
    clusters = {
        fold: np.unique(np.concatenate([side.groups[side.matched & (side.folds == fold)] for side in coded.values()]))
        for fold in np.unique(np.concatenate([side.folds[side.matched] for side in coded.values()])).tolist()
    }
    _require_one_fold_each(queries, clusters)
    return [Fold(_sides(coded, fold, members)) for fold, members in clusters.items()]


Statistic = Callable[[Fold, int], Mapping[str, Float[np.ndarray, "B"]]]


def distribution(folds: list[Fold], resamples: int, statistic: Statistic) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Every figure, and rsum, in each resample: the mean over folds of what ``statistic`` gives for a fold and a number
    of resamples."""
    found: dict[str, list[np.ndarray]] = {}
    for fold in folds:
        chunks = [statistic(fold, size) for size in _chunks(resamples, fold.size)]
        for name in chunks[0]:
            found.setdefault(name, []).append(np.concatenate([chunk[name] for chunk in chunks]))
    figures = {name: np.mean(of_folds, axis=0) for name, of_folds in found.items()}
    return figures | {"rsum": np.sum([figures[name] for name in _RECALLS], axis=0)}


def resample(counts: Float[np.ndarray, "D C"], size: int, random: np.random.Generator) -> Float[np.ndarray, "C {size}"]:
    """How often each of C clusters occurs in each resample of C draws with replacement.

    Args:
        counts: queries of each cluster in each direction; no resample leaves a direction without any.
        size: number of resamples.
    """
    weights = _multinomial(counts.shape[1], size, random)
    while (empty := ~(counts @ weights).all(axis=0)).any():
        weights[:, empty] = _multinomial(counts.shape[1], int(empty.sum()), random)
    return weights


def _multinomial(clusters: int, size: int, random: np.random.Generator) -> Float[np.ndarray, "{clusters} {size}"]:
    drawn = random.integers(0, clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
    counts = np.bincount(drawn.reshape(-1), minlength=size * clusters).reshape(size, clusters)
    return np.ascontiguousarray(counts.T, dtype=np.float64)


def _of_same_draw(both: Fold, size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Differences in bootstrap resamples: the clusters of the second system stand after those of the first."""
    first, _ = np.split(both.counts, 2, axis=1)
    weights = resample(first, size, random)
    zero = np.zeros_like(weights)
    return _difference(both, np.concatenate([weights, zero]), np.concatenate([zero, weights]))


def _of_swaps(both: Fold, size: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Differences where clusters swap the two systems at random."""
    swap = np.ascontiguousarray(random.integers(0, 2, size=(size, both.counts.shape[1] // 2)).T, dtype=np.float64)
    return _difference(both, np.concatenate([1 - swap, swap]), np.concatenate([swap, 1 - swap]))


def _difference(both: Fold, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    before, after = both.figures(first), both.figures(second)
    return {name: after[name] - before[name] for name in before}


def _p_value(observed: float, swapped: Float[np.ndarray, "B"]) -> float:
    """Two-sided; a swap that is as far off but for rounding counts as being as far off."""
    as_far = np.abs(swapped) >= abs(observed) - 1e-9 * max(1.0, abs(observed))
    return (1 + int(as_far.sum())) / (1 + len(swapped))


def _intervals(drawn: Mapping[str, Float[np.ndarray, "B"]]) -> dict[str, tuple[float, float]]:
    low, high = np.percentile(np.stack(list(drawn.values())), _ENDS, axis=1).tolist()
    return {name: (low[i], high[i]) for i, name in enumerate(drawn)}


def _chunks(resamples: int, size: int) -> Iterator[int]:
    largest = max(1, _CHUNK // size)
    for start in range(0, resamples, largest):
        yield min(largest, resamples - start)


def _sides(coded: Mapping[str, Queries], fold: int, clusters: Int[np.ndarray, "C"]) -> dict[str, _Side]:
    asked = {way: side.matched & (side.folds == fold) for way, side in coded.items()}
    return {way: _Side.of(coded[way], rows, clusters) for way, rows in asked.items() if rows.any()}


def _with_numbers_for_groups(queries: Mapping[str, Queries]) -> dict[str, Queries]:
    """The same with groups numbered in the order of their ids, over all directions together."""
    _, numbers = np.unique(np.concatenate([side.groups for side in queries.values()]), return_inverse=True)
    ends = np.cumsum([len(side.groups) for side in queries.values()])[:-1]
    parts = np.split(numbers.reshape(-1), ends)
    return {way: replace(side, groups=part) for (way, side), part in zip(queries.items(), parts, strict=True)}


def _require_one_fold_each(queries: Mapping[str, Queries], clusters: Mapping[int, Int[np.ndarray, "C"]]) -> None:
    numbers, times = np.unique(np.concatenate(list(clusters.values())), return_counts=True)
    if (times > 1).any():
        number = numbers[times > 1][0]
        group = np.unique(np.concatenate([side.groups for side in queries.values()]))[number].item()
        found = [fold for fold, members in clusters.items() if number in members]
        raise DataError(
            f"the queries of an image must lie in one fold, as they are resampled together within it; those of image "
            f"{group!r} lie in folds {', '.join(map(str, found))} ({int((times > 1).sum())} such images)"
        )


def _side_by_side(first: Mapping[str, Queries], second: Mapping[str, Queries]) -> dict[str, Queries]:
    """The queries of both systems as one set, the clusters of the second after those of the first."""
    one, other = _with_numbers_for_groups(first), _with_numbers_for_groups(second)
    groups = 1 + max(int(side.groups.max()) for side in one.values())
    return {
        way: Queries(
            np.concatenate([side.ranks, other[way].ranks]),
            {
                name: np.concatenate([values, other[way].values[name]])
                for name, values in side.values.items()
                if name in other[way].values
            },
            np.concatenate([side.groups, other[way].groups + groups]),
            np.concatenate([side.folds, other[way].folds]),
        )
        for way, side in one.items()
    }


def _require_same_queries(first: Mapping[str, Queries], second: Mapping[str, Queries]) -> None:
    if fault := _what_differs(first, second):
        raise DataError(
            f"the two evaluations are not of the same queries: {fault}. A paired test needs both on the same split of "
            "the same data, under the same protocol, in the same order"
        )


def _what_differs(first: Mapping[str, Queries], second: Mapping[str, Queries]) -> str | None:
    if set(first) != set(second):
        return f"the first has {', '.join(sorted(first))}, the second {', '.join(sorted(second))}"
    for way, one in first.items():
        other = second[way]
        if len(one.ranks) != len(other.ranks):
            return f"{way} has {len(one.ranks)} queries in the first, {len(other.ranks)} in the second"
        aspects: dict[str, tuple[np.ndarray, np.ndarray]] = {
            "the image of the query is": (one.groups, other.groups),
            "the query has a match:": (one.matched, other.matched),
            "the fold of the query is": (one.folds * one.matched, other.folds * other.matched),
        }
        for words, (left, right) in aspects.items():
            if fault := _first_difference(left, right):
                row, count = fault
                return (
                    f"{way}, query {row} (image {one.groups[row].item()!r}): {words} {left[row].item()!r} in the "
                    f"first, {right[row].item()!r} in the second; {count} of {len(left)} queries differ so"
                )
    return None


def _first_difference(left: np.ndarray, right: np.ndarray) -> tuple[int, int] | None:
    """The first place where two arrays of one length differ, and in how many they do."""
    if left.dtype.kind != right.dtype.kind:
        return 0, len(left)
    rows = np.flatnonzero(left != right)
    return (int(rows[0]), len(rows)) if len(rows) else None


def _check_resamples(resamples: int) -> None:
    if resamples < FEWEST_RESAMPLES:
        raise ConfigError(
            f"the number of resamples must be at least {FEWEST_RESAMPLES} for a 95 % interval, found {resamples}"
        )
