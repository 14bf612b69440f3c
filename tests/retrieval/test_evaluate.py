"""Evaluation against sorted lists, on random and on adversarial embeddings."""

import math
import statistics
import string
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.inputs import as_ids, check_options


def similarity_of(a: list[float], b: list[float], similarity: str) -> float:
    if similarity == "euclidean":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b)) if similarity == "cosine" else dot


def naive(queries: list, gallery: list, query_ids: list, gallery_ids: list, similarity: str) -> tuple[list, float]:
    """Ranks and mAP by sorting the gallery of each query, non-matches first among equals."""
    ranks, precisions = [], []
    for query, own in zip(queries, query_ids, strict=True):
        scored = [(similarity_of(query, g, similarity), i == own) for g, i in zip(gallery, gallery_ids, strict=True)]
        hits = [hit for _, hit in sorted(scored, key=lambda item: (-item[0], item[1]))]
        positions = [p for p, hit in enumerate(hits, 1) if hit]
        ranks.append(positions[0] if positions else 0)
        if positions:
            precisions.append(sum(r / p for r, p in enumerate(positions, 1)) / len(positions))
    return ranks, 100 * sum(precisions) / len(precisions)


def check(image: np.ndarray, text: np.ndarray, ids: list, text_ids: list, similarity: str, block_size: int) -> None:
    result = evaluate_retrieval(image, text, ids, text_ids, similarity, block_size=block_size)
    for way, sides in {
        "i2t": (image.tolist(), text.tolist(), ids, text_ids),
        "t2i": (text.tolist(), image.tolist(), text_ids, ids),
    }.items():
        ranks, precision = naive(*sides, similarity)
        assert result.ranks[way].tolist() == ranks
        assert result.metrics[f"{way}_mAP"] == pytest.approx(precision)
        found = [r for r in ranks if r]
        for k in (1, 5, 10):
            assert result.metrics[f"{way}_R{k}"] == pytest.approx(100 * sum(r <= k for r in found) / len(found))
        assert result.metrics[f"{way}_medR"] == statistics.median(found)
        assert result.metrics[f"{way}_meanR"] == pytest.approx(statistics.mean(found))
    recalls = [result.metrics[f"{way}_R{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert result.metrics["rsum"] == pytest.approx(sum(recalls))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    images=st.integers(1, 12),
    captions=st.lists(st.integers(0, 7), min_size=12, max_size=12).filter(lambda counts: counts[0] > 0),
    similarity=st.sampled_from(["dot", "euclidean"]),
    block_size=st.sampled_from([1, 64, 512]),
)
def test_agrees_with_sorted_lists_where_ties_abound(
    seed: int, images: int, captions: list[int], similarity: str, block_size: int
) -> None:
    random = np.random.default_rng(seed)
    ids = random.permutation(images).tolist()
    text_ids = random.permutation([i for i in range(images) for _ in range(captions[i])] or [0]).tolist()
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (images, len(text_ids)))
    check(image, text, ids, text_ids, similarity, block_size)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("block_size", [1, 100, 10_000])
def test_agrees_with_sorted_lists_over_several_blocks(similarity: str, block_size: int) -> None:
    random = np.random.default_rng(5)
    text_ids = random.integers(0, 150, 400).tolist()  # some images have none, some captions share their image
    image, text = random.normal(size=(150, 6)), random.normal(size=(400, 6))
    check(image, text, list(range(150)), text_ids, similarity, block_size)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("count", [63, 64, 65, 127, 128, 129, 192])
