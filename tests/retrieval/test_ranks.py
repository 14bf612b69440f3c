"""Corrected ranks, and ranks of some of the queries, against naive loops and the full evaluation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import DataError, FeatureError
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.ranks import Matches, count_ahead
from xmodal.retrieval.similarity import Offsets


def similarity_of(a: np.ndarray, b: np.ndarray, similarity: str) -> float:
    return float(-((a - b) ** 2).sum() if similarity == "euclidean" else (a * b).sum())


def corrected(scores: np.ndarray, offsets: Offsets | None) -> np.ndarray:
    """One row per query, loops over both sides."""
    if offsets is None:
        return scores
    added = [
        [score + (float(o) if asked else 0.0) for score, o in zip(row, offsets.gallery, strict=True)]
        for row, asked in zip(scores.tolist(), offsets.queries, strict=True)
    ]
    return np.array(added)


def naive_ahead(scores: np.ndarray, query: int, match: int, matches: set[int]) -> int:
    row = scores[query].tolist()
    return sum(score >= row[match] for item, score in enumerate(row) if item not in matches)


def check(
    image: np.ndarray,
    text: np.ndarray,
    ids: list[int],
    text_ids: list[int],
    corrections: tuple[Offsets | None, Offsets | None],
    similarity: str,
    block_size: int,
) -> None:
    matches = Matches.from_ids(np.array(ids), np.array(text_ids))
    ahead = count_ahead(torch.tensor(image), torch.tensor(text), matches, similarity, block_size, *corrections)
    scores = np.array([[similarity_of(i, t, similarity) for t in text] for i in image])
    i2t, t2i = corrected(scores, corrections[0]), corrected(scores.T, corrections[1])
    pairs = list(zip(matches.image.tolist(), matches.text.tolist(), strict=True))
    assert sorted(pairs) == [(i, t) for i in range(len(ids)) for t in range(len(text_ids)) if ids[i] == text_ids[t]]
    captions = {i: {t for row, t in pairs if row == i} for i in range(len(ids))}
    images = {t: {i for i, row in pairs if row == t} for t in range(len(text_ids))}
    assert ahead.captions.tolist() == [naive_ahead(i2t, i, t, captions[i]) for i, t in pairs]
    assert ahead.images.tolist() == [naive_ahead(t2i, t, i, images[t]) for i, t in pairs]


def quarters(random: np.random.Generator, gallery: int, queries: int) -> Offsets:
    """Offsets that add up without rounding, so that ties stay ties."""
    return Offsets(
        torch.tensor(random.integers(-8, 9, gallery) / 4, dtype=torch.float32),
        torch.tensor(random.random(queries) < 0.6),
    )


def small_whole_numbers(random: np.random.Generator, images: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (images, texts))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    images=st.integers(1, 9),
    texts=st.integers(1, 14),
    similarity=st.sampled_from(["dot", "euclidean"]),
    ways=st.sampled_from(["both", "i2t", "t2i"]),
)
def test_corrected_counts_agree_with_loops_where_ties_abound(
    seed: int, images: int, texts: int, similarity: str, ways: str
) -> None:
    random = np.random.default_rng(seed)
    ids = random.permutation(images).tolist()
    text_ids = [ids[0], *random.integers(0, images + 2, texts - 1).tolist()]
    i2t = quarters(random, texts, images) if ways != "t2i" else None
    t2i = quarters(random, images, texts) if ways != "i2t" else None
    check(*small_whole_numbers(random, images, texts), ids, text_ids, (i2t, t2i), similarity, 64)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("texts", [150, 330])
def test_corrected_counts_over_several_blocks(texts: int, similarity: str) -> None:
    random = np.random.default_rng(texts)
    ids, text_ids = random.permutation(150).tolist(), random.integers(0, 150, texts).tolist()
    ids[3] = ids[140]  # an id on two images, in blocks of their own
    corrections = quarters(random, texts, 150), quarters(random, 150, texts)
    check(*small_whole_numbers(random, 150, texts), ids, text_ids, corrections, similarity, 64)


def test_a_correction_of_no_query_changes_nothing() -> None:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(2, 70, 4)).astype(np.float32)
    matches = Matches.from_ids(np.arange(70), np.arange(70))
    none = Offsets(torch.randn(70), torch.zeros(70, dtype=torch.bool))
    plain = count_ahead(torch.tensor(image), torch.tensor(text), matches, "cosine", 64)
    found = count_ahead(torch.tensor(image), torch.tensor(text), matches, "cosine", 64, none, none)
    assert found.captions.tolist() == plain.captions.tolist()
    assert found.images.tolist() == plain.images.tolist()


def restricted(full: RetrievalResult, part: RetrievalResult, way: str, asked: np.ndarray) -> None:
    """The asked queries stand where they stood, and nobody else has a rank."""
    assert part.ranks[way].tolist() == np.where(asked, full.ranks[way], 0).tolist()
    for name, values in full.queries[way].values.items():
        assert part.queries[way].values[name].tolist() == np.where(asked, values, 0.0).tolist()
    found = full.ranks[way][asked & (full.ranks[way] > 0)]
    assert part.metrics[f"{way}_meanR"] == pytest.approx(found.mean())
    assert part.metrics[f"{way}_R5"] == pytest.approx(100 * (found <= 5).mean())


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("asked_sides", ["images", "texts", "both"])
@pytest.mark.parametrize("by_class", [False, True])
def test_some_queries_stand_where_they_stand_among_all(by_class: bool, asked_sides: str, similarity: str) -> None:
    random = np.random.default_rng(3)
    image, text = random.normal(size=(100, 6)), random.normal(size=(260, 6))
    text_ids = random.integers(0, 90, 260)  # ten images have no caption
    labels = {"image_labels": np.arange(100) % 7} if by_class else {}
    banks = random.normal(size=(2, 40, 6))
    masks = {}
    if asked_sides != "texts":
        masks["image_queries"] = random.random(100) < 0.4
    if asked_sides != "images":
        masks["text_queries"] = random.random(260) < 0.3
    sides = image, text, np.arange(100), text_ids, similarity
    full = evaluate_retrieval(*sides, bank=QueryBank(*banks, "querybank", 2.0), block_size=64, **labels)
    part = evaluate_retrieval(*sides, bank=QueryBank(*banks, "querybank", 2.0), block_size=64, **labels, **masks)
    images = masks.get("image_queries", np.ones(100, dtype=bool))
    texts = masks.get("text_queries", np.ones(260, dtype=bool))
    assert full.reranked is not None
    assert part.reranked is not None
    for whole, some in ((full, part), (full.reranked, part.reranked)):
        restricted(whole, some, "i2t", images)
        restricted(whole, some, "t2i", texts)
        assert some.images_without_caption == int((images & (whole.ranks["i2t"] == 0)).sum())
        assert some.texts_without_image == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(3, dtype=bool), r"image_queries must be True or False for each of 2 items, found bool \(3,\)"),
        (np.zeros(2, dtype=bool), "image_queries holds not one query"),
    ],
)
def test_query_masks_of_the_wrong_form(mask: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [0, 1], image_queries=mask)


def test_queries_of_which_none_has_a_match() -> None:
    message = (
        r"none of the 1 image queries has a caption in the gallery of 2 captions.* \[9\], text_image_ids with \[0, 1\]"
    )
    with pytest.raises(DataError, match=message):
        evaluate_retrieval(np.eye(3)[:, :2], np.eye(2), [0, 1, 9], [0, 1], image_queries=np.arange(3) == 2)
    message = r"none of the 1 caption queries has its image in the gallery of 2 .* \[7\], image_ids with \[0, 1\]"
    with pytest.raises(DataError, match=message):
        evaluate_retrieval(np.eye(2), np.eye(3)[:, :2], [0, 1], [0, 1, 7], text_queries=np.arange(3) == 2)


def test_a_bank_is_of_the_width_of_the_embeddings() -> None:
    with pytest.raises(FeatureError, match="have width 3, those to be evaluated have width 2"):
        evaluate_retrieval(np.eye(2), np.eye(2), [0, 1], [0, 1], bank=QueryBank(np.eye(3), np.eye(3)))
