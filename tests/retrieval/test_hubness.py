"""Hubness correction against naive loops in double precision, and what it does to a hub."""

import math

import numpy as np
import pytest
import torch

from xmodal.config.evaluation import RERANKINGS
from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.similarity import SIMILARITIES, Offsets

Vectors = list[list[float]]


def similarity_of(a: list[float], b: list[float], similarity: str) -> float:
    if similarity == "euclidean":
        return -sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return (dot / lengths if lengths else 0.0) if similarity == "cosine" else dot


def best_of(query: list[float], gallery: Vectors, similarity: str) -> set[int]:
    scores = [round(similarity_of(query, item, similarity), 9) for item in gallery]
    return {g for g, score in enumerate(scores) if score == max(scores)}


def naive_offsets(bank: Vectors, gallery: Vectors, beta: float, similarity: str) -> list[float]:
    offsets = []
    for item in gallery:
        exponents = [beta * similarity_of(query, item, similarity) for query in bank]
        highest = max(exponents)
        offsets.append(-(highest + math.log(sum(math.exp(x - highest) for x in exponents))) / beta)
    return offsets


def naive_corrected(bank: Vectors, queries: Vectors, gallery: Vectors, method: str, similarity: str) -> list[bool]:
    if method == "inverted_softmax":
        return [True] * len(queries)
    activated = set().union(*(best_of(query, gallery, similarity) for query in bank))
    return [bool(best_of(query, gallery, similarity) & activated) for query in queries]


def naive_ranks(
    queries: Vectors, gallery: Vectors, keys: list, gallery_keys: list, added: list[list[float]], similarity: str
) -> list[int]:
    """Ranks by sorting the gallery of each query by its corrected scores, non-matches first among equals."""
    ranks = []
    for query, key, offsets in zip(queries, keys, added, strict=True):
        scores = [similarity_of(query, item, similarity) + o for item, o in zip(gallery, offsets, strict=True)]
        hits = [(-round(score, 9), own == key) for score, own in zip(scores, gallery_keys, strict=True)]
        ordered = [hit for _, hit in sorted(hits)]
        ranks.append(ordered.index(True) + 1 if True in ordered else 0)
    return ranks


def naive_reranked(
    bank: np.ndarray, queries: np.ndarray, gallery: np.ndarray, keys: list, gallery_keys: list, options: tuple
) -> list[int]:
    method, beta, similarity = options
    sides = bank.tolist(), queries.tolist(), gallery.tolist()
    offsets = naive_offsets(sides[0], sides[2], beta, similarity)
    corrected = naive_corrected(*sides, method, similarity)
    added = [offsets if asked else [0.0] * len(offsets) for asked in corrected]
    return naive_ranks(sides[1], sides[2], keys, gallery_keys, added, similarity)


def same(first: Offsets, second: Offsets) -> bool:
    return torch.equal(first.gallery, second.gallery) and torch.equal(first.queries, second.queries)


def two_sides(seed: int, images: int = 30, texts: int = 70) -> tuple[np.ndarray, np.ndarray, list, list]:
    """Random embeddings with copies among them, the ids of the images and those of the captions' images."""
    random = np.random.default_rng(seed)
    image, text = random.normal(size=(images, 5)), random.normal(size=(texts, 5)) + 0.6
    image[7], text[[3, 41]] = image[images - 1], text[12]
    return image, text, list(range(images)), random.integers(0, images, texts).tolist()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("method", RERANKINGS)
@pytest.mark.parametrize("by_class", [False, True])
def test_corrected_ranks_agree_with_sorted_lists(method: str, similarity: str, by_class: bool) -> None:
    image, text, ids, text_ids = two_sides(0)
    bank_image, bank_text = np.random.default_rng(1).normal(size=(2, 9, 5)) + 0.3
    labels = {"image_labels": [i % 4 for i in ids]} if by_class else {}
    keys, text_keys = ([i % 4 for i in ids], [i % 4 for i in text_ids]) if by_class else (ids, text_ids)
    bank = QueryBank(bank_image, bank_text, method, 3.0)
    result = evaluate_retrieval(image, text, ids, text_ids, similarity, bank=bank, **labels)
    assert result.reranked is not None
    options = (method, 3.0, similarity)
    i2t = naive_reranked(bank_image, image, text, keys, text_keys, options)
    t2i = naive_reranked(bank_text, text, image, text_keys, keys, options)
    assert result.reranked.ranks["i2t"].tolist() == i2t
    assert result.reranked.ranks["t2i"].tolist() == t2i
    assert result.ranks["i2t"].tolist() != i2t
    assert result.ranks["t2i"].tolist() != t2i