def test_equal_items_at_block_boundaries(similarity: str, count: int) -> None:
    random = np.random.default_rng(count)
    image, text = (random.integers(-1, 2, (n, 2)).astype(np.float32) for n in (count, 2 * count))
    image[[count - 1, 0]] = image[min(63, count - 1)] = image[min(64, count - 1)]
    text[[len(text) // 2, min(127, len(text) - 1), min(128, len(text) - 1), len(text) - 1]] = text[0]
    check(image, text, list(range(count)), [i // 2 for i in range(2 * count)], similarity, block_size=64)


def test_a_repeated_image_id_means_several_matches() -> None:
    random = np.random.default_rng(1)
    image, text = random.integers(-2, 3, (9, 3)).astype(np.float32), random.integers(-2, 3, (12, 3)).astype(np.float32)
    check(image, text, [0, 1, 2, 0, 1, 2, 0, 5, 6], [0, 0, 1, 1, 2, 2, 0, 1, 2, 7, 5, 5], "dot", block_size=64)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("width", [7, 16, 333])
@pytest.mark.parametrize("images", [2, 65, 777])
def test_a_collapsed_model_is_last_everywhere(similarity: str, width: int, images: int) -> None:
    vector = np.random.default_rng(0).normal(size=width).astype(np.float32)
    ids = np.arange(images)
    image, text = np.tile(vector, (images, 1)), np.tile(vector, (2 * images, 1))
    result = evaluate_retrieval(image, text, ids, np.repeat(ids, 2), similarity, block_size=64)
    assert (result.ranks["t2i"] == images).all()
    assert (result.ranks["i2t"] == 2 * images - 1).all()
    assert result.metrics["i2t_R1"] == result.metrics["t2i_R1"] == 0.0


def test_two_cluster_collapse_scores_at_most_chance() -> None:
    random = np.random.default_rng(0)
    clusters = random.normal(size=(2, 8)).astype(np.float32)
    ids = np.arange(500)
    result = evaluate_retrieval(clusters[ids % 2], clusters[ids % 2], ids, ids, block_size=64)
    assert (result.ranks["i2t"] == 250).all()
    assert result.metrics["rsum"] == 0.0


def test_a_perfect_model_is_first_everywhere() -> None:
    image = np.random.default_rng(0).normal(size=(200, 16))
    result = evaluate_retrieval(image, np.repeat(image, 5, axis=0), np.arange(200), np.repeat(np.arange(200), 5))
    perfect = {"R1", "R5", "R10", "mAP", "mAP@R", "RPrecision", "nDCG@10"}
    assert [result.metrics[f"{way}_{name}"] for way in ("i2t", "t2i") for name in perfect] == [pytest.approx(100)] * 14
    assert result.metrics["i2t_medR"] == result.metrics["t2i_meanR"] == 1.0
    assert result.metrics["rsum"] == 600.0


def test_images_without_captions_stay_in_the_gallery_and_are_counted() -> None:
    image = np.eye(4, dtype=np.float32)
    result = evaluate_retrieval(image, image[[3, 0]], ["a", "b", "c", "d"], ["a", "zz"])
    assert result.ranks["i2t"].tolist() == [2, 0, 0, 0]
    assert result.ranks["t2i"].tolist() == [4, 0]
    assert (result.images_without_caption, result.texts_without_image) == (3, 1)
    assert result.metrics["i2t_meanR"] == 2.0
    assert result.metrics["t2i_meanR"] == 4.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(string.ascii_letters + "0", min_size=1, max_size=3), min_size=2, max_size=20, unique=True))
def test_strings_serve_as_ids(ids: list[str]) -> None:
    image, text = np.random.default_rng(0).normal(size=(2, len(ids), 4))
    rows = np.arange(len(ids))
    by_number = evaluate_retrieval(image, text, rows, rows[::-1].copy())
    for of_images, of_texts in ((ids, ids[::-1]), (np.array(ids, dtype=object), np.array(ids[::-1]))):
        by_name = evaluate_retrieval(image, text, of_images, of_texts)
        assert by_name.metrics == by_number.metrics


@pytest.mark.parametrize("first", [2**24, 2**53, 2**62])
@pytest.mark.parametrize("kind", [np.int64, np.uint64, torch.int64])
def test_large_ids_are_kept_apart(first: int, kind: type) -> None:
    make = (lambda ids: torch.tensor(ids)) if kind is torch.int64 else (lambda ids: np.array(ids, dtype=kind))
    image = np.eye(4, dtype=np.float32)
    result = evaluate_retrieval(image, image, make([first + i for i in range(4)]), [first + i for i in range(4)])
    assert result.ranks["i2t"].tolist() == [1, 1, 1, 1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), power=st.integers(-40, 40))
def test_neither_order_nor_length_nor_block_size_changes_a_figure(seed: int, power: int) -> None:
    random = np.random.default_rng(seed)
    ids, text_ids = np.arange(90), random.integers(0, 90, 200)
    image, text = random.normal(size=(90, 5)).astype(np.float32), random.normal(size=(200, 5)).astype(np.float32)
    text[17], image[3] = text[120], 0.0
    expected = evaluate_retrieval(image, text, ids, text_ids)
    images, texts = random.permutation(90), random.permutation(200)
    scaled = image[images] * np.exp2(random.integers(-5, 5, (90, 1))).astype(np.float32) * np.float32(2.0**power)
    found = evaluate_retrieval(scaled, text[texts], ids[images], text_ids[texts], block_size=64)
    assert found.ranks["i2t"].tolist() == expected.ranks["i2t"][images].tolist()
    assert found.ranks["t2i"].tolist() == expected.ranks["t2i"][texts].tolist()
    assert found.metrics == pytest.approx(expected.metrics)


def test_a_rotation_changes_nothing_in_float64() -> None:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(80, 6)), random.normal(size=(240, 6))
    rotation, _ = np.linalg.qr(random.normal(size=(6, 6)))
    ids = np.arange(80)
    for similarity in ("cosine", "dot", "euclidean"):
        plain = evaluate_retrieval(image, text, ids, np.repeat(ids, 3), similarity)
        turned = evaluate_retrieval(image @ rotation, text @ rotation, ids, np.repeat(ids, 3), similarity)
        assert plain.metrics == pytest.approx(turned.metrics)


