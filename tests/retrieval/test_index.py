"""FAISS indexes against the exact ranks and a full sort."""

import math

import numpy as np
import pytest
import torch

from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.index import FlatIndex, HNSWIndex, Index, IVFPQIndex

SIMILARITIES = ("cosine", "dot", "euclidean")
INDEXES = {
    "flat": FlatIndex(),
    "hnsw": HNSWIndex(neighbours=16, ef_construction=64, ef_search=64),
    "ivf_pq": IVFPQIndex(lists=8, probes=8, codes=8, bits=8),
}


def full_sort(vectors: np.ndarray, queries: np.ndarray, similarity: str) -> tuple[np.ndarray, np.ndarray]:
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if similarity == "cosine":
        vectors, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, queries))
    if similarity == "euclidean":
        scores = -np.linalg.norm(queries[:, None] - vectors[None], axis=2)
    else:
        scores = queries @ vectors.T
    rows = np.argsort(-scores, axis=1)
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_flat_agrees_with_a_full_sort(similarity: str) -> None:
    random = np.random.default_rng(0)
    vectors, queries = random.normal(size=(300, 16)), random.normal(size=(20, 16))
    scores, rows = FlatIndex().build(vectors, similarity).search(queries, 10)
    expected_scores, expected_rows = full_sort(vectors, queries, similarity)
    assert rows.tolist() == expected_rows[:, :10].tolist()
    np.testing.assert_allclose(scores, expected_scores[:, :10], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_flat_top_k_agrees_with_the_exact_ranks(similarity: str) -> None:
    random = np.random.default_rng(1)
    image, text = (random.normal(size=(n, 32)).astype(np.float32) for n in (200, 1000))
    ids = np.repeat(np.arange(200), 5)
    ranks = evaluate_retrieval(image, text, np.arange(200), ids, similarity).ranks
    _, captions = FlatIndex().build(text, similarity).search(image, 1000)
    _, images = FlatIndex().build(image, similarity).search(text, 200)
    assert ((ids[captions] == np.arange(200)[:, None]).argmax(axis=1) + 1).tolist() == ranks["i2t"].tolist()
    assert ((images == ids[:, None]).argmax(axis=1) + 1).tolist() == ranks["t2i"].tolist()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("name", "least"), [("hnsw", 0.9), ("ivf_pq", 0.25)])
def test_approximate_indexes_find_most_of_the_exact_top_ten(name: str, least: float, similarity: str) -> None:
    random = np.random.default_rng(2)
    centres = random.normal(size=(20, 16))
    vectors, queries = (centres[random.integers(20, size=n)] + 0.5 * random.normal(size=(n, 16)) for n in (2000, 50))
    _, exact = full_sort(vectors, queries, similarity)
    _, rows = INDEXES[name].build(vectors, similarity).search(queries, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact[:, :10].tolist(), strict=True)])
    assert shared >= least


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("count", [1, 2, 3, 39, 100, 300])
@pytest.mark.parametrize("name", INDEXES)
def test_small_galleries_and_large_k(name: str, count: int, similarity: str) -> None:
    vectors = np.random.default_rng(count).normal(size=(count, 12)).astype(np.float32)
    gallery = INDEXES[name].build(vectors, similarity)
    scores, rows = gallery.search(vectors[:1], 5000)
    assert len(gallery) == count
    assert scores.shape == rows.shape == (1, count)
    found = rows[rows >= 0]
    assert len(set(found.tolist())) == len(found) >= 1
    assert (np.isneginf(scores) == (rows < 0)).all()
    assert (np.diff(scores[rows >= 0]) <= 1e-6).all()


@pytest.mark.parametrize("name", INDEXES)
def test_settings_are_used_again_for_another_gallery(name: str) -> None:
    index = INDEXES[name]
    assert isinstance(index, Index)
    random = np.random.default_rng(0)
    first, second = (index.build(random.normal(size=(n, 8)), "cosine") for n in (50, 60))
    assert (len(first), len(second)) == (50, 60)


def test_length_does_not_matter_under_cosine() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8))
    gallery = FlatIndex().build(vectors * np.geomspace(1e-20, 1e20, 50)[:, None], "cosine")
    scores, rows = gallery.search(vectors * 1e-10, 1)
    assert rows[:, 0].tolist() == list(range(50))
    np.testing.assert_allclose(scores, 1.0, rtol=1e-5)


def test_torch_and_faiss_work_side_by_side() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    for _ in range(5):
        product = torch.from_numpy(vectors) @ torch.from_numpy(vectors).T
        _, rows = FlatIndex().build(vectors, "dot").search(vectors, 1)
        assert rows[:, 0].tolist() == product.argmax(dim=1).tolist()


@pytest.mark.parametrize("name", INDEXES)
def test_bad_vectors_and_queries(name: str) -> None:
    good = np.ones((4, 3), dtype=np.float32)
    bad = good.copy()
    bad[2, 1] = math.nan
    with pytest.raises(FeatureError, match=r"vectors .* 1 of 4 rows hold NaN or infinity: rows 2\."):
        INDEXES[name].build(bad, "dot")
    with pytest.raises(FeatureError, match=r"vectors must hold at least one vector, found shape \(0, 3\)"):
        INDEXES[name].build(good[:0], "dot")
    with pytest.raises(ConfigError, match="found 'manhattan'"):
        INDEXES[name].build(good, "manhattan")
    gallery = INDEXES[name].build(np.random.default_rng(0).normal(size=(4, 3)), "dot")
    with pytest.raises(FeatureError, match=r"queries .* rows 2"):
        gallery.search(bad, 1)
    with pytest.raises(FeatureError, match="width 3 of the index, found 2"):
        gallery.search(good[:, :2], 1)
    with pytest.raises(ConfigError, match="k must be at least 1, found 0"):
        gallery.search(good, 0)


def test_impossible_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"neighbours must be at least 2, found 1\nindex.ef_search .* found 0"):
        HNSWIndex(neighbours=1, ef_search=0)
    with pytest.raises(ConfigError, match=r"lists must be at least 1, found 0\nindex.probes .* found -3"):
        IVFPQIndex(lists=0, probes=-3)
    with pytest.raises(ConfigError, match="bits must be at most 12, found 16"):
        IVFPQIndex(bits=16)
