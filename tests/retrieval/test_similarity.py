"""Blocks of embeddings and the scores of tiles."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.similarity import (
    Blocks,
    as_tensor,
    check_similarity,
    common_centre,
    count_zero_rows,
    score,
    unit_length,
)


@pytest.mark.parametrize("width", [1, 3, 7, 64, 100, 257, 1024])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_equal_vectors_score_equally_wherever_they_stand(width: int, similarity: str) -> None:
    torch.manual_seed(width)
    images, texts = torch.randn(1, width).expand(777, width), torch.randn(1, width).expand(301, width)
    cpu, dtype = torch.device("cpu"), torch.float32
    image_blocks = Blocks(images, torch.arange(777), 200, similarity, cpu, dtype)
    text_blocks = Blocks(texts, torch.arange(301), 130, similarity, cpu, dtype)
    out = torch.empty(image_blocks.block_size, text_blocks.block_size)
    scores = set()
    for i in range(len(image_blocks)):
        for j in range(len(text_blocks)):
            tile = score(image_blocks[i], text_blocks[j], similarity, out)
            scores |= set(tile[: image_blocks.rows_in(i), : text_blocks.rows_in(j)].flatten().tolist())
    assert len(scores) == 1


def test_blocks_hold_every_row_once_in_order() -> None:
    embeddings, order = torch.randn(300, 5), torch.randperm(300)
    blocks = Blocks(embeddings, order, 100, "dot", torch.device("cpu"), torch.float32)
    assert blocks.block_size == 128
    assert {blocks[i].shape for i in range(len(blocks))} == {(128, 16)}
    rows = torch.cat([blocks[i][: blocks.rows_in(i), :5].clone() for i in range(len(blocks))])
    torch.testing.assert_close(rows, embeddings[order], rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-42])
def test_unit_length_at_any_scale(scale: float) -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * scale
    torch.testing.assert_close(unit_length(rows), torch.tensor([[0.6, 0.8], [0.0, 0.0]]), rtol=0.01, atol=0)


def test_scores_are_the_named_similarity() -> None:
    image, text = torch.randn(3, 4), torch.randn(2, 4)
    out = torch.empty(3, 2)
    torch.testing.assert_close(score(image, text, "euclidean", out), -torch.cdist(image, text).square())
    torch.testing.assert_close(score(image, text, "dot", out), torch.stack([text @ i for i in image]))


def test_zero_rows_are_counted() -> None:
    rows = torch.ones(10, 3)
    rows[[2, 9]] = 0
    assert count_zero_rows(rows, "rows", block_size=4) == 2


def test_rows_that_are_not_numbers_are_named() -> None:
    rows = torch.ones(20, 3)
    rows[[3, 7, 8, 9, 11, 15, 19], 1] = math.nan
    rows[5, 0] = math.inf
    with pytest.raises(
        FeatureError, match=r"text_embeddings .* 8 of 20 rows hold NaN or infinity: rows 3, 5, 7, 8, 9, …"
    ):
        count_zero_rows(rows, "text_embeddings", block_size=4)


def test_unknown_similarity_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="cosine, dot, euclidean; found 'cosin'"):
        check_similarity("cosin")


def test_arrays_of_any_layout_become_tensors() -> None:
    array = np.arange(6.0).reshape(2, 3)
    frozen = array.copy()
    frozen.flags.writeable = False
    wide = np.arange(12.0).reshape(2, 6)[:, ::2] / 2
    fields = np.zeros(2, dtype=[("flag", "i1"), ("row", "f8", 3)])
    fields["row"] = array
    views = [array, np.asfortranarray(array), frozen, array[::-1][::-1], wide, fields["row"]]
    for view in (*views, array.astype(">f8"), array.astype("<f8"), array.astype(">i4"), array.astype(np.float16)):
        assert as_tensor(view).tolist() == array.tolist()
    assert as_tensor(array[::-1]).tolist() == array[::-1].tolist()
    assert as_tensor(array.astype(">f4")).dtype == torch.float32


@pytest.mark.filterwarnings("error")
def test_memory_is_shared_with_arrays_that_are_read_only(tmp_path: Path) -> None:
    array = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    frozen = array.copy()
    frozen.flags.writeable = False
    for view in (array, frozen, frozen[::2], mapped, mapped[1:]):
        found = as_tensor(view)
        assert np.shares_memory(found.numpy(), view)
        assert found.tolist() == view.tolist()


@pytest.mark.parametrize(
    ("embeddings", "found"),
    [
        ([[1.0, 2.0]], "found list: np.asarray makes an array"),
        (None, "found NoneType"),
        (np.array([[1.0, None]], dtype=object), "found an array of object"),
        (np.ones((1, 2), dtype=np.longdouble), f"found an array of {np.dtype(np.longdouble)}"),
        (np.array([["1", "2"]]), "found an array of <U1"),
        (torch.ones(1, 2).to(torch.float8_e4m3fn), "found a tensor of torch.float8_e4m3fn"),
        (torch.eye(2).to_sparse(), "found a tensor of torch.float32, torch.sparse_coo"),
    ],
)
def test_what_is_no_array_of_numbers(embeddings: object, found: str) -> None:
    with pytest.raises(FeatureError, match=rf"must be a torch tensor or a NumPy array of .*bfloat16\), {found}"):
        as_tensor(embeddings)


def test_only_euclidean_distances_are_centred() -> None:
    far = torch.randn(50, 3) + 1000
    assert common_centre(far, similarity="cosine") is None
    assert common_centre(far, similarity="dot") is None
    centre = common_centre(far, far[:7])
    assert centre is not None
    assert (centre - 1000).abs().max() < 5


def test_the_centre_is_that_of_both_sides_whatever_their_block() -> None:
    image, text = torch.randn(130, 3) + 1000, torch.randn(400, 3) + torch.tensor([996.0, 1004.0, 999.0])
    one, other = common_centre(image, text, block_size=16), common_centre(text.double(), image)
    assert one is not None
    assert other is not None
    assert one.tolist() == other.tolist()


def test_a_centre_is_subtracted_without_rounding() -> None:
    rows = torch.randint(-5, 6, (300, 4)).float() + 1e6
    centre = common_centre(rows)
    assert centre is not None
    assert torch.equal((rows - centre.float()).double() + centre, rows.double())


@pytest.mark.parametrize("width", [1, 2, 300])
def test_vectors_far_away_do_not_move_the_others(width: int) -> None:
    rows = torch.randn(100, width)
    rows[:30, 0] = 1e15
    assert common_centre(rows) is None
    rows[:2, 0] = 3e38
    assert common_centre(rows) is None
    assert common_centre(rows.double() * 1e250) is None  # squares leave the range of float64


def test_equal_vectors_have_themselves_as_centre() -> None:
    centre = common_centre(torch.full((9, 2), 0.1))
    torch.testing.assert_close(centre, torch.full((2,), 0.1, dtype=torch.float64), rtol=1e-6, atol=0)
    assert common_centre(torch.zeros(9, 2)) is None
