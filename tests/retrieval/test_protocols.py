"""Folds against evaluating each of them by hand."""

import numpy as np
import pytest
import torch

from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.metrics import named_figures
from xmodal.retrieval.protocols import evaluate_folds
from xmodal.retrieval.uncertainty import bootstrap_intervals


def embeddings(images: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images with 1 to 6 captions in any order, ids that are not rows."""
    random = np.random.default_rng(seed)
    ids = random.permutation(1000)[:images]
    text_ids = random.permutation(np.repeat(ids, random.integers(1, 7, images)))
    image = random.normal(size=(images, 6))
    row = {int(identity): number for number, identity in enumerate(ids)}
    text = image[[row[int(i)] for i in text_ids]] + random.normal(size=(len(text_ids), 6))
    return image, text, ids, text_ids


def by_hand(image: np.ndarray, text: np.ndarray, ids: np.ndarray, text_ids: np.ndarray, folds: int, **options) -> list:
    """Of each fold its rows of images and captions and its own evaluation; per-item options are cut by hand."""
    found = []
    for images in np.array_split(np.arange(len(ids)), folds):
        texts = np.array([row for row, identity in enumerate(text_ids) if identity in ids[images]])
        cut = {
            name: value[images if name.startswith("image") else texts]
            if name.startswith(("image_", "text_"))
            else value
            for name, value in options.items()
        }
        result = evaluate_retrieval(image[images], text[texts], ids[images], text_ids[texts], **cut)
        found.append((images, texts, result))
    return found


def agree(result: RetrievalResult, folds: list) -> None:
    for name, value in result.metrics.items():
        assert value == pytest.approx(np.mean([of_fold.metrics[name] for _, _, of_fold in folds])), name
    for way, side in result.queries.items():
        for number, (images, texts, of_fold) in enumerate(folds):
            rows, expected = images if way[0] == "i" else texts, of_fold.queries[way]
            assert side.ranks[rows].tolist() == expected.ranks.tolist()
            assert side.groups[rows].tolist() == expected.groups.tolist()
            assert set(side.folds[rows].tolist()) == {number}
            for name, values in expected.values.items():
                assert side.values[name][rows].tolist() == values.tolist()


@pytest.mark.parametrize("folds", [1, 2, 5, 15])
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_agrees_with_each_fold_by_hand(folds: int, similarity: str) -> None:
    sides = embeddings()
    options = {"similarity": similarity, "ks": (1, 3)}
    agree(evaluate_folds(*sides, folds, **options), by_hand(*sides, folds, **options))


def test_one_fold_is_the_full_split() -> None:
    sides = embeddings(seed=1)
    whole, folded = evaluate_retrieval(*sides, bootstrap=50, seed=3), evaluate_folds(*sides, 1, bootstrap=50, seed=3)
    assert folded.metrics == whole.metrics
    assert folded.intervals == whole.intervals


def test_smaller_galleries_are_easier() -> None:
    sides = embeddings(images=60, seed=2)
    assert evaluate_folds(*sides, 5).metrics["rsum"] > evaluate_retrieval(*sides).metrics["rsum"] + 50


def test_intervals_resample_within_folds() -> None:
    sides = embeddings(seed=3)
    result = evaluate_folds(*sides, 3, bootstrap=100, seed=4)
    assert result.intervals == bootstrap_intervals(result.queries, 100, 4)
    assert list(result.intervals) == list(result.metrics)
    assert evaluate_folds(*sides, 3).intervals == {}


def test_classes_are_cut_with_the_items() -> None:
    image, text, ids, text_ids = embeddings(seed=4)
    random = np.random.default_rng(0)
    labels = {"image_labels": random.integers(0, 4, len(ids)), "text_labels": random.integers(0, 4, len(text_ids))}
    result = evaluate_folds(image, text, ids, text_ids, 3, **labels)
    agree(result, by_hand(image, text, ids, text_ids, 3, **labels))
    assert "i2i_mAP" in result.metrics
    names = {"image_labels": [f"class {label}" for label in labels["image_labels"]]}
    of_images = evaluate_folds(image, text, ids, text_ids, 3, **names)
    agree(of_images, by_hand(image, text, ids, text_ids, 3, image_labels=np.array(names["image_labels"])))


def test_a_direction_that_one_fold_lacks_is_averaged_over_the_others() -> None:
    image, text, ids, text_ids = np.eye(8), np.eye(8), np.arange(8), np.arange(8)
    labels = np.array([0, 0, 1, 1, 2, 3, 4, 5])  # every class once in the second half: nothing but itself to find
    result = evaluate_folds(image, text, ids, text_ids, 2, image_labels=labels)
    first = evaluate_retrieval(image[:4], text[:4], ids[:4], text_ids[:4], image_labels=labels[:4])
    assert result.metrics["i2i_mAP"] == first.metrics["i2i_mAP"]
    assert result.ranks["i2i"].tolist() == [*first.ranks["i2i"].tolist(), 0, 0, 0, 0]
    assert (result.images_without_caption, result.texts_without_image) == (0, 0)


def test_queries_are_cut_with_the_items() -> None:
    image, text, ids, text_ids = embeddings(seed=5)
    asked = {"image_queries": np.arange(len(ids)) % 3 > 0, "text_queries": np.arange(len(text_ids)) % 2 > 0}
    agree(evaluate_folds(image, text, ids, text_ids, 3, **asked), by_hand(image, text, ids, text_ids, 3, **asked))


@pytest.mark.parametrize("method", ["querybank", "inverted_softmax"])
def test_corrected_figures_are_averaged_too(method: str) -> None:
    sides = embeddings(seed=6)
    bank = QueryBank(*(torch.from_numpy(side) for side in embeddings(seed=7)[:2]), method)
    result, folds = evaluate_folds(*sides, 3, bank=bank, bootstrap=40), by_hand(*sides, 3, bank=bank)
    agree(result, folds)
    agree(result.reranked, [(images, texts, of_fold.reranked) for images, texts, of_fold in folds])
    assert result.reranked.metrics != result.metrics
    assert result.reranked.intervals == bootstrap_intervals(result.reranked.queries, 40)


def test_captions_of_images_that_are_not_there_are_counted_and_take_no_part() -> None:
    image, text, ids, text_ids = embeddings(seed=8)
    expected = evaluate_folds(image, text, ids, text_ids, 3)
    stray = np.array([5000, -1, 5000])
    result = evaluate_folds(image, np.concatenate([text[:3], text]), ids, np.concatenate([stray, text_ids]), 3)
    assert result.metrics == expected.metrics
    assert result.texts_without_image == 3
    assert result.ranks["t2i"].tolist() == [0, 0, 0, *expected.ranks["t2i"].tolist()]
    assert result.queries["t2i"].folds[:3].tolist() == [-1, -1, -1]
    assert named_figures(result.queries) == result.metrics
    labelled = evaluate_folds(
        image, np.concatenate([text[:3], text]), ids, np.concatenate([stray, text_ids]), 3, image_labels=ids % 4
    )
    assert labelled.ranks["t2i"].tolist() == [0, 0, 0, *_ranks_by_class(image, text, ids, text_ids)]


def _ranks_by_class(image: np.ndarray, text: np.ndarray, ids: np.ndarray, text_ids: np.ndarray) -> list[int]:
    return evaluate_folds(image, text, ids, text_ids, 3, image_labels=ids % 4).ranks["t2i"].tolist()


def test_images_without_caption_and_zero_vectors_are_summed() -> None:
    image, text, ids, text_ids = embeddings(seed=9)
    kept = ~np.isin(text_ids, ids[[0, 29]])
    image[[3, 17]] = 0.0
    result = evaluate_folds(image, text[kept], ids, text_ids[kept], 3)
    assert (result.images_without_caption, result.zero_images, result.zero_texts) == (2, 2, 0)
    assert result.ranks["i2t"][[0, 29]].tolist() == [0, 0]
    agree(result, by_hand(image, text[kept], ids, text_ids[kept], 3))


def test_tensors_and_names_as_ids() -> None:
    image, text, ids, text_ids = embeddings(seed=10)
    expected = evaluate_folds(image, text, ids, text_ids, 3)
    named = [f"{i}.jpg" for i in ids], [f"{i}.jpg" for i in text_ids]
    found = evaluate_folds(torch.from_numpy(image), torch.from_numpy(text), *named, 3)
    assert found.metrics == expected.metrics
    assert found.queries["t2i"].groups.tolist() == named[1]


@pytest.mark.parametrize(
    ("images", "folds", "message"),
    [
        (30, 4, r"folds=4 does not cut 30 images .* Possible numbers of folds: 1, 2, 3, 5, 6, 10, 15$"),
        (30, 0, "folds=0"),
        (30, -2, "folds=-2"),
        (30, 30, "two images at least"),
        (31, 5, r"folds=5 does not cut 31 images .*: 1$"),
    ],
)
def test_folds_of_unequal_size_are_an_error(images: int, folds: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_folds(*embeddings(images), folds)


def test_an_image_id_in_two_folds_is_an_error() -> None:
    image, text, ids, text_ids = embeddings()
    ids = ids.copy()
    ids[25] = ids[2]
    with pytest.raises(
        DataError, match=rf"{ids[2]} lies in fold 1 and again, as image 25, in fold 3\. Give each image"
    ):
        evaluate_folds(image, text, ids, text_ids, 3)


def test_a_fault_of_one_fold_is_named_with_it() -> None:
    image, text, ids, text_ids = embeddings()
    kept = np.isin(text_ids, ids[:10])
    with pytest.raises(DataError, match=r"fold 2 of 3 \(images 10 to 19\): no caption belongs to one of its images"):
        evaluate_folds(image, text[kept], ids, text_ids[kept], 3)
    asked = np.arange(30) < 20
    with pytest.raises(DataError, match=r"fold 3 of 3 \(images 20 to 29\): image_queries holds not one query"):
        evaluate_folds(image, text, ids, text_ids, 3, image_queries=asked)


def test_broken_embeddings_are_named_by_their_rows_in_the_whole() -> None:
    image, text, ids, text_ids = embeddings()
    image[25, 0] = np.nan
    with pytest.raises(FeatureError, match=r"image_embeddings .* 1 of 30 rows .*: rows 25\."):
        evaluate_folds(image, text, ids, text_ids, 3)
