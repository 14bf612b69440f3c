"""Agreement with scikit-learn and torchmetrics where definitions match, and where they part; what changes no figure."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    coverage_error,
    label_ranking_average_precision_score,
    ndcg_score,
    top_k_accuracy_score,
)
from torchmetrics import retrieval as torchmetrics

from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval

WAYS = ("i2t", "t2i", "i2i", "t2t")
IMAGES, TEXTS = 30, 90


def sides(relevance: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and keys of images and captions; a key is the image, or a class: two keys have no match."""
    random = np.random.default_rng(11)
    image, text = random.normal(size=(IMAGES, 8)), random.normal(size=(TEXTS, 8))
    if relevance == "class":
        return image, text, random.integers(0, 6, IMAGES), random.integers(1, 7, TEXTS)
    return image, text, np.arange(IMAGES), random.integers(2, IMAGES + 2, TEXTS)


def result_of(relevance: str) -> RetrievalResult:
    image, text, keys, text_keys = sides(relevance)
    if relevance == "class":
        return evaluate_retrieval(
            image, text, range(IMAGES), range(TEXTS), "dot", image_labels=keys, text_labels=text_keys
        )
    return evaluate_retrieval(image, text, keys, text_keys, "dot")


def scores_and_targets(relevance: str, way: str) -> tuple[np.ndarray, np.ndarray]:
    """The full matrix of scores and of relevance, one row per query with a match; the query itself left out."""
    image, text, keys, text_keys = sides(relevance)
    by_name = {"i": (image, keys), "t": (text, text_keys)}
    (queries, query_keys), (gallery, gallery_keys) = by_name[way[0]], by_name[way[2]]
    scores, targets = queries @ gallery.T, query_keys[:, None] == gallery_keys[None, :]
    if way[0] == way[2]:
        others = ~np.eye(len(scores), dtype=bool)
        scores, targets = (matrix[others].reshape(len(scores), -1) for matrix in (scores, targets))
    matched = targets.any(axis=1)
    return scores[matched], targets[matched]


CASES = [("instance", "i2t"), ("instance", "t2i"), *(("class", way) for way in WAYS)]


@pytest.mark.parametrize(("relevance", "way"), CASES)
def test_agrees_with_scikit_learn(relevance: str, way: str) -> None:
    found = result_of(relevance).metrics
    scores, targets = scores_and_targets(relevance, way)
    precisions = [average_precision_score(t, s) for t, s in zip(targets, scores, strict=True)]
    assert found[f"{way}_mAP"] == pytest.approx(100 * np.mean(precisions))
    assert found[f"{way}_mAP"] == pytest.approx(100 * label_ranking_average_precision_score(targets, scores))
    assert found[f"{way}_nDCG@10"] == pytest.approx(100 * ndcg_score(targets, scores, k=10))


def test_recall_of_a_single_match_is_scikit_learn_s_accuracy() -> None:
    found = result_of("instance")
    scores, targets = scores_and_targets("instance", "t2i")
    image = targets.argmax(axis=1)
    for k in (1, 5, 10):
        accuracy = top_k_accuracy_score(image, scores, k=k, labels=np.arange(IMAGES))
        assert found.metrics[f"t2i_R{k}"] == found.metrics[f"t2i_fractional_R{k}"] == pytest.approx(100 * accuracy)
    assert found.metrics["t2i_meanR"] == pytest.approx(coverage_error(targets, scores))


@pytest.mark.parametrize(("relevance", "way"), CASES)
def test_agrees_with_torchmetrics(relevance: str, way: str) -> None:
    result = result_of(relevance)
    scores, targets = map(torch.from_numpy, scores_and_targets(relevance, way))
    scores = scores - scores.min() + 1  # see below: a match with a negative score would be none
    query = torch.arange(len(scores))[:, None].expand_as(scores)
    expected = {
        "mAP": torchmetrics.RetrievalMAP(),
        "RPrecision": torchmetrics.RetrievalRPrecision(),
        "nDCG@10": torchmetrics.RetrievalNormalizedDCG(top_k=10),
        **{f"R{k}": torchmetrics.RetrievalHitRate(top_k=k) for k in (1, 5, 10)},
        **{f"fractional_R{k}": torchmetrics.RetrievalRecall(top_k=k) for k in (1, 5, 10)},
    }
    for name, metric in expected.items():
        value = 100 * metric(scores, targets, indexes=query).item()
        assert result.metrics[f"{way}_{name}"] == pytest.approx(value, rel=1e-5), name
    reciprocal = torchmetrics.RetrievalMRR()(scores, targets, indexes=query).item()
    ranks = result.ranks[way]
    assert np.mean(1 / ranks[ranks > 0]) == pytest.approx(reciprocal, rel=1e-5)


