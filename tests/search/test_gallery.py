"""Numbered vectors: exact search against sorting in float64, approximate search against exact, changes, and memory."""

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.search.building import RecallMeasure, build_gallery, drawn_queries, exact_top, tuned
from xmodal.search.choice import Asked, choose
from xmodal.search.gallery import NumberedGallery, as_queries, check_k, read_gallery

SIMILARITIES = ("cosine", "dot", "euclidean")
KINDS = ("flat", "hnsw", "ivf_pq")
WIDTH, PLENTY = 16, 10**10


def vectors(count: int, similarity: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(40, WIDTH))
    drawn = centres[random.integers(40, size=count)] + 0.5 * random.normal(size=(count, WIDTH))
    return as_queries(drawn.astype(np.float32), WIDTH, similarity)


def gallery(rows: np.ndarray, kind: str, similarity: str, path: Path = Path("unused")) -> NumberedGallery:
    return build_gallery(rows, choose(len(rows), WIDTH, PLENTY, Asked(kind)), similarity, PLENTY, path)


def scores(queries: np.ndarray, rows: np.ndarray, similarity: str) -> np.ndarray:
    """One by one, in float64."""
    given, asked = rows.astype(np.float64), queries.astype(np.float64)
    if similarity == "euclidean":
        return np.array([[-np.sqrt(((q - r) ** 2).sum()) for r in given] for q in asked])
    return np.array([[(q * r).sum() for r in given] for q in asked])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("is_half", [False, True], ids=["all", "half of them"])
def test_exact_search_sorts(similarity: str, is_half: bool) -> None:
    rows, queries = vectors(150, similarity), vectors(6, similarity, seed=1)
    among = np.arange(0, 150, 2) if is_half else None
    expected = scores(queries, rows, similarity)
    for kind in ("flat", "hnsw"):  # few enough for a graph to find all; in half of one it looks at each
        found, numbers = gallery(rows, kind, similarity).search(queries, 20, among)
        for query in range(6):
            allowed = np.arange(150) if among is None else among
            order = allowed[np.argsort(-expected[query][allowed], kind="stable")][:20]
            assert numbers[query].tolist() == order.tolist()
            np.testing.assert_allclose(found[query], expected[query][order], atol=1e-5)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_approximate_search_is_tuned_until_it_finds_enough(kind: str, similarity: str) -> None:
    rows = vectors(3000, similarity)
    choice = choose(len(rows), WIDTH, PLENTY, Asked(kind))
    made = build_gallery(rows, choice, similarity, PLENTY, Path("unused"))
    queries = drawn_queries(vectors(200, similarity, seed=1), WIDTH, similarity)
    measure = RecallMeasure(rows, queries, similarity)
    first = measure(made)
    after, recall = tuned(made, choice, measure)
    assert recall.queries == 200
    assert recall == measure(made)
    assert recall.percent >= max(first.percent, {"flat": 100.0, "hnsw": 95.0, "ivf_pq": 40.0}[kind])
    if kind == "ivf_pq":  # more clusters are searched, as long as that helps
        assert made.index.nprobe == after.settings["probes"] >= choice.settings["probes"]
    by_hand = [
        len({*a} & {*b})
        for a, b in zip(made.search(queries, 10)[1], exact_top(rows, queries, 10, similarity), strict=True)
    ]
    assert recall.percent == pytest.approx(10 * np.mean(by_hand), abs=0.5)


def test_what_was_asked_for_is_not_tuned() -> None:
    rows = vectors(500, "cosine")
    choice = choose(500, WIDTH, PLENTY, Asked("hnsw", {"ef_search": 1, "neighbours": 2}))
    made = build_gallery(rows, choice, "cosine", PLENTY, Path("unused"))
    after, recall = tuned(made, choice, RecallMeasure(rows, rows, "cosine"))
    assert after == choice
    assert made._inner.hnsw.efSearch == 1
    assert recall.percent < 95


def test_more_than_there_are_and_ties() -> None:
    rows = np.repeat(np.eye(WIDTH, dtype=np.float32)[:2], [3, 1], axis=0)
    found, numbers = gallery(rows, "flat", "cosine").search(rows[:1], 99)
    assert sorted(numbers[0][:3].tolist()) == [0, 1, 2]
    assert numbers[0].tolist()[3] == 3
    assert found[0].tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("k", [10, 200, 600])
