"""Relevance by class against sorted lists of one query at a time."""

import math
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from xmodal.errors import DataError, FeatureError
from xmodal.retrieval import class_ranks
from xmodal.retrieval.class_ranks import class_relevance
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.metrics import Queries
from xmodal.retrieval.similarity import Offsets


def score_of(a: list[float], b: list[float], similarity: str) -> float:
    if similarity == "euclidean":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b)) if similarity == "cosine" else dot


def figures_of(ranking: list[bool]) -> dict[str, float]:
    """Every figure of one query from its ranking, best first."""
    count, first = sum(ranking), ranking.index(True) + 1
    precision = [sum(ranking[:p]) / p for p in range(1, len(ranking) + 1)]
    gains = [1 / math.log2(p + 2) for p in range(10)]
    return (
        {
            "meanR": first,
            "mAP": 100 * sum(p for p, hit in zip(precision, ranking, strict=True) if hit) / count,
            "mAP@R": 100 * sum(p for p, hit in zip(precision[:count], ranking[:count], strict=True) if hit) / count,
            "RPrecision": 100 * sum(ranking[:count]) / count,
            "nDCG@10": 100 * sum(g for g, hit in zip(gains, ranking, strict=False) if hit) / sum(gains[:count]),
        }
        | {f"R{k}": 100.0 * (first <= k) for k in (1, 5, 10)}
        | {f"fractional_R{k}": 100 * sum(ranking[:k]) / count for k in (1, 5, 10)}
    )


def rankings(
    queries: list,
    gallery: list,
    query_labels: list,
    gallery_labels: list,
    similarity: str,
    itself: bool = False,
    offsets: list | None = None,
) -> list[list[bool]]:
    """What is relevant, best first, non-matches first among equals; a row per query."""
    offsets = offsets or [0.0] * len(gallery)
    found = []
    for row, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        items = [
            (score_of(query, item, similarity) + offset, other == label)
            for column, (item, other, offset) in enumerate(zip(gallery, gallery_labels, offsets, strict=True))
            if not (itself and column == row)
        ]
        found.append([match for _, match in sorted(items, key=lambda item: (-item[0], item[1]))])
    return found


def check_side(found: Queries | None, expected: list[list[bool]], asked: np.ndarray | None = None) -> None:
    ranks = [1 + r.index(True) if any(r) else 0 for r in expected]
    ranks = ranks if asked is None else [r if a else 0 for r, a in zip(ranks, asked, strict=True)]
    if not any(ranks):
        assert found is None
        return
    assert found is not None
    assert found.ranks.tolist() == ranks
    by_query = [figures_of(ranking) for ranking, rank in zip(expected, ranks, strict=True) if rank]
    for name in by_query[0]:
        assert found.values[name][found.matched] == pytest.approx([one[name] for one in by_query]), name
    assert found.metrics()["medR"] == statistics.median(r for r in ranks if r)


