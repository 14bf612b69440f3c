"""FAISS indexes against the exact ranks and a full sort."""

import math

import numpy as np
import pytest
import torch

from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.index import FlatIndex, HNSWIndex, Index, IVFPQIndex, index_recall

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
def test_a_match_is_in_the_flat_top_k_where_its_rank_says_so(similarity: str) -> None:
    random = np.random.default_rng(7)
    image, text = (random.normal(size=(n, 6)).astype(np.float32) for n in (70, 210))
    ids, text_ids = np.arange(70), random.integers(0, 60, 210)  # any number of captions, ten images with none
    ranks = evaluate_retrieval(image, text, ids, text_ids, similarity).ranks
    found = {"i2t": 0, "t2i": 0}
    for k in (1, 5, 10):
        within = {way: (rank > 0) & (rank <= k) for way, rank in ranks.items()}
        _, captions = FlatIndex().build(text, similarity).search(image, k)
        _, images = FlatIndex().build(image, similarity).search(text, k)
        assert (text_ids[captions] == ids[:, None]).any(axis=1).tolist() == within["i2t"].tolist()
        assert (images == text_ids[:, None]).any(axis=1).tolist() == within["t2i"].tolist()
        found = {way: found[way] + int(within[way].sum()) for way in found}
    assert 0 < found["i2t"] < 210
    assert 0 < found["t2i"] < 630


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_where_items_tie_the_flat_top_k_holds_every_match_that_the_ranks_count(similarity: str) -> None:
    random = np.random.default_rng(8)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 120))
    text_ids = np.arange(120) % 40
    ranks = evaluate_retrieval(image, text, np.arange(40), text_ids, similarity).ranks["i2t"]
    more = 0
    for k in (1, 5, 20):
        _, captions = FlatIndex().build(text, similarity).search(image, k)
        found = (text_ids[captions] == np.arange(40)[:, None]).any(axis=1)
        assert found[ranks <= k].all()
        more += int(found[ranks > k].sum())
    assert more  # luck among equals, which the ranks don't count


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


def naive_recall(rows: np.ndarray, vectors: np.ndarray, queries: np.ndarray, similarity: str) -> float:
    found = 0
    for query, returned in zip(queries, rows.tolist(), strict=True):
        scores, _ = full_sort(vectors, query[None], similarity)
        last = scores[0, len(returned) - 1] - 1e-6
        for row in returned:
            found += row >= 0 and full_sort(vectors[row][None], query[None], similarity)[0][0, 0] >= last
    return 100 * found / rows.size


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("name", ["hnsw", "ivf_pq"])
def test_index_recall_is_the_share_of_the_exact_top_k(name: str, similarity: str) -> None:
    random = np.random.default_rng(3)
    vectors, queries = (random.normal(size=(n, 24)).astype(np.float32) for n in (2000, 40))
    index = HNSWIndex(neighbours=4, ef_construction=8, ef_search=1) if name == "hnsw" else IVFPQIndex(8, 1, 4, 4)
    gallery = index.build(vectors, similarity)
    for k in (1, 10):
        _, rows = gallery.search(queries, k)
        recall = index_recall(gallery, vectors, queries, k)
        assert recall == pytest.approx(naive_recall(rows, vectors, queries, similarity))
        assert 0 < recall < 100


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "collapsed"])
def test_the_exact_index_recalls_everything(kind: str, similarity: str) -> None:
    random = np.random.default_rng(4)
    vectors, queries = {
        "random": (random.normal(size=(300, 8)), random.normal(size=(500, 8))),
        "ties": (random.integers(-1, 2, (300, 3)) + 0.0, random.integers(-1, 2, (20, 3)) + 0.0),
        "zeros": (np.zeros((30, 4)), random.normal(size=(5, 4))),
        "collapsed": (np.ones((30, 4)), np.ones((5, 4))),
    }[kind]
    for k in (1, 7, 1000):
        assert index_recall(FlatIndex().build(vectors, similarity), vectors, queries, k) == 100.0


def test_another_item_of_the_same_score_is_as_good() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    swapped = FlatIndex().build(vectors[[2, 0, 1]], "dot")  # finds row 1 where the first of equals is row 0
    assert swapped.search(vectors[:1], 1)[1].tolist() == [[1]]
    assert index_recall(swapped, vectors, vectors[:1], 1) == 100.0
    assert index_recall(swapped, vectors, vectors[2:], 1) == 0.0  # row 0, whose score is 0 instead of 1


def test_what_an_index_does_not_find_is_missed() -> None:
    random = np.random.default_rng(5)
    vectors = random.normal(size=(100, 8))
    gallery = IVFPQIndex(lists=2, probes=1, codes=8, bits=4).build(vectors, "dot")
    _, rows = gallery.search(vectors[:10], 100)
    assert (rows < 0).any()
    assert index_recall(gallery, vectors, vectors[:10], 100) == pytest.approx(100 * (rows >= 0).mean())


def test_index_recall_of_other_vectors() -> None:
    gallery = FlatIndex().build(np.eye(4), "dot")
    with pytest.raises(FeatureError, match=r"built from, of shape \(4, 4\); found \(3, 4\)"):
        index_recall(gallery, np.eye(4)[:3], np.eye(4), 1)
    with pytest.raises(FeatureError, match=r"queries must hold at least one vector, found shape \(0, 4\)"):
        index_recall(gallery, np.eye(4), np.eye(4)[:0], 1)
    with pytest.raises(ConfigError, match="k must be at least 1, found 0"):
        index_recall(gallery, np.eye(4), np.eye(4), 0)


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


@pytest.mark.parametrize("offset", [100.0, 1000.0])
def test_distances_are_exact_far_from_the_origin(offset: float) -> None:
    random = np.random.default_rng(3)
    vectors, queries = ((random.normal(size=(n, 32)) + offset).astype(np.float32) for n in (400, 60))
    gallery = FlatIndex().build(vectors, "euclidean")
    scores, rows = gallery.search(queries, 400)
    expected_scores, expected_rows = full_sort(vectors, queries, "euclidean")
    assert rows[:, :5].tolist() == expected_rows[:, :5].tolist()
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-4)
    assert index_recall(gallery, vectors, queries, 10) == 100.0
    found = evaluate_retrieval(queries, vectors, range(60), np.arange(400) % 60, "euclidean")
    hits = rows % 60 == np.arange(60)[:, None]
    assert found.ranks["i2t"].tolist() == (1 + hits.argmax(axis=1)).tolist()
    assert 0 < found.metrics["i2t_R10"] < 100
    for index in (HNSWIndex(), IVFPQIndex(lists=4, probes=4, codes=32)):
        assert index_recall(index.build(vectors, "euclidean"), vectors, queries, 10) > 80
