"""Numbered vectors in a FAISS index: searched as a whole or in part, added to, taken from, written and read."""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Int

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.index import metric_of
from xmodal.search.manifest import UNFINISHED

_AT_ONCE = 65536  # vectors that are read, compared or counted together
_LEAST = np.finfo(np.float32).tiny  # squared length: a zero vector stays one
_MOST_ON_GPU = 2048  # K, by a limit of FAISS


class NumberedGallery:
    """N vectors, each with a number of its own, under ``cosine``, ``dot`` or ``euclidean``.

    Searching changes nothing, so that several threads may do so at once.

    Args:
        index: an ``IndexIDMap2`` over a flat or an HNSW index, or an IVF index.
    """

    def __init__(self, index: Any, similarity: str) -> None:
        self.index = index
        self.similarity = similarity
        self._inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
        self.width = int(index.d)
        self._gpu: Any = None
        self._gpu_memory: Any = None
        self._one_at_a_time = Lock()  # of searches on the GPU, which FAISS allows one of
        graph = self._inner.hnsw if isinstance(self._inner, faiss.IndexHNSW) else None
        self._most_as_it_is = math.inf if graph is None else graph.efSearch  # K; a graph finds no more than it looks at
        self._note_numbers()

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def kind(self) -> str:
        if isinstance(self._inner, faiss.IndexHNSW):
            return "hnsw"
        return "ivf_pq" if isinstance(self._inner, faiss.IndexIVF) else "flat"

    def to_gpu(self) -> bool:
        """Search on the first GPU from now on, where there is one and the index is exact; whether it will."""
        if self.kind != "flat" or faiss.get_num_gpus() == 0:
            return False
        self._gpu_memory = faiss.StandardGpuResources()
        self._gpu = faiss.index_cpu_to_gpu(self._gpu_memory, 0, self._inner)
        return True

    def search(
        self, queries: Float[np.ndarray, "Q E"], k: int, among: Int[np.ndarray, "n"] | None = None
    ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """The ``K = min(k, N)`` closest vectors of each query, best first: their scores and their numbers.

        A score is the cosine, the dot product or the negative Euclidean distance. Where the clusters (IVF) that are
        searched hold fewer, the rest has the number −1 and the score −inf.

        Args:
            queries: as ``as_queries`` gives them.
            among: numbers, in ascending order, that alone may be found; those of a graph (HNSW) are then compared one
                by one, for a graph finds little where most of it is barred.
        """
        k = max(1, min(k, len(self) if among is None else len(among)))
        if among is None:
            values, numbers = self._search_all(queries, k)
        else:
            values, numbers = self._search_some(queries, k, faiss.IDSelectorBatch(among), len(among))
        if self.similarity == "euclidean":
            values = -np.sqrt(np.maximum(values, 0.0))
        if numbers.size and numbers[:, -1].min() < 0:  # what is absent comes last
            if among is None and self.kind == "hnsw":
                return self._exact_where_missing(queries, k, values, numbers)
            values = np.where(numbers < 0, np.float32(-np.inf), values)
        return values, numbers

    def _exact_where_missing(
        self, queries: np.ndarray, k: int, values: np.ndarray, numbers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a graph found, and the result of comparing all vectors where too little of it was within reach."""
        short = numbers[:, -1] < 0
        distances, rows = faiss.downcast_index(self._inner.storage).search(queries[short], k)
        values[short] = -np.sqrt(np.maximum(distances, 0.0)) if self.similarity == "euclidean" else distances
        numbers[short] = self._numbered(rows)
        return values, numbers

    def _search_all(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows are turned into numbers here: FAISS would start its threads for that, even for a single query."""
        if self._numbers is None:
            values, numbers = self.index.search(queries, k)
            return values, numbers
        if k > self._most_as_it_is:
            wide = faiss.SearchParametersHNSW(efSearch=max(k, self._inner.hnsw.efSearch))
            values, rows = self._inner.search(queries, k, params=wide)
        elif self._gpu is None or k > _MOST_ON_GPU:
            values, rows = self._inner.search(queries, k)
        else:
            with self._one_at_a_time:
                values, rows = self._gpu.search(queries, k)
        return values, self._numbered(rows)

    def _numbered(self, rows: Int[np.ndarray, "Q K"]) -> Int[np.ndarray, "Q K"]:
        """The numbers of rows; −1 where there is none."""
        assert self._numbers is not None
        return rows if self._counts_rows else self._numbers[rows]

    def _search_some(
        self, queries: np.ndarray, k: int, selector: Any, among_count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(self._inner, faiss.IndexIVF):
            wider = math.ceil(self._inner.nprobe * len(self) / max(1, among_count))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(wider, self._inner.nlist))
            values, numbers = self.index.search(queries, k, params=parameters)
            return values, numbers
        assert self._numbers is not None
        exact = faiss.downcast_index(self._inner.storage) if self.kind == "hnsw" else self._inner
        barred = faiss.IDSelectorTranslated(self.index.id_map, selector)
        values, rows = exact.search(queries, k, params=faiss.SearchParameters(sel=barred))
        return values, self._numbered(rows)

    @property
    def is_exact(self) -> bool:
        """Whether the vectors themselves are there, and not codes of them."""
        return self.kind != "ivf_pq"

    def vectors(self, numbers: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n E"]:
        """The vectors of these numbers, as they were added: of unit length under cosine.

        Raises:
            FeatureError: the index holds codes, from which vectors can't be had as they were.
        """
        if not self.is_exact:
            raise FeatureError(f"An index of the kind {self.kind} holds codes of vectors, not the vectors.")
        return np.stack([self.index.reconstruct(int(number)) for number in numbers])

    @property
    def held(self) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, "N"]]:
        """All vectors, where they lie in memory until the gallery changes, and their numbers, in ascending order.

        Raises:
            FeatureError: the index holds codes.
        """
        if not self.is_exact:
            raise FeatureError(f"An index of the kind {self.kind} holds codes of vectors, not the vectors.")
        exact = faiss.downcast_index(self._inner.storage) if self.kind == "hnsw" else self._inner
        rows = faiss.rev_swig_ptr(exact.get_xb(), len(self) * self.width).reshape(len(self), self.width)
        return rows, self._numbers_at(0, len(self))

    def count_better(
        self, query: Float[np.ndarray, "E"], numbers: Int[np.ndarray, "n"], among: Int[np.ndarray, "m"] | None = None
    ) -> int:
        """How many other vectors are at least as close to the query as the closest one of ``numbers``.

        Closeness is computed in float64, so that equal vectors tie, and ties count.
        """
        asked = query.astype(np.float64)
        best = max(self._scores(self.vectors(numbers), asked))
        better = 0
        for start, rows in self._blocks():
            counted = self._scores(rows, asked) >= best
            of_block = self._numbers_at(start, len(rows))
            counted &= ~np.isin(of_block, numbers)
            if among is not None:
                counted &= np.isin(of_block, among)
            better += int(counted.sum())
        return better

    def _scores(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        given = rows.astype(np.float64)
        if self.similarity == "euclidean":
            return -np.square(given - query).sum(axis=1)
        return (given * query).sum(axis=1)

    def _blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "n E"]]]:
        """All vectors, a block after the other, with the row that each block begins at."""
        exact = faiss.downcast_index(self._inner.storage) if self.kind == "hnsw" else self._inner
        for start in range(0, len(self), _AT_ONCE):
            yield start, exact.reconstruct_n(start, min(_AT_ONCE, len(self) - start))

    def _numbers_at(self, start: int, count: int) -> Int[np.ndarray, "count"]:
        assert self._numbers is not None
        return self._numbers[start : start + count]

    def add(self, vectors: Float[np.ndarray, "n E"], numbers: Int[np.ndarray, "n"]) -> None:
        """Add vectors (as ``as_queries`` gives them) under new numbers."""
        self.index.add_with_ids(vectors, numbers)
        self._note_numbers()

    def remove(self, numbers: Int[np.ndarray, "n"]) -> None:
        """Take vectors out; a graph (HNSW) is built anew from those that stay."""
        if self.kind == "hnsw":
            self._rebuild_without(numbers)
        else:
            self.index.remove_ids(faiss.IDSelectorBatch(numbers))
        self._note_numbers()

    def _rebuild_without(self, numbers: Int[np.ndarray, "n"]) -> None:
        old, graph = self._inner, self._inner.hnsw
        new = faiss.IndexHNSWFlat(self.width, int(graph.nb_neighbors(1)), metric_of(self.similarity))
        new.hnsw.efConstruction, new.hnsw.efSearch = graph.efConstruction, graph.efSearch
        numbered = faiss.IndexIDMap2(new)
        for start, rows in self._blocks():
            of_block = self._numbers_at(start, len(rows))
            stays = ~np.isin(of_block, numbers)
            if stays.any():
                numbered.add_with_ids(np.ascontiguousarray(rows[stays]), of_block[stays])
        del old
        self.index, self._inner = numbered, new

    def write(self, path: Path) -> None:
        """A file that ``faiss.read_index`` reads; raises OSError where it can't be written."""
        if isinstance(self._inner, faiss.IndexIVF):
            lists = faiss.downcast_InvertedLists(self._inner.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                lists.filename = clusters_beside(path).name.removesuffix(UNFINISHED)  # the name that they will have
        partial = path.with_name(f"{path.name}.part")  # the index may be searched in the very file that it replaces
        try:
            faiss.write_index(self.index, str(partial))
            os.replace(partial, path)
        except RuntimeError as error:  # of the C++ library
            raise OSError(f"{path} can't be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    def _note_numbers(self) -> None:
        """The number of each row, and −1 behind them for the row −1; None where FAISS keeps numbers by itself."""
        self._numbers: Int[np.ndarray, "N+1"] | None = None
        self._counts_rows = False  # whether numbers are rows, as long as nothing was removed
        if isinstance(self.index, faiss.IndexIDMap):
            self._numbers = np.append(faiss.vector_to_array(self.index.id_map), -1)
            self._counts_rows = bool((self._numbers[:-1] == np.arange(len(self))).all())


def numbered(index: Any) -> Any:
    """A FAISS index that takes numbers with its vectors."""
    return index if isinstance(index, faiss.IndexIVF) else faiss.IndexIDMap2(index)


def read_gallery(path: Path, similarity: str, memory_bytes: int | None = None) -> NumberedGallery:
    """A gallery from its file; clusters larger than ``memory_bytes`` stay on disk and are read as they are searched.

    Raises:
        DataError: a file that FAISS can't read, or an index that does not fit into memory and has no clusters.
    """
    is_large = memory_bytes is not None and size_of(path) > memory_bytes
    if is_large and not _has_clusters(path):
        raise DataError(
            f"{path} takes {size_of(path) / 1e9:.2f} GB, more than the {(memory_bytes or 0) / 1e9:.2f} GB it may take. "
            "Allow more (--memory-gb), or build it with index=ivf_pq, whose clusters can stay on disk."
        )
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if is_large else 0
    if clusters_beside(path).exists():  # mapped from there; FAISS 1.15 crashes where it is asked to map both
        flags = faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY
    try:
        with told_on_stderr():
            index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise DataError(f"{path} can't be read as a FAISS index ({str(error).splitlines()[0]}).") from error
    return NumberedGallery(index, similarity)


@contextmanager
def told_on_stderr() -> Iterator[None]:
    """What FAISS prints of clusters on disk goes to standard error: standard output is for results."""
    flush, kept = ctypes.CDLL(None).fflush, os.dup(1)
    sys.stdout.flush()
    flush(None)
    os.dup2(2, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _has_clusters(path: Path) -> bool:
    """Whether it is an IVF index, which FAISS says in the first bytes; the whole may be more than memory holds."""
    with path.open("rb") as file:
        return file.read(2) == b"Iw"


def size_of(path: Path) -> int:
    """Bytes of an index file and of the clusters that lie beside it."""
    clusters = clusters_beside(path)
    return path.stat().st_size + (clusters.stat().st_size if clusters.exists() else 0)


def clusters_beside(path: Path) -> Path:
    """Where the clusters of an index lie that were too large for memory when it was built."""
    return path.with_name(path.name.replace(".faiss", ".ivfdata"))


def as_queries(vectors: Float[np.ndarray, "Q E"], width: int, similarity: str) -> Float[np.ndarray, "Q E"]:
    """Vectors as FAISS takes them: float32, row by row, of unit length under cosine.

    Raises:
        FeatureError: another shape, or NaN or infinity (in float32, also of a squared length).
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise FeatureError(f"Vectors must have the shape (count, {width}), found {rows.shape}: are they of this model?")
    squares = np.vecdot(rows, rows)
    broken = 0 if math.isfinite(squares.sum()) else int((~np.isfinite(squares)).sum())  # sound ones may sum to infinity
    if broken:
        raise FeatureError(
            f"{broken} of {len(rows)} vectors hold NaN, infinity or numbers too large to square: the model has "
            "diverged, or its input is damaged."
        )
    if similarity != "cosine":
        return rows
    return rows / np.sqrt(np.maximum(squares, _LEAST))[:, None]


def memory_of_machine() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k must be at least 1, found {k}.")