def check(image: np.ndarray, text: np.ndarray, labels: list, text_labels: list, similarity: str = "dot") -> None:
    ids = (range(len(image)), range(len(text)))
    result = evaluate_retrieval(image, text, *ids, similarity, image_labels=labels, text_labels=text_labels)
    sides = {"i": (image.tolist(), labels), "t": (text.tolist(), text_labels)}
    for way in ("i2t", "t2i", "i2i", "t2t"):
        (queries, query_labels), (gallery, gallery_labels) = sides[way[0]], sides[way[2]]
        itself = way[0] == way[2]
        expected = rankings(queries, gallery, query_labels, gallery_labels, similarity, itself)
        check_side(result.queries.get(way), expected)
        if way in result.queries:
            means = {name: result.metrics[f"{way}_{name}"] for name in ("mAP", "R1", "meanR", "fractional_R5")}
            of_queries = [figures_of(ranking) for ranking in expected if any(ranking)]
            assert means == pytest.approx({name: statistics.mean(q[name] for q in of_queries) for name in means})


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips, chunks and blocks so small that every evaluation has several."""
    monkeypatch.setattr(class_ranks, "STRIP", 1)
    monkeypatch.setattr(class_ranks, "CHUNK", 700)
    monkeypatch.setattr(class_ranks, "GALLERY_BLOCK", 64)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    images=st.integers(1, 14),
    texts=st.integers(1, 20),
    classes=st.integers(1, 6),
    similarity=st.sampled_from(["dot", "euclidean"]),
)
def test_agrees_with_sorted_lists_where_ties_abound(
    seed: int, images: int, texts: int, classes: int, similarity: str
) -> None:
    random = np.random.default_rng(seed)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (images, texts))
    labels, text_labels = (random.integers(0, classes, n).tolist() for n in (images, texts))
    text_labels[0] = labels[0]  # else there may be nothing to evaluate
    check(image, text, labels, text_labels, similarity)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_agrees_with_sorted_lists_over_several_strips_chunks_and_blocks(similarity: str) -> None:
    random = np.random.default_rng(5)
    image, text = random.normal(size=(150, 6)), random.normal(size=(140, 6))
    labels = random.choice(["art", "music", "war"], 150, p=[0.1, 0.2, 0.7]).tolist()
    text_labels = random.choice(["art", "geography", "music", "war"], 140).tolist()
    check(image, text, labels, text_labels, similarity)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("count", [63, 64, 65, 127, 129])
def test_equal_items_at_block_boundaries(similarity: str, count: int) -> None:
    random = np.random.default_rng(count)
    image, text = (random.integers(-1, 2, (n, 2)).astype(np.float32) for n in (count, count + 7))
    image[[0, count - 1]] = image[min(64, count - 1)] = image[62]
    text[[0, 62, 63, len(text) - 1]] = text[64]
    labels, text_labels = (random.integers(0, 4, n).tolist() for n in (count, count + 7))
    check(image, text, labels, text_labels, similarity)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(("items", "width"), [(2, 16), (65, 7), (777, 333), (2100, 5)])
def test_a_collapsed_model_has_all_of_other_classes_ahead(similarity: str, items: int, width: int) -> None:
    random = np.random.default_rng(0)
    same = np.tile(random.normal(size=width).astype(np.float32), (items, 1))
    labels = np.arange(items) % 7 if items > 14 else np.zeros(items, dtype=int)
    result = evaluate_retrieval(same, same, range(items), range(items), similarity, image_labels=labels)
    others = items - np.bincount(labels)[labels]
    for way in ("i2t", "t2i", "i2i", "t2t"):
        assert (result.ranks[way] == 1 + others).all(), way
        assert result.metrics[f"{way}_R10"] == (0.0 if items > 14 else 100.0)


def test_two_cluster_collapse_scores_at_most_chance() -> None:
    random = np.random.default_rng(0)
    clusters, labels = random.normal(size=(2, 8)).astype(np.float32)[np.arange(400) % 2], random.integers(0, 4, 400)
    result = evaluate_retrieval(clusters, clusters, range(400), range(400), image_labels=labels)
    chance = 100 * np.mean(np.bincount(labels)[labels]) / 400
    for way in ("i2t", "t2i", "i2i", "t2t"):
        assert result.metrics[f"{way}_mAP"] < chance
        assert result.metrics[f"{way}_R10"] == 0.0


@pytest.mark.usefixtures("small_parts")
def test_a_perfect_model_ranks_its_class_first() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200)
    centre = np.eye(10)[labels]
    result = evaluate_retrieval(centre, centre, range(200), range(200), image_labels=labels)
    for way in ("i2t", "t2i", "i2i", "t2t"):
        for name in ("R1", "mAP", "mAP@R", "RPrecision", "nDCG@10"):
            assert result.metrics[f"{way}_{name}"] == pytest.approx(100), (way, name)
        assert result.metrics[f"{way}_medR"] == 1.0
    assert result.metrics["rsum"] == 600.0  # of the two directions between images and texts


def by_label(labels: list, text_labels: list | None, **options: object) -> RetrievalResult:
    image, text = np.random.default_rng(0).normal(size=(2, 6, 3))
    return evaluate_retrieval(
        image, text, range(6), [1, 0, 3, 2, 5, 4], image_labels=labels, text_labels=text_labels, **options
    )


def test_strings_and_numbers_serve_as_labels() -> None:
    names = np.array(["war", "art and architecture", "sport"])
    expected = by_label([0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]).metrics
    assert by_label(names[[0, 1, 2, 0, 1, 2]], names[[2, 2, 1, 1, 0, 0]].tolist()).metrics == expected
    assert by_label(torch.tensor([0, 1, 2, 0, 1, 2]) + 2**60, torch.tensor([2, 2, 1, 1, 0, 0]) + 2**60).metrics == (
        expected
    )


def test_captions_take_the_labels_of_their_images() -> None:
    given, taken = by_label([0, 1, 2, 0, 1, 2], [1, 0, 0, 2, 2, 1]), by_label([0, 1, 2, 0, 1, 2], None)
    assert given.metrics == taken.metrics


def test_a_class_on_one_side_leaves_its_queries_out() -> None:
    result = by_label(["a", "b", "a", "b", "c", "a"], ["a", "d", "a", "b", "b", "d"])
    assert np.flatnonzero(result.ranks["i2t"] == 0).tolist() == [4]
    assert np.flatnonzero(result.ranks["t2i"] == 0).tolist() == [1, 5]
    assert (result.images_without_caption, result.texts_without_image) == (1, 2)
    assert result.ranks["t2t"].all()  # d has two captions


def test_a_direction_without_any_match_is_left_out() -> None:
    result = by_label([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2])
    assert set(result.queries) == {"i2t", "t2i", "t2t"}
    assert "i2i_mAP" not in result.metrics


@pytest.mark.usefixtures("small_parts")
def test_only_the_queries_that_are_asked_have_ranks() -> None:
    random = np.random.default_rng(3)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (90, 80))
    labels, text_labels = (random.integers(0, 5, n).tolist() for n in (90, 80))
    asked, asked_texts = random.random(90) < 0.8, random.random(80) < 0.2
    result = evaluate_retrieval(
        image,
        text,
        range(90),
        range(80),
        "dot",
        image_labels=labels,
        text_labels=text_labels,
        image_queries=asked,
        text_queries=asked_texts,
    )
    sides = {"i": (image.tolist(), labels, asked), "t": (text.tolist(), text_labels, asked_texts)}
    for way, found in result.queries.items():
        (queries, query_labels, mask), (gallery, gallery_labels, _) = sides[way[0]], sides[way[2]]
        ranking = rankings(queries, gallery, query_labels, gallery_labels, "dot", way[0] == way[2])
        check_side(found, ranking, mask)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("itself", [False, True])
def test_offsets_are_added_to_the_scores_of_the_queries_they_are_for(itself: bool) -> None:
    random = np.random.default_rng(4)
    gallery, labels = random.integers(-2, 3, (150, 3)).astype(np.float32), random.integers(0, 5, 150)
    queries, query_labels = (gallery, labels) if itself else (gallery[20:130], labels[30:140])
    added, corrected = random.integers(-4, 5, 150).astype(np.float32), random.random(len(queries)) < 0.5
    rows = random.permutation(len(queries))[:100]  # two strips
    chunks = class_relevance(
        torch.from_numpy(queries),
        torch.from_numpy(gallery),
        query_labels,
        labels,
        rows,
        "dot",
        Offsets(torch.from_numpy(added), torch.from_numpy(corrected)),
        itself,
    )
    sides = (queries.tolist(), gallery.tolist(), query_labels.tolist(), labels.tolist(), "dot", itself)
    plain, moved = rankings(*sides), rankings(*sides, added.tolist())
    expected = [m if c else p for p, m, c in zip(plain, moved, corrected, strict=True)]
    check_side(Queries.from_chunks(chunks, query_labels), expected, np.isin(np.arange(len(queries)), rows))


def test_both_precisions_and_a_side_of_each_are_accepted() -> None:
    image, labels = torch.randn(40, 4).half().float().requires_grad_(), torch.arange(40) % 3
    expected = evaluate_retrieval(image, image, range(40), range(40), image_labels=labels).metrics
    for other in (image.half(), image.double()):
        assert evaluate_retrieval(other, image, range(40), range(40), image_labels=labels).metrics == expected


class PrecisionOfProducts(TorchDispatchMode):
    """What a matrix product was allowed to do with its numbers: precision and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, bool]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.mm:
            self.seen.add((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"image_labels": torch.arange(60) % 4}], ids=["instance", "class"])