def test_a_graph_finds_as_many_as_are_asked_for(k: int, similarity: str) -> None:
    """With two links per vector most of it is out of reach, and it looks at four candidates unless told otherwise."""
    rows, queries = vectors(600, similarity), vectors(9, similarity, seed=1)
    choice = choose(len(rows), WIDTH, PLENTY, Asked("hnsw", {"ef_search": 4, "neighbours": 2}))
    made = build_gallery(rows, choice, similarity, PLENTY, Path("unused"))
    made.remove(np.arange(0, 600, 7))  # from here on numbers are no rows
    expected = scores(queries, rows, similarity)
    found, numbers = made.search(queries, k)
    count = min(k, len(made))
    assert found.shape == numbers.shape == (9, count)
    for query in range(9):
        assert len({*numbers[query].tolist()} - {-1}) == count
        np.testing.assert_allclose(found[query], expected[query][numbers[query]], atol=2e-3)
        assert (np.diff(found[query]) <= 0).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_ranks_count_what_is_at_least_as_close(kind: str, similarity: str) -> None:
    rows = vectors(60, similarity)
    rows[7] = rows[3]
    made, queries = gallery(rows, kind, similarity), vectors(5, similarity, seed=2)
    expected = scores(queries, rows, similarity)
    for query in range(5):
        wanted = [3, 11]
        others = [n for n in range(60) if n not in wanted]
        best = max(expected[query][wanted])
        assert made.count_better(queries[query], np.array(wanted)) == sum(expected[query][n] >= best for n in others)
        few = np.array([3, 7, 11, 20])
        counted = made.count_better(queries[query], np.array(wanted), few)
        assert counted == sum(expected[query][n] >= best for n in (7, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_and_removed_leaves_what_would_have_been_built(kind: str, tmp_path: Path) -> None:
    rows, queries = vectors(400, "cosine"), vectors(20, "cosine", seed=3)
    made = gallery(rows[:300], kind, "cosine")
    made.add(rows[300:], np.arange(1000, 1100))
    gone = np.arange(0, 300, 3)
    made.remove(gone)
    numbers = np.r_[np.setdiff1d(np.arange(300), gone), np.arange(1000, 1100)]
    assert len(made) == len(numbers)
    made.write(tmp_path / "images.faiss")
    for changed in (made, read_gallery(tmp_path / "images.faiss", "cosine")):
        found = changed.search(queries, 10)[1]
        assert set(found.ravel()) <= {*numbers.tolist()}
        if kind != "ivf_pq":
            stays = rows[np.r_[np.setdiff1d(np.arange(300), gone), np.arange(300, 400)]]
            expected = gallery(stays, kind, "cosine").search(queries, 10)[1]
            assert found.tolist() == numbers[expected].tolist()
            np.testing.assert_array_equal(changed.vectors(numbers), stays)
        else:
            with pytest.raises(FeatureError, match="holds codes of vectors"):
                changed.vectors(numbers)


def test_a_part_of_clusters_is_searched_more_widely() -> None:
    rows = vectors(3000, "cosine")
    made = gallery(rows, "ivf_pq", "cosine")
    few = np.sort(np.random.default_rng(0).permutation(3000)[:30])
    _, numbers = made.search(rows[:50], 10, few)
    assert (numbers >= 0).all()
    assert set(numbers.ravel()) <= {*few.tolist()}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (np.zeros((2, 3), np.float32), r"must have the shape \(count, 16\), found \(2, 3\)"),
        (np.full((2, WIDTH), np.nan, np.float32), "2 of 2 vectors hold NaN"),
        (np.full((1, WIDTH), 1e30, np.float32), "1 of 1 vectors hold NaN, infinity or numbers too large"),
    ],
)
def test_vectors_that_can_not_be_searched_with(given: np.ndarray, fault: str) -> None:
    with pytest.raises(FeatureError, match=fault):
        as_queries(given, WIDTH, "cosine")
    with pytest.raises(ConfigError, match="k must be at least 1, found 0"):
        check_k(0)


