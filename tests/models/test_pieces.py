"""Gradients of a batch that towers go over in pieces, and how much of it is in memory at a time."""

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader

from xmodal.aggregators.lstm import LSTMAggregator
from xmodal.aggregators.mean import MeanAggregator
from xmodal.errors import ConfigError
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.pieces import embed_in_pieces
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch


def model(chunk: int | None, dropout: float = 0.0) -> DualEncoder:
    torch.manual_seed(0)
    projection = partial(Projection, output_dim=8, num_layers=2, hidden_dim=12, dropout=dropout)
    towers = [
        Tower(6, MeanAggregator(6), projection, feature_dropout=dropout),
        Tower(5, LSTMAggregator(5, hidden_size=7), projection, feature_dropout=dropout),
    ]
    make = partial(torch.optim.SGD, lr=0.1)
    return DualEncoder(*towers, TripletLoss(distance="cosine"), make, embedding_chunk=chunk).double().train()


def batch(size: int, dtype: torch.dtype = torch.float64) -> PairBatch:
    draw = torch.Generator().manual_seed(size)
    lengths = torch.randint(1, 5, (size,), generator=draw)
    mask = torch.arange(4) < lengths[:, None]
    ids = torch.randint(0, max(2, size // 2), (size,), generator=draw)
    sides = [FeatureBatch(torch.randn(size, 4, d, generator=draw).to(dtype), mask, ids) for d in (6, 5)]
    return PairBatch(*sides)


def gradients(made: DualEncoder, pairs: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
    image, text = made(pairs)
    loss = made.loss(image, text, pairs.image.image_ids)
    made.zero_grad()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in made.named_parameters()}


def assert_close(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(size=st.integers(2, 13), chunk=st.integers(1, 15))
def test_gradients_are_those_of_the_whole_batch(size: int, chunk: int) -> None:
    pairs = batch(size)
    assert_close(gradients(model(chunk), pairs), gradients(model(None), pairs))


def test_what_is_computed_again_drops_out_alike() -> None:
    """Against pieces whose activations are all kept, from the same random numbers."""
    made, pairs = model(4, dropout=0.5), batch(11)
    torch.manual_seed(3)
    found = gradients(made, pairs)
    torch.manual_seed(3)
    cut = [[FeatureBatch(*(part[i : i + 4] for part in side[:3])) for i in (0, 4, 8)] for side in pairs]
    embedded = [
        torch.cat([tower(x, mask) for x, mask, *_ in pieces])
        for tower, pieces in zip((made.image_tower, made.text_tower), cut, strict=True)
    ]
    loss = made.loss(*embedded, pairs.image.image_ids)
    made.zero_grad()
    loss.backward()
    assert_close(found, (loss.detach(), {name: parameter.grad for name, parameter in made.named_parameters()}))
    torch.manual_seed(4)
    assert not torch.equal(gradients(made, pairs)[0], loss.detach())


def test_activations_of_one_piece_are_kept_at_a_time() -> None:
    """By the outputs of layers that are alive at once, in the forward or the backward pass."""

    def peak(size: int) -> int:
        torch.manual_seed(0)
        layers, outputs, alive = nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))), [], []

        def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs.append((StorageWeakRef(output.untyped_storage()), len(output)))
            alive.append(sum(size for storage, size in outputs if not storage.expired()))

        for layer in layers[:-1]:  # the embeddings themselves are kept, of all pieces
            layer.register_forward_hook(watch)
        sets = FeatureBatch(torch.randn(64, 1, 8), torch.ones(64, 1, dtype=torch.bool), torch.arange(64))
        embed_in_pieces(lambda part: layers(part.x.squeeze(1)), sets, size).square().sum().backward()
        return max(alive)

    assert peak(64) == 5 * 64
    assert peak(8) == 5 * 8


def test_in_evaluation_the_whole_batch_goes_through_at_once() -> None:
    made, pairs, seen = model(3), batch(10), []
    made.image_tower.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    made.eval()(pairs)
    with torch.no_grad():
        made.train()(pairs)
    made(pairs)
    assert seen == [10, 10, 3, 3, 3, 1]


def test_pooled_batches_go_in_pieces_too() -> None:
    side = FeatureBatch(torch.randn(5, 1, 6).double(), torch.ones(5, 1, dtype=torch.bool), torch.arange(5), True)
    text = batch(5).text
    assert_close(model(2)(PairBatch(side, text)), model(None)(PairBatch(side, text)))


def trained(chunk: int | None, **options: Any) -> DualEncoder:
    made = model(chunk).float()
    made.objective.register_forward_pre_hook(remember)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, gradient_clip_val=0.5, **quiet, **options
    )
    trainer.fit(made, DataLoader([batch(9, torch.float32), batch(7, torch.float32)], batch_size=None))
    return made


def remember(module: nn.Module, inputs: Any) -> None:
    module.seen = [inputs[0].image.dtype, inputs[0].text.dtype, torch.is_autocast_enabled("cpu")]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_in_pieces_is_training(precision: str) -> None:
    """Under Lightning's own loop with clipping; the loss computes in float32 whatever the towers compute in."""
    whole, pieces = trained(None, precision=precision), trained(4, precision=precision)
    tolerance = 1e-5 if precision == "32-true" else 2e-2
    before = model(None).float().state_dict()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    assert any(not torch.equal(before[name], value) for name, value in pieces.state_dict().items())
    assert whole.objective.seen == pieces.objective.seen == [torch.float32, torch.float32, False]


def test_batch_normalisation_is_refused() -> None:
    class Tail(nn.Module):
        output_dim = 6

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

    made = model(2)
    made.image_tower.attach(Tail())
    with pytest.raises(
        ConfigError, match=r"model\.embedding_chunk=2: image_tower\.tail\.norm normalises over the batch"
    ):
        made.configure_optimizers()


@pytest.mark.parametrize("chunk", [0, -3])
def test_pieces_of_nothing_are_refused(chunk: int) -> None:
    with pytest.raises(ConfigError, match=rf"model\.embedding_chunk must be at least 1, or null; found {chunk}"):
        model(chunk)