def test_tensors_of_any_precision_with_gradient_are_accepted() -> None:
    image = torch.randn(8, 4).half().float().requires_grad_()
    ids = torch.arange(8)
    expected = evaluate_retrieval(image.detach().numpy(), image.detach().numpy(), ids, ids).metrics
    for other in (image, image.half(), image.double()):
        assert evaluate_retrieval(other, other, ids, ids).metrics == expected


def test_zero_vectors_are_counted_and_tie_with_each_other() -> None:
    image = np.eye(3, dtype=np.float32)
    text = image.copy()
    text[1:] = 0.0
    result = evaluate_retrieval(image, text, [0, 1, 2], [0, 1, 2])
    assert (result.zero_images, result.zero_texts) == (0, 2)
    assert result.ranks["i2t"].tolist() == [1, 3, 3]
    assert result.ranks["t2i"].tolist() == [1, 3, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_numbers_are_an_error(value: float, side: int) -> None:
    sides = [np.ones((50, 3), dtype=np.float32) for _ in range(2)]
    sides[side][[7, 41], 1] = value
    name = ("image", "text")[side]
    with pytest.raises(FeatureError, match=rf"{name}_embeddings .* 2 of 50 rows hold NaN or infinity: rows 7, 41\."):
        evaluate_retrieval(*sides, range(50), range(50))


def test_overflowing_products_are_an_error_not_a_perfect_rank() -> None:
    large = np.full((3, 4), 1e30, dtype=np.float32)
    with pytest.raises(FeatureError, match=r"dot similarity leaves the range of torch.float32 for 3 of 3 true pairs"):
        evaluate_retrieval(large, large, [0, 1, 2], [0, 1, 2], similarity="dot")


def test_an_overflow_elsewhere_stands_before_the_match() -> None:
    image = np.array([[1e30, -1e30], [1.0, 0.0]], dtype=np.float32)
    text = np.array([[1e-30, 0.0], [1e30, 1e30]], dtype=np.float32)  # image 0 × caption 1: ∞ − ∞
    result = evaluate_retrieval(image, text, [0, 1], [0, 1], similarity="dot")
    assert result.ranks["i2t"][0] == 2


def test_a_query_set_without_any_match_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"none of the 2 image queries has a caption in the gallery of 2 .*\[0, 1\].*\[7, 8\]"
    ):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [7, 8])