def test_mixed_precision_of_a_training_loop_does_not_reach_the_ranks(options: dict) -> None:
    image, text = torch.randn(2, 60, 256)
    expected = evaluate_retrieval(image, text, range(60), range(60), **options)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), PrecisionOfProducts() as products:
            found = evaluate_retrieval(image, text, range(60), range(60), **options)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert products.seen == {("highest", False)}
    assert found.metrics == expected.metrics


def test_a_consumer_between_two_chunks_computes_as_before(small_parts: None) -> None:
    items, labels = torch.randn(130, 4), np.arange(130) % 2
    chunks: Iterator = class_relevance(items, items, labels, labels, np.arange(130), "cosine")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        next(chunks)
        assert (torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()) == ("medium", False)
    finally:
        torch.set_float32_matmul_precision(before)


def test_neither_inputs_nor_labels_are_changed() -> None:
    items, labels = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32), np.arange(50) % 4
    kept, kept_labels = items.copy(), labels.copy()
    evaluate_retrieval(items, items, range(50), range(50), "dot", image_labels=labels)
    assert (items == kept).all()
    assert (labels == kept_labels).all()


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def test_memory_is_bounded_whatever_the_number_of_queries(small_parts: None) -> None:
    queries, gallery = torch.randn(640, 4), torch.randn(300, 4)
    labels = np.arange(640) % 3
    with LargestTensor() as largest:
        chunks = list(class_relevance(queries, gallery, labels, labels[:300], np.arange(640), "cosine"))
    assert largest.elements == 64 * 300
    assert max(len(chunk.number) for chunk in chunks) <= 700
    assert sum(len(chunk.number) for chunk in chunks) == 640 * 100


