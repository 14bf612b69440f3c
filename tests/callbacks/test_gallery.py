from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from xmodal.callbacks.gallery import draw_gallery, sample_queries
from xmodal.callbacks.retrieval import Retrieved
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.retrieval.evaluate import evaluate_retrieval


def retrieved(images: int, k: int = 3) -> Retrieved:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(images, 4)).astype(np.float32)
    result = evaluate_retrieval(embeddings, embeddings, np.arange(images), np.arange(images))
    rows = np.arange(images)
    found = np.full((images, k), -1)
    found[:, 0] = rows
    return Retrieved(result, rows, rows, found, found)


def items(paths, texts) -> Items:
    images = tuple(ImageItem(i, "test", path) for i, path in enumerate(paths))
    return Items("some", images, tuple(Caption(i, i, text) for i, text in enumerate(texts)))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_half_of_the_queries_are_hits_where_there_are_both():
    ranks = np.array([1, 2, 1, 1, 9, 1, 3, 1])
    assert sorted(ranks[sample_queries(ranks, 4)] == 1) == [False, False, True, True]


@pytest.mark.parametrize(
    ("ranks", "count"), [([1, 1, 1], 3), ([2, 3], 2), ([0, 0], 0), ([1, 5, 5, 5, 5], 4), ([0, 1], 1)]
)
def test_as_many_queries_as_there_are(ranks, count):
    ranks = np.array(ranks)
    chosen = sample_queries(ranks, 4)
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert (ranks[chosen] > 0).all()


def test_dollar_signs_of_captions_and_names_are_only_text(tmp_path):
    texts = ["a bill of $5 and \\frac of $10", "$_{", "100 % $"]
    path = draw_gallery(items([None] * 3, texts), retrieved(3), tmp_path / "gallery.png", "prices in $ and $_{")
    assert pixels(path).std() > 5


def test_absent_photos_are_shown_by_their_id(tmp_path):
    Image.new("RGB", (20, 20), (0, 0, 255)).save(tmp_path / "here.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    paths = [tmp_path / "here.png", tmp_path / "absent.png", tmp_path / "broken.jpg"]
    picture = pixels(draw_gallery(items(paths, ["x", "y", "z"]), retrieved(3), tmp_path / "gallery.png", "some"))
    assert (abs(picture - [0, 0, 255]).sum(axis=2) < 30).sum() > 1000  # the one that is there


def test_by_class_what_is_found_of_the_same_label_is_a_hit(tmp_path):
    """Image 0 finds the captions of its own class alone, none of its own."""
    labelled = tuple(ImageItem(i, "test", None, label) for i, label in enumerate("aab"))
    some = Items("some", labelled, tuple(Caption(i, i, "") for i in range(3)))
    plain = retrieved(3)
    others = np.array([[1, -1, -1], [0, -1, -1], [-1, -1, -1]])
    counts = []
    for labels in (None, some.labels):
        found = replace(plain, captions_of_images=others, images_of_captions=others, labels=labels)
        picture = pixels(draw_gallery(some, found, tmp_path / "gallery.png", "some"))
        counts.append((abs(picture - [0x1A, 0x7F, 0x37]).sum(axis=2) < 20).sum())
    assert counts[0] == 0
    assert counts[1] > 100
