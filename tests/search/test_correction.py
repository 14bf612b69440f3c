"""The correction for hubs: what a loop over all items gives, and what the evaluation gives for the same bank."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.errors import ConfigError, DataError
from xmodal.retrieval.hubness import QueryBank
from xmodal.search.building import build_gallery
from xmodal.search.choice import Asked, choose
from xmodal.search.correction import Correction, read_corrections, write_corrections
from xmodal.search.gallery import NumberedGallery, as_queries

WIDTH = 6


def unit(count: int, seed: int) -> np.ndarray:
    return as_queries(np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32) + 0.4, WIDTH, "cosine")


def made(rows: np.ndarray, bank: np.ndarray, kind: str = "flat") -> tuple[NumberedGallery, Correction]:
    choice = choose(len(rows), WIDTH, 10**9, Asked(kind))
    gallery = build_gallery(rows, choice, "cosine", 10**9, Path("unused"))
    correction = Correction.of(bank, "cosine").with_vectors(rows, np.arange(len(rows)), "cosine")
    return gallery, correction.activated_in(gallery)


def naive(rows: np.ndarray, bank: np.ndarray, query: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Corrected scores of the items in ``among``: QB-Norm, item by item, in float64."""
    items, asked, beta = rows.astype(np.float64), query.astype(np.float64), 20.0
    banked = [[float(item @ one) for item in items] for one in bank.astype(np.float64)]
    best_of_bank = {int(np.argmax(scores)) for scores in banked}
    scores = np.array([item @ asked for item in items])
    if among[np.argmax(scores[among])] not in best_of_bank:
        return scores[among]
    offsets = [-np.log(sum(np.exp(beta * scores[n]) for scores in banked)) / beta for n in range(len(items))]
    return scores[among] + np.array(offsets)[among]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 250),
    size=st.integers(1, 30),
    k=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    is_part=st.booleans(),
)
def test_it_is_what_a_loop_gives(count: int, size: int, k: int, seed: int, is_part: bool) -> None:
    rows, bank, queries = unit(count, seed), unit(size, seed + 1), unit(4, seed + 2)
    gallery, correction = made(rows, bank)
    among = np.arange(0, count, 2) if is_part else np.arange(count)
    scores, numbers = correction.search(gallery, queries, k, among if is_part else None)
    for query in range(4):
        expected = naive(rows, bank, queries[query], among)
        best = np.sort(expected)[::-1][:k]
        np.testing.assert_allclose(scores[query], best, atol=1e-5)
        np.testing.assert_allclose(expected[np.searchsorted(among, numbers[query])], best, atol=1e-5)
        assert len({*numbers[query].tolist()}) == len(best)


def test_it_is_what_the_evaluation_ranks_by() -> None:
    rows, bank, queries = unit(300, 0), unit(40, 1), unit(60, 2)
    gallery, correction = made(rows, bank)
    given_bank = QueryBank(image=torch.from_numpy(bank), text=torch.from_numpy(bank))
    _, offsets = given_bank.offsets(torch.from_numpy(rows), torch.from_numpy(queries), "cosine", 64)
    expected = queries @ rows.T + np.where(offsets.queries.numpy()[:, None], offsets.gallery.numpy(), 0.0)
    assert 0 < offsets.queries.sum() < 60
    scores, numbers = correction.search(gallery, queries, 300)
    np.testing.assert_allclose(np.take_along_axis(expected, numbers, axis=1), scores, atol=1e-5)
    np.testing.assert_allclose(-np.sort(-expected, axis=1), scores, atol=1e-5)


def test_an_item_far_behind_the_first_candidates_comes_up() -> None:
    """A thousand hubs before an item that no query of the bank is near."""
    hubs = np.zeros((1000, WIDTH), np.float32)
    hubs[:, 0], hubs[:, 1] = 1.0, np.linspace(0, 0.05, 1000)
    lonely = np.eye(WIDTH, dtype=np.float32)[2:3] + 0.9 * np.eye(WIDTH, dtype=np.float32)[:1]
    rows = as_queries(np.concatenate([hubs, lonely]), WIDTH, "cosine")
    bank = as_queries(hubs[::10], WIDTH, "cosine")
    gallery, correction = made(rows, bank)
    query = as_queries(np.array([[1, 0, 0.3, 0, 0, 0]], np.float32), WIDTH, "cosine")
    assert gallery.search(query, 1000)[1][0].tolist().count(1000) == 0
    assert correction.search(gallery, query, 1)[1].tolist() == [[1000]]


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq"])
def test_approximate_indexes_are_corrected_too(kind: str) -> None:
    rows, bank = unit(500, 0), unit(40, 1)
    gallery, correction = made(rows, bank, kind)
    scores, numbers = correction.search(gallery, unit(5, 2), 700)
    assert (np.diff(scores[:, :100], axis=1) <= 0).all()
    for row in numbers:
        there = row[row >= 0]
        assert len({*there.tolist()}) == len(there)


def test_a_part_without_an_item_finds_nothing() -> None:
    gallery, correction = made(unit(20, 0), unit(5, 1))
    scores, numbers = correction.search(gallery, unit(3, 2), 4, np.zeros(0, np.int64))
    assert (numbers < 0).all()
    assert np.isneginf(scores).all()


def test_what_is_added_later_is_corrected_as_if_it_had_been_there() -> None:
    rows, bank, queries = unit(200, 0), unit(30, 1), unit(20, 2)
    gallery, correction = made(rows[:120], bank)
    gallery.add(rows[120:], np.arange(120, 200))
    later = correction.with_vectors(rows[120:], np.arange(120, 200), "cosine").activated_in(gallery)
    _, at_once = made(rows, bank)
    np.testing.assert_allclose(later.offsets, at_once.offsets, atol=1e-6)
    assert later.activated.tolist() == at_once.activated.tolist()
    assert later.search(gallery, queries, 9)[1].tolist() == at_once.search(gallery, queries, 9)[1].tolist()


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    _, correction = made(unit(20, 0), unit(5, 1))
    write_corrections(tmp_path / "bank.npz", {"images": correction})
    found = read_corrections(tmp_path / "bank.npz")
    assert list(found) == ["images"]
    for name in ("bank", "offsets", "activated"):
        np.testing.assert_array_equal(getattr(found["images"], name), getattr(correction, name))
    assert found["images"].inverse_temperature == 20
    (tmp_path / "bank.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="can't be read"):
        read_corrections(tmp_path / "bank.npz")


def test_distances_and_unsaid_temperatures_are_refused() -> None:
    with pytest.raises(ConfigError, match="this model compares by distances"):
        Correction.of(unit(3, 0), "euclidean", 20.0)
    with pytest.raises(ConfigError, match="must be chosen under similarity=dot"):
        Correction.of(unit(3, 0), "dot")
