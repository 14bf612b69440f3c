"""FAISS indexes for top-K search: exact, graph-based and compressed.

An index class holds its settings alone; ``build`` makes a searchable ``Gallery``. Reported figures never come from
here, they come from ``xmodal.retrieval.evaluate``; ``index_recall`` says how close an approximate index comes.
"""

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.similarity import as_tensor, check_similarity, common_centre, count_zero_rows, unit_length

_LARGEST_K_ON_GPU = 2048  # limit of FAISS
_PRODUCTS_AT_A_TIME = 2**21  # of the coordinates of queries and of what was found for them, in float64


class Gallery:
    """N vectors that can be searched.

    Args:
        index: a filled FAISS index.
        similarity: ``cosine``, ``dot`` or ``euclidean``.
        centre: what was taken off every vector, see ``common_centre``.
    """

    def __init__(self, index: Any, similarity: str, centre: Float[Tensor, "E"] | None = None) -> None:
        self.similarity = similarity
        self._centre = centre
        self._index = index
        self._on_gpu, self._gpu_memory = _copy_to_gpu(index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the vectors."""
        return len(self), int(self._index.d)

    def write(self, path: Path) -> None:
        """Write a file that ``faiss.read_index`` reads.

        Under ``euclidean`` a constant vector may have been taken off all vectors (see ``common_centre``), which keeps
        distances within the index, but not those of queries from elsewhere.

        Raises:
            OSError: there is no such folder, or no space.
        """
        try:
            faiss.write_index(self._index, str(path))
        except RuntimeError as error:  # of the C++ library
            raise OSError(f"{path} can't be written: {error}") from error

    def search(
        self, queries: Float[np.ndarray, "Q E"], k: int
    ) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
        """The ``K = min(k, N)`` closest vectors of each query, best first: their scores and their rows.

        A score is the cosine, the dot product or the negative Euclidean distance: greater is closer. Where an
        approximate index finds fewer than K, the rest has row −1 and score −inf.

        Raises:
            ConfigError: k below 1.
            FeatureError: queries of another width, or with NaN or infinity.
        """
        if k < 1:
            raise ConfigError(f"k must be at least 1, found {k}")
        if queries.shape[1] != self._index.d:
            raise FeatureError(f"queries must have the width {self._index.d} of the index, found {queries.shape[1]}")
        k = min(k, len(self))
        index = self._on_gpu if self._on_gpu is not None and k <= _LARGEST_K_ON_GPU else self._index
        values, rows = index.search(prepare(queries, "queries", self.similarity, self._centre), k)
        scores = -np.sqrt(np.maximum(values, 0.0)) if self.similarity == "euclidean" else values
        return np.where(rows < 0, np.float32(-np.inf), scores), rows


@runtime_checkable
class Index(Protocol):
    """What ``conf/index`` selects: settings from which a gallery is built."""

    def empty(self, sample: Float[np.ndarray, "n E"], count: int, similarity: str) -> Any:
        """A FAISS index that ``count`` vectors can be added to.

        Args:
            sample: some of these vectors, or all of them, as ``prepare`` gives them, to learn clusters and codes from.
        """
        ...

    def build(self, vectors: Float[np.ndarray, "N E"], similarity: str) -> Gallery:
        """Make the vectors searchable by ``cosine``, ``dot`` or ``euclidean``."""
        ...


class FlatIndex:
    """Exact search by brute force; on the GPU where there is one."""

    def empty(self, sample: Float[np.ndarray, "n E"], count: int, similarity: str) -> Any:
        return faiss.IndexFlat(sample.shape[1], metric_of(similarity))

    def build(self, vectors: Float[np.ndarray, "N E"], similarity: str) -> Gallery:
        return _filled(self, vectors, similarity)


class HNSWIndex:
    """Approximate search along a graph of neighbours (Malkov and Yashunin, TPAMI 42(4), 2020).

    Args:
        neighbours: links per vector and layer; more is more exact and takes more memory.
        ef_construction: candidates looked at when a vector is added.
        ef_search: candidates looked at per query, at least k.

    Raises:
        ConfigError: a number below its smallest useful value.
    """

    def __init__(self, neighbours: int = 32, ef_construction: int = 200, ef_search: int = 128) -> None:
        _check_sizes(
            {"neighbours": (neighbours, 2), "ef_construction": (ef_construction, 1), "ef_search": (ef_search, 1)}
        )
        self.neighbours = neighbours
        self.ef_construction = ef_construction
        self.ef_search = ef_search

    def empty(self, sample: Float[np.ndarray, "n E"], count: int, similarity: str) -> Any:
        index = faiss.IndexHNSWFlat(sample.shape[1], self.neighbours, metric_of(similarity))
        index.hnsw.efConstruction = self.ef_construction
        index.hnsw.efSearch = self.ef_search
        return index

    def build(self, vectors: Float[np.ndarray, "N E"], similarity: str) -> Gallery:
        return _filled(self, vectors, similarity)


class IVFPQIndex:
    """Approximate search in the nearest of ``lists`` clusters, over product-quantised vectors.

    Jégou et al., Product Quantization for Nearest Neighbor Search, TPAMI 33(1), 2011. A vector takes
    ``codes · bits / 8`` bytes. Settings that the gallery is too small for are lowered: at least 39 vectors per list and
    one per code word are needed to train, and ``codes`` must divide E.

    Args:
        lists: number of clusters.
        probes: clusters searched per query.
        codes: parts that a vector is cut into.
        bits: bits per part.

    Raises:
        ConfigError: a number below 1, or more than 12 bits.
    """

    def __init__(self, lists: int = 256, probes: int = 16, codes: int = 64, bits: int = 8) -> None:
        _check_sizes({"lists": (lists, 1), "probes": (probes, 1), "codes": (codes, 1), "bits": (bits, 1)})
        if bits > 12:
            raise ConfigError(f"index.bits must be at most 12, found {bits}")
        self.lists = lists
        self.probes = probes
        self.codes = codes
        self.bits = bits

    def empty(self, sample: Float[np.ndarray, "n E"], count: int, similarity: str) -> Any:
        width = sample.shape[1]
        lists = min(self.lists, max(1, count // 39))
        codes = max(d for d in range(1, min(self.codes, width) + 1) if width % d == 0)
        bits = max(1, min(self.bits, int(math.log2(len(sample)))))
        metric = metric_of(similarity)
        index = faiss.IndexIVFPQ(faiss.IndexFlat(width, metric), width, lists, codes, bits, metric)
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # no warnings for small galleries
        index.train(np.resize(sample, (max(len(sample), 2), width)))
        index.nprobe = min(self.probes, lists)
        return index

    def build(self, vectors: Float[np.ndarray, "N E"], similarity: str) -> Gallery:
        return _filled(self, vectors, similarity)


def index_recall(
    gallery: Gallery, vectors: Float[np.ndarray, "N E"], queries: Float[np.ndarray, "Q E"], k: int
) -> float:
    """Share of the exact top K that a gallery returns, in percent and as a mean over the queries.

    ``100 / (Q·K) · #{(q, r) returned: s(q, r) ≥ s(q, exact_K(q))}`` with ``K = min(k, N)``, where ``exact_K(q)`` is the
    last item of the exact top K and s is computed in float64. Of items that tie for the last place, any will do.

    Args:
        gallery: whatever an index built from ``vectors``.
        vectors: all of them, in the same order.

    Raises:
        ConfigError: k below 1.
        FeatureError: ``vectors`` of another number or width than the gallery's, no queries, queries of another width,
            or NaN or infinity in either.
    """
    if vectors.shape != gallery.shape:
        raise FeatureError(
            f"vectors must be those that the gallery was built from, of shape {gallery.shape}; found {vectors.shape}"
        )
    _, returned = gallery.search(queries, k)
    _, exact = FlatIndex().build(vectors, gallery.similarity).search(queries, k)
    return share_found(returned, exact, vectors, queries, gallery.similarity)


def share_found(
    returned: Int[np.ndarray, "Q K"],
    exact: Int[np.ndarray, "Q K"],
    vectors: Float[np.ndarray, "N E"],
    queries: Float[np.ndarray, "Q E"],
    similarity: str,
) -> float:
    """What ``index_recall`` gives, from the rows that were returned (−1: none) and those of exact search."""
    found, step = 0, max(1, _PRODUCTS_AT_A_TIME // (exact.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        needed = _exact_scores(vectors, queries[rows], exact[rows], similarity).min(axis=1, keepdims=True)
        scores = _exact_scores(vectors, queries[rows], returned[rows], similarity)
        found += int(((scores >= needed) & (returned[rows] >= 0)).sum())
    return 100.0 * found / exact.size


def _exact_scores(
    vectors: Float[np.ndarray, "N E"], queries: Float[np.ndarray, "q E"], rows: Int[np.ndarray, "q K"], similarity: str
) -> Float[np.ndarray, "q K"]:
    """Scores of the vectors in ``rows`` with their query, in float64; a missing one (row −1) has some score."""
    chosen, asked = vectors[rows].astype(np.float64), queries[:, None].astype(np.float64)
    if similarity == "euclidean":
        return -np.square(chosen - asked).sum(axis=2)
    products = (chosen * asked).sum(axis=2)
    if similarity == "dot":
        return products
    length = np.linalg.norm(chosen, axis=2)  # that of the query changes no comparison
    return products / np.where(length == 0, 1.0, length)


def prepare(
    vectors: Float[np.ndarray, "N E"], name: str, similarity: str, centre: Float[Tensor, "E"] | None = None
) -> Float[np.ndarray, "N E"]:
    """Vectors as FAISS takes them: float32, row by row, of unit length under cosine; less ``centre``.

    Raises:
        ConfigError: unknown similarity.
        FeatureError: no vector at all, or NaN or infinity.
    """
    check_similarity(similarity)
    if 0 in vectors.shape:
        raise FeatureError(f"{name} must hold at least one vector, found shape {vectors.shape}")
    given = as_tensor(vectors)
    rows = given.float()
    count_zero_rows(rows, name)
    if centre is not None:
        rows = (given - centre.to(given)).float()
    return np.ascontiguousarray((unit_length(rows) if similarity == "cosine" else rows).numpy())


def _filled(index: Index, vectors: Float[np.ndarray, "N E"], similarity: str) -> Gallery:
    prepared, centre = _prepare_gallery(vectors, similarity)
    made = index.empty(prepared, len(prepared), similarity)
    made.add(prepared)
    return Gallery(made, similarity, centre)


def _prepare_gallery(
    vectors: Float[np.ndarray, "N E"], similarity: str
) -> tuple[Float[np.ndarray, "N E"], Float[Tensor, "E"] | None]:
    """The vectors as FAISS takes them, and the centre that was taken off them."""
    prepared = prepare(vectors, "vectors", similarity)
    centre = common_centre(torch.from_numpy(prepared), similarity=similarity)
    return (prepared if centre is None else prepare(vectors, "vectors", similarity, centre)), centre


def metric_of(similarity: str) -> int:
    return faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT


def _copy_to_gpu(index: Any) -> tuple[Any, Any]:
    """The exact index on the first GPU and the memory it lives in; two times None without GPU, or for other indexes."""
    if not isinstance(index, faiss.IndexFlat) or faiss.get_num_gpus() == 0:
        return None, None
    memory = faiss.StandardGpuResources()
    return faiss.index_cpu_to_gpu(memory, 0, index), memory


def _check_sizes(sizes: dict[str, tuple[int, int]]) -> None:
    faults = [f"index.{name} must be at least {low}, found {size}" for name, (size, low) in sizes.items() if size < low]
    if faults:
        raise ConfigError(faults)
