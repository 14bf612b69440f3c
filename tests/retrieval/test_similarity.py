"""Blocks of embeddings and the scores of tiles."""

import math

import numpy as np
import pytest
import torch

from xmodal.errors import ConfigError, FeatureError
from xmodal.retrieval.similarity import Blocks, as_tensor, check_similarity, count_zero_rows, score, unit_length


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
    for view in (array, array.T.copy().T, np.asfortranarray(array), frozen, array.astype(">f8").astype("f8")):
        assert as_tensor(view).tolist() == array.tolist()
