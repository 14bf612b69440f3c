"""From vectors on disk to an index, block by block, so that memory holds the index alone, or not even that."""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Int

from xmodal.features.disk_space import readable
from xmodal.retrieval.index import metric_of, share_found
from xmodal.search.choice import GOOD_RECALL, Choice
from xmodal.search.gallery import NumberedGallery, as_queries, clusters_beside, numbered, read_gallery, told_on_stderr

log = logging.getLogger(__name__)

TOP = 10  # K of the recall that is measured
QUERIES = 1000  # most queries that it is measured with
_AT_ONCE = 65536  # vectors in memory beside the index
_SAMPLE = 262_144  # most vectors that clusters and codes are learned from
_LEAST_PER_CENTROID = 39  # vectors, for FAISS not to complain
_WIDEST = {"ef_search": 2048, "probes": 1024}


@dataclass(frozen=True)
class Recall:
    """Percent of the exact top 10 that an index returned."""

    percent: float
    queries: int


def vectors_file(path: Path, count: int, width: int) -> Float[np.memmap, "N E"]:
    """An array on disk for vectors that are still to come, whose room is taken at once.

    Raises:
        OSError: there is no room; a process that writes to such an array then would be killed.
    """
    found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, width))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return found


def build_gallery(
    vectors: Float[np.ndarray, "N E"], choice: Choice, similarity: str, memory_bytes: int, path: Path
) -> NumberedGallery:
    """An index of vectors, numbered by their rows; `NumberedGallery.write` puts it to ``path``.

    Args:
        vectors: in memory or on disk; of unit length under cosine.
        path: where the index is to be; clusters that don't fit into memory are there, `clusters_beside` it, already.

    Raises:
        OSError: it can't be written.
    """
    sample = _sample(vectors, choice, memory_bytes) if choice.kind == "ivf_pq" else vectors[:1]
    empty = choice.index().empty(sample, len(vectors), similarity)
    if choice.on_disk:
        _fill_on_disk(empty, vectors, memory_bytes, path)
        return read_gallery(path, similarity, memory_bytes)
    index = numbered(empty)
    for start, rows in _blocks(vectors):
        index.add_with_ids(rows, np.arange(start, start + len(rows)))
    return NumberedGallery(index, similarity)


def tuned(
    gallery: NumberedGallery, choice: Choice, measure: Callable[[NumberedGallery], Recall]
) -> tuple[Choice, Recall]:
    """Search more widely until recall is good enough, from what ``choice`` says on; what was chosen, and its recall."""
    found = measure(gallery)
    if not choice.tunes:
        return choice, found
    name = "ef_search" if choice.kind == "hnsw" else "probes"
    most = min(_WIDEST[name], choice.settings.get("lists", _WIDEST[name]))
    value = choice.settings[name]
    while found.percent < GOOD_RECALL and value < most:
        value = min(2 * value, most)
        search_widely(gallery.index, value)
        before, found = found, measure(gallery)
        if value == most or (choice.kind == "ivf_pq" and found.percent - before.percent < 0.05):
            break  # what is missing, codes have lost
    return replace(choice, settings={**choice.settings, name: value}), found