@pytest.mark.filterwarnings("ignore:overflow")
def test_long_vectors_whose_squares_sum_to_infinity_are_sound() -> None:
    long = np.full((4, WIDTH), 4e18, np.float32)  # a square of the length is 2.6e38, of all 1e39
    np.testing.assert_allclose(as_queries(long, WIDTH, "cosine"), 1 / np.sqrt(WIDTH), rtol=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_what_was_not_found_comes_last(similarity: str) -> None:
    rows = vectors(600, similarity)
    choice = choose(len(rows), WIDTH, PLENTY, Asked("ivf_pq", {"lists": 32, "codes": 4, "bits": 4, "probes": 1}))
    made = build_gallery(rows, choice, similarity, PLENTY, Path("unused"))
    found, numbers = made.search(vectors(20, similarity, seed=1), 500)  # one cluster holds fewer
    counts = (numbers >= 0).sum(axis=1)
    assert (counts < 500).all()
    for row, line, count in zip(found, numbers, counts, strict=True):
        assert (line[count:] == -1).all()
        assert (row[count:] == -np.inf).all()
        assert np.isfinite(row[:count]).all()


def test_zero_vectors_stay_zero_under_cosine() -> None:
    assert as_queries(np.zeros((1, WIDTH), np.float32), WIDTH, "cosine").tolist() == [[0.0] * WIDTH]


def test_clusters_built_in_memory_are_mapped_where_there_is_less_of_it(tmp_path: Path) -> None:
    rows, queries = vectors(3000, "cosine"), vectors(20, "cosine", seed=1)
    made = gallery(rows, "ivf_pq", "cosine")
    made.write(tmp_path / "images.faiss")
    opened = read_gallery(tmp_path / "images.faiss", "cosine", 1000)
    assert isinstance(faiss.downcast_InvertedLists(opened.index.invlists), faiss.OnDiskInvertedLists)
    assert opened.search(queries, 10)[1].tolist() == made.search(queries, 10)[1].tolist()


def test_files_that_can_not_be_opened(tmp_path: Path) -> None:
    gallery(vectors(100, "cosine"), "flat", "cosine").write(tmp_path / "images.faiss")
    with pytest.raises(DataError, match=r"more than the 0.00 GB it may take. Allow more \(--memory-gb\)"):
        read_gallery(tmp_path / "images.faiss", "cosine", 1000)
    (tmp_path / "other.faiss").write_bytes(b"Iw nothing")
    with pytest.raises(DataError, match="can't be read as a FAISS index"):
        read_gallery(tmp_path / "other.faiss", "cosine")
    with pytest.raises(OSError, match="can't be written"):
        gallery(vectors(10, "cosine"), "flat", "cosine").write(tmp_path / "nowhere" / "images.faiss")


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="no GPU here")
def test_the_gpu_finds_the_same() -> None:
    rows, queries = vectors(3000, "cosine"), vectors(50, "cosine", seed=1)
    made = gallery(rows, "flat", "cosine")
    expected = made.search(queries, 10)
    assert made.to_gpu()
    found = made.search(queries, 10)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    assert (found[1] == expected[1]).mean() > 0.99


LARGE = """
import json, sys, threading, time
from pathlib import Path
import faiss, numpy as np
from xmodal.search.building import build_gallery, vectors_file
from xmodal.search.choice import Asked, choose
from xmodal.search.gallery import read_gallery, size_of
folder, count, width, budget = Path(sys.argv[1]), 1_000_000, 32, 6_000_000
vectors, random = vectors_file(folder / "vectors.npy", count, width), np.random.default_rng(0)
for start in range(0, count, 50_000):
    vectors[start : start + 50_000] = random.standard_normal((50_000, width), dtype=np.float32)
asked = Asked("ivf_pq", {"lists": 64, "codes": 32, "bits": 4, "probes": 8})
choice = choose(count, width, budget, asked)
choose(5, 4, budget, asked).index().empty(np.eye(4, dtype=np.float32), 5, "dot")  # imports, thread pools
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
before, most, done = anonymous(), [0], threading.Event()
def watch():
    while not done.is_set():
        most[0] = max(most[0], anonymous() - before)
        time.sleep(0.005)
watcher = threading.Thread(target=watch); watcher.start()
path = folder / "images.faiss"
gallery = build_gallery(vectors, choice, "dot", budget, path)
gallery.write(path)
_, of_building = gallery.search(np.array(vectors[:100]), 10)
done.set(); watcher.join()
del gallery
before = anonymous()
opened = read_gallery(path, "dot", budget)
_, found = opened.search(np.array(vectors[:100]), 10)
grown = anonymous() - before
print(json.dumps({"size": size_of(path), "building": most[0], "searching": grown, "on_disk": choice.on_disk,
    "files": sorted(p.name for p in folder.iterdir()), "same": bool((found == of_building).all()),
    "found": found.tolist(), "count": len(opened)}))
"""


@pytest.mark.slow
def test_an_index_larger_than_memory_is_built_in_parts_and_searched_on_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["on_disk"]
    assert told["count"] == 1_000_000
    assert told["files"] == ["images.faiss", "images.ivfdata", "vectors.npy"]
    assert told["size"] > 24e6
    assert told["building"] < told["size"], "anonymous memory while it was built"
    assert told["searching"] < 6e6
    assert told["same"]
    in_memory = read_gallery(tmp_path / "images.faiss", "dot").index
    lists = faiss.ArrayInvertedLists(in_memory.nlist, in_memory.code_size)
    old = faiss.downcast_InvertedLists(in_memory.invlists)
    for number in range(in_memory.nlist):
        size = old.list_size(number)
        lists.add_entries(number, size, old.get_ids(number), old.get_codes(number))
    in_memory.replace_invlists(lists)
    queries = np.load(tmp_path / "vectors.npy", mmap_mode="r")[:100]
    assert in_memory.search(np.ascontiguousarray(queries), 10)[1].tolist() == told["found"]