@pytest.mark.parametrize(
    ("ids", "text_ids", "message"),
    [
        ([0, 1], ["0", "1"], "one kind, found integers and strings"),
        (np.array([0.0, 1.0]), [0, 1], "image_ids must be integers .* found float64"),
        ([0, 1], np.array([True, False]), "text_image_ids must be integers .* found bool"),
        ([0, 1, 2], [0, 1], r"image_ids must have one entry per embedding, shape \(2,\), found \(3,\)"),
        (np.array([2**63, 1], dtype=np.uint64), [0, 1], "within int64.* found uint64"),
    ],
)
def test_ids_of_the_wrong_kind_or_number(ids: list, text_ids: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_retrieval(np.eye(2), np.eye(2), ids, text_ids)


@pytest.mark.parametrize(
    ("ids", "text_ids", "message"),
    [
        ([0, "5"], [0, 1], "image_ids must be integers or strings, all of one kind; found int, str"),
        ([0, 1], (0, True), "text_image_ids must be integers or strings, all of one kind; found bool, int"),
        ([0, None], [0, 1], "image_ids must be .* found NoneType, int"),
        ([[0], [1, 2]], [0, 1], "image_ids must be .* found list"),
    ],
)
def test_lists_of_mixed_ids(ids: list, text_ids: Sequence, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_ids(ids, text_ids, 2, 2)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (np.eye(2), np.ones((2, 3)), "same width, found 2 and 3"),
        (
            np.ones(2),
            np.eye(2),
            r"image_embeddings must be numbers of shape \(count, width\), found torch.float64 \(2,\)",
        ),
        (np.eye(2), np.ones((0, 2)), r"text_embeddings .* found torch.float64 \(0, 2\)"),
    ],
)
def test_embeddings_of_the_wrong_shape(image: np.ndarray, text: np.ndarray, message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        evaluate_retrieval(image, text, [0, 1], [0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "l2"}, "cosine, dot, euclidean; found 'l2'"),
        ({"ks": (1, 0)}, r"at least 1, such as \(1, 5, 10\); found \(1, 0\)"),
        ({"bootstrap": 39}, "at least 40 for a 95 % interval, or 0 for none; found 39"),
        ({"bootstrap": -1}, "or 0 for none; found -1"),
        ({"block_size": 0}, "block_size must be a whole number of at least 1, found 0"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [0, 1], **options)


def exact_ranks(queries: np.ndarray, gallery: np.ndarray, ids: np.ndarray, gallery_ids: np.ndarray) -> list[int]:
    """Ranks by Euclidean distance, from differences in float64."""
    ranks = []
    for query, own in zip(queries.astype(np.float64), ids, strict=True):
        distances = ((gallery.astype(np.float64) - query) ** 2).sum(axis=1)
        best = distances[gallery_ids == own].min()
        ranks.append(1 + int((distances[gallery_ids != own] <= best).sum()))
    return ranks


def far_from_the_origin(offset: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image, ids = random.normal(size=(150, 32)), random.permutation(150)
    rows = random.permutation(np.repeat(np.arange(150), 3))
    text = image[rows] + random.normal(size=(450, 32)) * 1.5
    return (image + offset).astype(np.float32), (text + offset).astype(np.float32), ids, ids[rows]


@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0, 1e4])
@pytest.mark.parametrize("by_class", [False, True])
def test_distances_are_exact_far_from_the_origin(offset: float, by_class: bool) -> None:
    image, text, ids, text_ids = far_from_the_origin(offset, seed=int(offset % 97))
    labels = {"image_labels": ids % 40, "text_labels": text_ids % 40} if by_class else {}
    keys, text_keys = (ids % 40, text_ids % 40) if by_class else (ids, text_ids)
    result = evaluate_retrieval(image, text, ids, text_ids, "euclidean", block_size=64, **labels)
    assert result.ranks["i2t"].tolist() == exact_ranks(image, text, keys, text_keys)
    assert result.ranks["t2i"].tolist() == exact_ranks(text, image, text_keys, keys)
    assert 20 < result.metrics["i2t_R1"] < 100


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), offset=st.integers(-2000, 2000))
def test_a_translation_changes_no_rank_under_euclidean_not_even_of_ties(seed: int, offset: int) -> None:
    random = np.random.default_rng(seed)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (40, 110))
    moved = np.float32(offset) * np.array([1, -1, 0.5], dtype=np.float32)
    ids, text_ids = np.arange(40), random.permutation(np.arange(110) % 40)
    for labels in ({}, {"image_labels": ids % 7}):
        plain = evaluate_retrieval(image, text, ids, text_ids, "euclidean", **labels)
        found = evaluate_retrieval(image + moved, text + moved, ids, text_ids, "euclidean", **labels)
        assert {way: ranks.tolist() for way, ranks in found.ranks.items()} == {
            way: ranks.tolist() for way, ranks in plain.ranks.items()
        }