def test_ties_are_where_the_others_part() -> None:
    """Four captions score the same, two of them match: here they stand at places 3 and 4.

    scikit-learn takes equal scores as one step of the precision-recall curve (or, for nDCG, as their mean gain), and
    torchmetrics the order in which the items happened to come, so that the same model scores 100 or 42.
    """
    same = np.ones((4, 1))
    found = evaluate_retrieval(same[:1], same, [0], [0, 0, 1, 1], "dot").metrics
    scores, targets = np.ones((1, 4)), np.array([[1, 1, 0, 0]])
    worst = 100 * (1 / 3 + 2 / 4) / 2
    assert found["i2t_mAP"] == pytest.approx(worst)
    assert average_precision_score(targets[0], scores[0]) == 0.5
    assert label_ranking_average_precision_score(targets, scores) == 0.5
    assert found["i2t_nDCG@10"] < 100 * ndcg_score(targets, scores, k=10)
    either_order = sorted(
        torchmetrics.RetrievalMAP()(torch.ones(4), torch.tensor(order), indexes=torch.zeros(4).long()).item()
        for order in ([1, 1, 0, 0], [0, 0, 1, 1])
    )
    assert either_order == [pytest.approx(worst / 100), 1.0]


def test_a_collapsed_model_is_where_the_others_part() -> None:
    same, rows = np.ones((4, 1)), np.arange(4)
    found = evaluate_retrieval(same, same, rows, rows, "dot").metrics
    assert found["t2i_R1"] == 0.0
    assert top_k_accuracy_score(rows, np.ones((4, 4)), k=1) == 0.25
    assert found["t2i_meanR"] == coverage_error(np.eye(4), np.ones((4, 4))) == 4.0  # this one counts as we do


def test_queries_without_match_are_where_the_others_part() -> None:
    """They take no part here; torchmetrics counts them as 0 unless told to skip them, scikit-learn's LRAP as 1."""
    embeddings = np.eye(2)
    found = evaluate_retrieval(embeddings, embeddings, [0, 1], [0, 7], "dot").metrics
    scores, targets = np.eye(2), np.array([[1, 0], [0, 0]])
    assert found["i2t_mAP"] == 100.0
    flat = (torch.eye(2).flatten(), torch.from_numpy(targets).flatten())
    query = torch.tensor([0, 0, 1, 1])
    assert torchmetrics.RetrievalMAP()(*flat, indexes=query) == 0.5
    assert torchmetrics.RetrievalMAP(empty_target_action="skip")(*flat, indexes=query) == 1.0
    assert label_ranking_average_precision_score(targets[:, ::-1], scores) == pytest.approx((0.5 + 1) / 2)


def test_recall_and_map_at_r_are_where_torchmetrics_parts() -> None:
    """Its recall@K is what is named fractional here; its mAP@R divides by the matches found, not by R."""
    image, text = np.ones((1, 1)), np.array([[4.0], [3.0], [2.0], [1.0]])
    found = evaluate_retrieval(image, text, [0], [0, 1, 1, 0], "dot").metrics
    given = (torch.from_numpy(text[:, 0]), torch.tensor([1, 0, 0, 1]))
    query = torch.zeros(4).long()
    assert torchmetrics.RetrievalRecall(top_k=1)(*given, indexes=query) == 0.5
    assert (found["i2t_R1"], found["i2t_fractional_R1"]) == (100.0, 50.0)
    assert torchmetrics.RetrievalMAP(top_k=2)(*given, indexes=query) == 1.0
    assert found["i2t_mAP@R"] == 50.0


def test_scores_that_are_not_positive_are_where_torchmetrics_parts() -> None:
    """It takes a match that scores 0 or less for none, as if scores were probabilities; so do logits and distances."""
    image, text = np.ones((1, 1)), np.array([[-1.0], [-2.0], [-3.0]])
    scores, query = torch.from_numpy(text[:, 0]), torch.zeros(3).long()
    targets = torch.tensor([1, 0, 1])
    found = evaluate_retrieval(image, text, [0], [0, 1, 0], "dot").metrics
    expected = 100 * (1 + 2 / 3) / 2
    assert found["i2t_mAP"] == pytest.approx(expected)
    assert 100 * torchmetrics.RetrievalMAP()(scores + 4, targets, indexes=query).item() == pytest.approx(expected)
    assert torchmetrics.RetrievalMAP()(scores, targets, indexes=query) == 0.0