@pytest.mark.parametrize("by_class", [False, True])
def test_plain_figures_stand_beside_unchanged(by_class: bool) -> None:
    image, text, ids, text_ids = two_sides(2)
    labels = {"image_labels": [i % 4 for i in ids]} if by_class else {}
    plain = evaluate_retrieval(image, text, ids, text_ids, **labels)
    result = evaluate_retrieval(image, text, ids, text_ids, bank=QueryBank(image[::2], text[::2]), **labels)
    assert plain.reranked is None
    assert result.metrics == plain.metrics
    assert result.reranked is not None
    assert result.reranked.metrics["rsum"] != plain.metrics["rsum"]
    assert ("i2i" in plain.queries) == by_class
    assert set(result.reranked.queries) == {"i2t", "t2i"}  # no bank corrects the others
    assert not any(name.startswith(("i2i", "t2t")) for name in result.reranked.metrics)


@pytest.mark.parametrize("method", RERANKINGS)
def test_a_hub_is_mended(method: str) -> None:
    common, own = np.eye(41)[40], np.eye(41)[:40]
    image, text = common + 0.5 * own, 0.2 * common + own  # cosines: 0.61 with the own caption, 0.18 with another
    text = np.vstack([text[:20], common])  # and 0.89 with this one, which says what is in every image
    result = evaluate_retrieval(image[:20], text, range(20), range(21), bank=QueryBank(image[20:], text, method))
    assert result.ranks["i2t"].tolist() == [2] * 20
    assert result.reranked is not None
    assert result.reranked.ranks["i2t"].tolist() == [1] * 20


def test_a_query_without_a_hub_in_front_is_left_alone() -> None:
    gallery = torch.eye(3)
    bank = torch.tensor([[1.0, 0.9, 0.0]])
    queries = torch.tensor([[1.0, 0.95, 0.0], [0.0, 1.0, 0.99], [0.5, 0.5, 0.0]])
    (offsets, _) = QueryBank(bank, bank).offsets(queries, gallery, "cosine", 512)
    assert offsets.queries.tolist() == [True, False, True]  # the last one ties between the hub and another item
    everywhere, _ = QueryBank(bank, bank, "inverted_softmax").offsets(queries, gallery, "cosine", 512)
    assert everywhere.queries.tolist() == [True, True, True]
    assert torch.equal(everywhere.gallery, offsets.gallery)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize(("sizes", "block_size"), [((3, 5, 4), 512), ((70, 80, 300), 1)])
def test_ties_for_best_all_count_as_best(similarity: str, sizes: tuple[int, int, int], block_size: int) -> None:
    partial = 0
    for seed in range(3):
        random = np.random.default_rng(seed)
        bank, queries, gallery = (random.integers(-9, 10, (n, 2)).astype(np.float32) for n in sizes)
        bank = np.abs(bank) + 1  # one quarter of the plane, so that not every query meets the activation set
        found, _ = QueryBank(bank, bank, "querybank", 0.5).offsets(
            torch.tensor(queries), torch.tensor(gallery), similarity, block_size
        )
        lists = bank.tolist(), queries.tolist(), gallery.tolist()
        expected = naive_corrected(*lists, "querybank", similarity)
        assert found.queries.tolist() == expected
        offsets = naive_offsets(lists[0], lists[2], 0.5, similarity)
        np.testing.assert_allclose(found.gallery, offsets, rtol=1e-5, atol=1e-5)
        partial += 0 < sum(expected) < len(expected)
    assert partial


@pytest.mark.parametrize("fillers", [0, 200])
def test_one_bank_query_that_ties_activates_both_items(fillers: int) -> None:
    for length in range(1, 9):  # with fillers, the two items come to lie in one block or in two
        filler = -np.arange(1.0, fillers + 1)[:, None] * np.ones((1, 2))
        gallery = torch.tensor(np.vstack([[[length, 0], [0, length]], filler]))
        queries = torch.tensor([[3.0, 1.0], [1.0, 3.0], [-1.0, -1.0], [2.0, 2.0]], dtype=torch.float64)
        bank = np.array([[5.0, 5.0]])
        offsets, _ = QueryBank(bank, bank, inverse_temperature=20.0).offsets(queries, gallery, "dot", 1)
        assert offsets.queries.tolist() == [True, True, fillers == 0, True]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("width", [7, 333])