def test_a_collapsed_model_far_from_the_origin_stays_last() -> None:
    rows = np.full((70, 5), 1234.567, dtype=np.float32)
    result = evaluate_retrieval(rows, rows, range(70), range(70), "euclidean")
    assert (result.ranks["i2t"] == 70).all()
    assert (result.ranks["t2i"] == 70).all()


def many_matches(kind: str) -> tuple[list, list]:
    """Ids of images and captions, so that a query has more matches than are counted one by one."""
    random = np.random.default_rng(5)
    if kind == "of few ids":  # of images 250 captions; of captions 15 images
        return random.permutation(np.arange(45) % 3).tolist(), [*random.integers(0, 3, 745).tolist(), *[77] * 5]
    if kind == "of captions alone":
        return random.permutation(np.arange(450) % 3).tolist(), [0, 1, 2, 2, 5]
    return [*range(30), 88], [*range(30), *[7] * 600, 99, 99]  # one image with 601 captions


@pytest.mark.parametrize("kind", ["of few ids", "of captions alone", "of one image"])
@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_many_matches_agree_with_sorted_lists_where_ties_abound(kind: str, similarity: str) -> None:
    random = np.random.default_rng(0)
    ids, text_ids = many_matches(kind)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (len(ids), len(text_ids)))
    check(image, text, ids, text_ids, similarity, 64)


@pytest.mark.parametrize("kind", ["of few ids", "of captions alone", "of one image"])
@pytest.mark.parametrize("restricted", [False, True])
def test_sorting_and_counting_find_the_same(kind: str, restricted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    ids, text_ids = many_matches(kind)
    image, text = random.normal(size=(len(ids), 6)), random.normal(size=(len(text_ids), 6))
    masks = {}
    if restricted:
        masks = {"image_queries": np.arange(len(ids)) % 3 > 0, "text_queries": np.arange(len(text_ids)) % 2 == 0}
    bank = QueryBank(*random.normal(size=(2, 20, 6)))
    found = evaluate_retrieval(image, text, ids, text_ids, bank=bank, **masks)
    monkeypatch.setattr("xmodal.retrieval.evaluate.MANY_PAIRS", math.inf)
    monkeypatch.setattr("xmodal.retrieval.evaluate.MOST_PAIRS", math.inf)
    counted = evaluate_retrieval(image, text, ids, text_ids, bank=bank, **masks)
    assert found.reranked is not None
    assert counted.reranked is not None
    for one, other in ((found, counted), (found.reranked, counted.reranked)):
        assert one.metrics == pytest.approx(other.metrics)
        for way in ("i2t", "t2i"):
            assert one.ranks[way].tolist() == other.ranks[way].tolist()
            for name, values in one.queries[way].values.items():
                assert values == pytest.approx(other.queries[way].values[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": 5}, r"ks must be a sequence of whole cut-offs .*; found 5$"),
        ({"ks": "5"}, "found '5'"),
        ({"ks": ("1",)}, r"found \('1',\)"),
        ({"ks": (2.5,)}, r"found \(2\.5,\)"),
        ({"ks": (True,)}, r"found \(True,\)"),
        ({"bootstrap": 1000.0}, "bootstrap must be a whole number of resamples, .* found 1000.0"),
        ({"bootstrap": True}, "found True"),
        ({"block_size": 2.5}, "block_size must be a whole number of at least 1, found 2.5"),
    ],
)
def test_options_of_the_wrong_kind(options: dict, message: str) -> None:
    usual = {"similarity": "cosine", "ks": (1, 5), "bootstrap": 0, "block_size": 64}
    with pytest.raises(ConfigError, match=message):
        check_options(**usual | options)


def test_options_of_numpy_are_numbers() -> None:
    check_options("cosine", np.array([1, 5]), np.int64(40), np.uint8(64))
    with pytest.raises(ConfigError, match=r"found np\.int64\(39\)"):
        check_options("cosine", [1, 5], np.int64(39), 64)