def test_text_labels_without_image_labels_are_an_error() -> None:
    with pytest.raises(DataError, match="text_labels were given without image_labels"):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [0, 1], text_labels=[0, 1])


def test_no_query_with_a_class_of_the_gallery_is_an_error() -> None:
    with pytest.raises(DataError, match=r"i2t: no query has the class .* begin with \[0, 0, 1\], .* with \[7, 8, 7\]"):
        by_label([0, 0, 1, 1, 2, 2], [7, 8, 7, 8, 7, 8])


@pytest.mark.parametrize(
    ("labels", "text_labels", "message"),
    [
        ([0] * 5, [0] * 6, r"image_labels must have one entry per embedding, shape \(6,\), found \(5,\)"),
        (
            [0] * 6,
            np.zeros((6, 1), dtype=int),
            r"text_labels must have one entry per embedding, shape \(6,\), found \(6, 1\)",
        ),
        ([0] * 6, ["0"] * 6, "image_labels and text_labels must be of one kind, found integers and strings"),
        (np.ones(6), None, "image_labels must be integers .* found float64"),
    ],
)
def test_labels_of_the_wrong_kind_or_number(labels: list, text_labels: list | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        by_label(labels, text_labels)


def test_captions_of_unknown_images_need_labels_of_their_own() -> None:
    with pytest.raises(DataError, match=r"text_labels must be given .* 1 do, the first to image 7"):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [0, 7], image_labels=[0, 0])


def test_overflowing_products_within_a_class_are_an_error() -> None:
    large, labels = torch.full((3, 4), 1e30), np.array([0, 1, 1])
    message = r"dot similarity leaves the range of torch.float32 for 5 of 5 matching pairs, of queries 0 to 2"
    with pytest.raises(FeatureError, match=message):
        list(class_relevance(large, large, labels, labels, np.arange(3), "dot"))
    with pytest.raises(FeatureError, match="for 2 of 2 matching pairs, of queries 1 to 2"):
        list(class_relevance(large, large, labels, labels, np.arange(3), "dot", leave_out_itself=True))


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_an_overflow_of_another_class_stands_before_the_match(similarity: str) -> None:
    image, text = np.array([[1e18]], dtype=np.float32), np.array([[1e18], [1e30]], dtype=np.float32)
    result = evaluate_retrieval(image, text, [0], [0, 1], similarity, image_labels=[0], text_labels=[0, 1])
    assert result.ranks["i2t"].tolist() == [2]  # caption 1 scores ∞, or ∞ − ∞