@pytest.mark.parametrize("count", [2, 63, 65, 255, 257, 513, 777])
def test_equal_items_have_equal_offsets_wherever_they_stand(count: int, width: int, similarity: str) -> None:
    random = np.random.default_rng(count)
    gallery = torch.tensor(random.normal(size=(count, width)), dtype=torch.float32)
    bank = random.normal(size=(67, width))
    copies = [i for i in (0, 1, 63, 64, 254, 255, 256, 257, 511, 512, count - 1) if i < count]
    gallery[copies] = gallery[count // 2].clone()
    offsets, other = QueryBank(bank, bank, inverse_temperature=20.0).offsets(gallery, gallery, similarity, 1)
    assert len(offsets.gallery[copies].unique()) == 1
    assert len(offsets.queries[copies].unique()) == 1
    assert len(offsets.gallery.unique()) >= (count - len(copies)) * 0.9  # no two others were taken for equal
    assert same(offsets, other)


def test_a_collapsed_model_stays_last() -> None:
    vector = np.random.default_rng(0).normal(size=21).astype(np.float32)
    rows, ids = np.tile(vector, (300, 1)), np.arange(300)
    for method in RERANKINGS:
        result = evaluate_retrieval(rows, rows, ids, ids, bank=QueryBank(rows[:70], rows, method), block_size=64)
        assert result.reranked is not None
        assert (result.reranked.ranks["i2t"] == 300).all()
        assert (result.reranked.ranks["t2i"] == 300).all()


def test_negative_zero_is_zero() -> None:
    gallery = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]])
    offsets, _ = QueryBank(gallery, gallery, inverse_temperature=20.0).offsets(gallery, gallery, "dot", 512)
    assert offsets.gallery[0] == offsets.gallery[1] != offsets.gallery[2]


@pytest.mark.parametrize("method", RERANKINGS)
def test_neither_order_nor_block_size_changes_a_rank(method: str) -> None:
    image, text, ids, text_ids = two_sides(4, 90, 400)
    bank_image, bank_text = np.random.default_rng(5).normal(size=(2, 150, 5)) + 0.3
    random = np.random.default_rng(6)
    orders = [random.permutation(n) for n in (90, 400, 150, 150)]
    expected = evaluate_retrieval(image, text, ids, text_ids, bank=QueryBank(bank_image, bank_text, method)).reranked
    turned = QueryBank(bank_image[orders[2]], bank_text[orders[3]], method)
    sides = image[orders[0]], text[orders[1]], np.array(ids)[orders[0]], np.array(text_ids)[orders[1]]
    assert expected is not None
    for block_size in (1, 100, 10_000):
        found = evaluate_retrieval(*sides, bank=turned, block_size=block_size).reranked
        assert found is not None
        assert found.ranks["i2t"].tolist() == expected.ranks["i2t"][orders[0]].tolist()
        assert found.ranks["t2i"].tolist() == expected.ranks["t2i"][orders[1]].tolist()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_zero_vectors_of_a_bank_are_left_out(similarity: str) -> None:
    random = torch.Generator().manual_seed(0)
    image, text, bank = (torch.randn(n, 4, generator=random) for n in (40, 50, 6))
    padded = torch.cat([bank[:3], torch.zeros(2, 4), bank[3:]])
    expected = QueryBank(bank, bank, inverse_temperature=20.0).offsets(image, text, similarity, 512)
    found = QueryBank(padded, padded, inverse_temperature=20.0).offsets(image, text, similarity, 512)
    assert all(map(same, expected, found))
    assert not all(side.queries.all() for side in found)


def test_the_origin_is_a_query_like_another_under_euclidean() -> None:
    gallery = torch.tensor([[0.1, 0.0], [3.0, 0.0]])
    bank = torch.tensor([[0.0, 0.0], [3.0, 0.1]])
    offsets, _ = QueryBank(bank, bank, inverse_temperature=20.0).offsets(gallery, gallery, "euclidean", 512)
    expected = naive_offsets(bank.tolist(), gallery.tolist(), 20.0, "euclidean")
    np.testing.assert_allclose(offsets.gallery, expected, rtol=1e-4, atol=1e-6)
    assert offsets.queries.all()


