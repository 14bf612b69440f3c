"""The sample of embeddings: read or refused, compared as a loop would, and laid on a plane."""

import math

import numpy as np
import pytest

from xmodal.errors import DataError
from xmodal.reporting.embeddings import Sample, evenly, principal_plane, read_sample, similarities


def made_up(similarity="cosine", count=5, size=4):
    rng = np.random.default_rng(3)
    return Sample(rng.normal(size=(count, size)), rng.normal(size=(count, size)), similarity)


def compared(a, b, how):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    if how == "dot":
        return product
    if how == "cosine":
        return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))
    return -math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("how", ["cosine", "dot", "euclidean"])
def test_similarities_are_those_of_a_loop(how):
    sample = made_up(how)
    expected = [[compared(a, b, how) for b in sample.text.tolist()] for a in sample.image.tolist()]
    assert similarities(sample) == pytest.approx(np.array(expected))


def test_the_plane_holds_most_of_the_variance():
    vectors = np.random.default_rng(0).normal(size=(50, 6)) * [5, 1, 3, 0.5, 0.2, 0.1]
    places, held = principal_plane(vectors)
    values = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    assert held == pytest.approx(tuple(values[:2] / values.sum()))
    assert places.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert principal_plane(vectors[::-1])[0][::-1] == pytest.approx(places)


def test_points_of_a_plane_keep_their_distances():
    vectors = (
        np.random.default_rng(1).normal(size=(8, 2)) @ np.linalg.qr(np.random.default_rng(2).normal(size=(5, 2)))[0].T
    )
    places, held = principal_plane(vectors)
    apart = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)  # noqa: E731
    assert apart(places) == pytest.approx(apart(vectors))
    assert sum(held) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (2, 2)])
def test_few_vectors_and_narrow_ones_have_a_plane(shape):
    places, held = principal_plane(np.ones(shape))
    assert places.tolist() == [[0.0, 0.0]] * shape[0]
    assert held == (0.0, 0.0)


def test_a_sample_is_spread_from_the_first_to_the_last():
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 40).tolist() == [0, 1, 2]


def write(path, **arrays):
    sample = made_up()
    np.savez(path, **({"image": sample.image, "text": sample.text, "similarity": np.array("dot")} | arrays))


def test_a_file_is_read(tmp_path):
    write(tmp_path / "embeddings_test.npz", image_ids=np.arange(5))
    found = read_sample(tmp_path / "embeddings_test.npz")
    assert found.similarity == "dot"
    assert np.array_equal(found.image, made_up().image)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"text": np.ones((4, 4))}, r"image is \(5, 4\), text is \(4, 4\)"),
        ({"image": np.ones(5), "text": np.ones(5)}, r"image is \(5,\)"),
        ({"image": np.full((5, 4), np.nan)}, "no finite number"),
        ({"image": np.array([["a"]]), "text": np.array([["b"]])}, "TypeError"),
        ({"image": np.array([{}], dtype=object)}, "ValueError"),
        ({"image": np.ones((0, 4)), "text": np.ones((0, 4))}, r"\(0, 4\)"),
    ],
)
def test_what_is_no_sample_is_refused(tmp_path, arrays, said):
    write(tmp_path / "embeddings_val.npz", **arrays)
    with pytest.raises(DataError, match=f"embeddings_val.npz can't be read .*{said}"):
        read_sample(tmp_path / "embeddings_val.npz")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "embeddings_test.npz"
    write(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="can't be read"):
        read_sample(path)