def test_the_classes_of_real_data_agree_with_scikit_learn(real_data: Path) -> None:
    folder = real_data / "wikipedia"
    features = scipy.io.loadmat(folder / "raw_features.mat", variable_names=["I_te", "T_te"])
    labels = np.loadtxt(folder / "testset_txt_img_cat.list", usecols=2, delimiter="\t", dtype=int)
    rows = range(len(labels))
    side = {"i2i": features["I_te"], "t2t": features["T_te"]}
    for way, items in side.items():
        found = evaluate_retrieval(items, items, rows, rows, "cosine", image_labels=labels)
        unit = items / np.linalg.norm(items, axis=1, keepdims=True)
        others = ~np.eye(len(items), dtype=bool)
        scores, same = (m[others].reshape(len(items), -1) for m in (unit @ unit.T, labels[:, None] == labels[None, :]))
        expected = [average_precision_score(same[row], scores[row]) for row in rows[::3]]
        assert found.queries[way].values["mAP"][::3] == pytest.approx(100 * np.array(expected), rel=1e-6)
        assert found.metrics["i2i_mAP"] == found.metrics["t2t_mAP"]  # the same items on both sides


def class_sides(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    image, text = random.normal(size=(70, 5)).astype(np.float32), random.normal(size=(140, 5)).astype(np.float32)
    text[17], image[3] = text[120], 0.0
    return image, text, random.integers(0, 5, 70), random.integers(0, 5, 140)


def by_class(
    image: np.ndarray, text: np.ndarray, labels: np.ndarray, text_labels: np.ndarray, similarity: str = "cosine"
) -> RetrievalResult:
    ids = (range(len(image)), range(len(text)))
    return evaluate_retrieval(image, text, *ids, similarity, image_labels=labels, text_labels=text_labels)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), power=st.integers(-40, 40))
def test_neither_order_nor_length_changes_a_figure_by_class(seed: int, power: int) -> None:
    image, text, labels, text_labels = class_sides(seed)
    random = np.random.default_rng(seed)
    expected = by_class(image, text, labels, text_labels)
    images, texts = random.permutation(70), random.permutation(140)
    scaled = image[images] * np.exp2(random.integers(-5, 5, (70, 1))).astype(np.float32) * np.float32(2.0**power)
    found = by_class(scaled, text[texts], labels[images], text_labels[texts])
    for way in WAYS:
        assert found.ranks[way].tolist() == expected.ranks[way][images if way[0] == "i" else texts].tolist()
    assert found.metrics == pytest.approx(expected.metrics)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_a_rotation_changes_nothing_by_class_in_float64(similarity: str) -> None:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(70, 5)), random.normal(size=(140, 5))
    rotation, _ = np.linalg.qr(random.normal(size=(5, 5)))
    labels = class_sides(0)[2:]
    plain = by_class(image, text, *labels, similarity)
    turned = by_class(image @ rotation, text @ rotation, *labels, similarity)
    assert plain.metrics == pytest.approx(turned.metrics)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), similarity=st.sampled_from(["dot", "euclidean"]))
def test_one_class_per_image_is_relevance_by_image(seed: int, similarity: str) -> None:
    random = np.random.default_rng(seed)
    image, text = (random.integers(-2, 3, (n, 3)).astype(np.float32) for n in (70, 200))  # ties abound
    text_ids = random.integers(0, 70, 200)
    plain = evaluate_retrieval(image, text, range(70), text_ids, similarity)
    classes = evaluate_retrieval(image, text, range(70), text_ids, similarity, image_labels=range(70))
    assert "i2i" not in classes.queries
    for way in ("i2t", "t2i"):
        assert classes.ranks[way].tolist() == plain.ranks[way].tolist()
        for name, values in plain.queries[way].values.items():
            assert classes.queries[way].values[name] == pytest.approx(values), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), added=st.integers(1, 70), by=st.sampled_from(["image", "class"]))
def test_an_image_behind_all_others_changes_no_figure(seed: int, added: int, by: str) -> None:
    random = np.random.default_rng(seed)
    image, text = random.uniform(size=(2, 60, 4))  # all scores are positive, but those of the images added
    longer = np.concatenate([image, -random.uniform(1, 2, size=(added, 4))])
    labels = np.concatenate([random.integers(0, 5, 60), np.full(added, 9)])
    rows, more = np.arange(60), np.arange(60 + added)
    given = [{}, {}]
    if by == "class":
        given = [{"image_labels": labels[:60]}, {"image_labels": labels, "text_labels": labels[:60]}]
    before = evaluate_retrieval(image, text, rows, rows, "dot", **given[0])
    after = evaluate_retrieval(longer, text, more, rows, "dot", **given[1])
    assert after.images_without_caption == added
    for way in ("i2t", "t2i"):
        assert after.ranks[way][:60].tolist() == before.ranks[way].tolist()
        assert after.queries[way].metrics() == pytest.approx(before.queries[way].metrics())