def test_large_scores_do_not_overflow_the_exponential() -> None:
    random = np.random.default_rng(0)
    bank, gallery = 100 * random.normal(size=(150, 8)), torch.tensor(100 * random.normal(size=(20, 8)))
    offsets, _ = QueryBank(bank, bank, inverse_temperature=20.0).offsets(gallery, gallery, "dot", 1)
    np.testing.assert_allclose(offsets.gallery, naive_offsets(bank.tolist(), gallery.tolist(), 20.0, "dot"), rtol=1e-9)


def test_mixed_precision_of_a_training_loop_does_not_reach_the_offsets() -> None:
    image, text, bank = torch.randn(60, 256), torch.randn(60, 256), torch.randn(80, 256, requires_grad=True)
    expected = QueryBank(bank, bank).offsets(image, text, "cosine", 512)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = QueryBank(bank, bank).offsets(image, text, "cosine", 512)
    assert all(map(same, expected, found))
    assert not found[0].gallery.requires_grad


def test_products_out_of_range_are_an_error() -> None:
    large, bank = torch.full((3, 4), 1e25), np.full((2, 4), 1e15, dtype=np.float32)
    with pytest.raises(
        FeatureError, match=r"dot similarity to the query bank, times 20.0, .* torch.float32 for 1 of 1"
    ):
        QueryBank(bank, bank, inverse_temperature=20.0).offsets(large, large, "dot", 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "softmax"}, "one of querybank, inverted_softmax; found 'softmax'"),
        ({"inverse_temperature": 0.0}, "must be a positive number, found 0.0"),
        ({"inverse_temperature": math.nan}, "must be a positive number, found nan"),
        ({"inverse_temperature": math.inf}, "must be a positive number, found inf"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QueryBank(np.eye(2), np.eye(2), **options)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        (np.ones((0, 3)), r"at least one query, found torch.float64 \(0, 3\)"),
        (np.ones(3), r"of shape \(count, width\) .* found torch.float64 \(3,\)"),
        (np.zeros((4, 3)), "all 4 rows are the zero vector"),
        (np.array([[1.0], [math.nan], [math.inf]]), r"2 of 3 rows hold NaN or infinity: rows 1, 2\."),
    ],
)
@pytest.mark.parametrize("side", ["image", "text"])
def test_a_bank_that_cannot_serve(bank: np.ndarray, message: str, side: str) -> None:
    other = {"image": "text", "text": "image"}[side]
    with pytest.raises(FeatureError, match=rf"the {side} embeddings of the query bank .*{message}"):
        QueryBank(**{side: bank, other: np.eye(3)})


def test_a_bank_of_another_model() -> None:
    with pytest.raises(
        FeatureError, match=r"text embeddings of the query bank have width 3, .* have width 2: both must"
    ):
        QueryBank(np.eye(2), np.eye(3)).offsets(torch.eye(2), torch.eye(2), "cosine", 512)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_the_temperature_of_cosines_is_not_taken_for_another_similarity(similarity: str) -> None:
    sides, ids = np.random.default_rng(0).normal(size=(2, 9, 4)), range(9)
    usual, chosen = QueryBank(*sides), QueryBank(*sides, inverse_temperature=20.0)
    with pytest.raises(ConfigError, match=rf"--inverse-temperature\) must be chosen under similarity={similarity}"):
        evaluate_retrieval(*sides, ids, ids, similarity, bank=usual)
    assert evaluate_retrieval(*sides, ids, ids, similarity, bank=chosen).reranked is not None
    by_default, by_hand = (evaluate_retrieval(*sides, ids, ids, bank=bank).reranked for bank in (usual, chosen))
    assert by_default is not None
    assert by_hand is not None
    assert by_default.metrics == by_hand.metrics


@pytest.mark.parametrize("offset", [100.0, 1000.0])
def test_offsets_are_exact_far_from_the_origin(offset: float) -> None:
    random = np.random.default_rng(1)
    bank, queries, gallery = ((random.normal(size=(n, 16)) + offset).astype(np.float32) for n in (30, 60, 80))
    found, _ = QueryBank(bank, bank, "querybank", 0.5).offsets(
        torch.tensor(queries), torch.tensor(gallery), "euclidean", 64
    )
    lists = bank.tolist(), queries.tolist(), gallery.tolist()
    np.testing.assert_allclose(found.gallery, naive_offsets(lists[0], lists[2], 0.5, "euclidean"), rtol=1e-4)
    assert found.queries.tolist() == naive_corrected(*lists, "querybank", "euclidean")