def search_widely(index: Any, value: int) -> None:
    """Candidates that a graph looks at, or clusters that are searched, per query."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efSearch = value
    else:
        inner.nprobe = value


class RecallMeasure:
    """Recall of indexes of the same vectors, for the same queries; exact search is made once.

    Args:
        numbers: of the vectors, in ascending order; None: their rows.
    """

    def __init__(
        self,
        vectors: Float[np.ndarray, "N E"],
        queries: Float[np.ndarray, "Q E"],
        similarity: str,
        numbers: Int[np.ndarray, "N"] | None = None,
    ) -> None:
        self._vectors, self._queries, self._similarity, self._numbers = vectors, queries, similarity, numbers
        self._exact = exact_top(vectors, queries, TOP, similarity)

    def __call__(self, gallery: NumberedGallery) -> Recall:
        _, found = gallery.search(self._queries, self._exact.shape[1])
        if self._numbers is not None:
            found = np.where(found < 0, -1, np.searchsorted(self._numbers, found))
        percent = share_found(found, self._exact, self._vectors, self._queries, self._similarity)
        return Recall(round(percent, 3), len(self._queries))


def exact_top(
    vectors: Float[np.ndarray, "N E"], queries: Float[np.ndarray, "Q E"], k: int, similarity: str
) -> Int[np.ndarray, "Q K"]:
    """Rows of the ``K = min(k, N)`` closest vectors, by comparing all of them, a block after the other."""
    k, metric = min(k, len(vectors)), metric_of(similarity)
    best = faiss.ResultHeap(len(queries), k, keep_max=metric == faiss.METRIC_INNER_PRODUCT)
    for start, rows in _blocks(vectors):
        values, places = faiss.knn(queries, rows, min(k, len(rows)), metric)
        best.add_result(values, places + start)
    best.finalize()
    found: Int[np.ndarray, "Q K"] = best.I
    return found


def drawn_queries(
    vectors: Float[np.ndarray, "M E"], width: int, similarity: str, most: int = QUERIES
) -> Float[np.ndarray, "Q E"]:
    """At most so many of the vectors, always the same."""
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:most])
    return as_queries(vectors[rows], width, similarity)


def _fill_on_disk(empty: Any, vectors: np.ndarray, memory_bytes: int, path: Path) -> None:
    """Clusters in parts, each within half of the budget, then one after the other into a file of all of them."""
    per_vector = int(empty.code_size) + 8
    size = max(1024, min(len(vectors), memory_bytes // 2 // per_vector))
    parts = [path.with_name(f"{path.name}.part{n}") for n in range(-(-len(vectors) // size))]
    log.info("Clusters are made in %d parts, and put together on disk.", len(parts))
    try:
        for n, part in enumerate(parts):
            for start, rows in _blocks(vectors[n * size : (n + 1) * size]):
                numbers = np.arange(n * size + start, n * size + start + len(rows))
                empty.add_with_ids(rows, numbers)
            faiss.write_index(empty, str(part))
            empty.reset()
        with told_on_stderr():
            _join(empty, parts, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _join(empty: Any, parts: list[Path], path: Path) -> None:
    opened = [faiss.read_index(str(part), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) for part in parts]
    lists = faiss.InvertedListsPtrVector()
    for part in opened:
        lists.push_back(faiss.extract_index_ivf(part).invlists)
    clusters = clusters_beside(path)
    needed, free = sum(part.stat().st_size for part in parts), shutil.disk_usage(path.parent).free
    if free < needed:  # FAISS would write to memory that no disk is behind
        raise OSError(errno.ENOSPC, f"The clusters need {readable(needed)}, {readable(free)} are free", str(clusters))
    joined = faiss.OnDiskInvertedLists(empty.nlist, empty.code_size, str(clusters))
    empty.ntotal = joined.merge_from_multiple(lists.data(), lists.size())
    empty.replace_invlists(joined)
    joined.this.disown()  # belongs to the index now
    faiss.write_index(empty, str(path))


def _sample(vectors: np.ndarray, choice: Choice, memory_bytes: int) -> Float[np.ndarray, "n E"]:
    """What clusters and codes are learned from: within half of the budget, but no less than they need."""
    least = _LEAST_PER_CENTROID * max(choice.settings["lists"], 2 ** choice.settings["bits"])
    most = max(least, min(_SAMPLE, memory_bytes // (8 * vectors.shape[1])))
    if len(vectors) <= most:
        return np.ascontiguousarray(vectors)
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:most])
    return np.ascontiguousarray(vectors[rows])


def _blocks(vectors: np.ndarray) -> Iterator[tuple[int, Float[np.ndarray, "n E"]]]:
    for start in range(0, len(vectors), _AT_ONCE):
        yield start, np.ascontiguousarray(vectors[start : start + _AT_ONCE])
