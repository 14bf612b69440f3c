"""Weighted sums of losses, by themselves and as a configuration."""

import math

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from xmodal.config.check import check
from xmodal.config.command_line import check_overrides, compose
from xmodal.errors import ConfigError
from xmodal.losses.contrastive import ContrastiveLoss
from xmodal.losses.infonce import InfoNCELoss
from xmodal.losses.siglip import SigLIPLoss
from xmodal.losses.triplet import TripletLoss
from xmodal.losses.weighted import WeightedSum
from xmodal.losses.within import WithinModality
from xmodal.models.objective import Objective


class MeanDistance(nn.Module):
    """A loss that a user may write."""

    def forward(self, image: Tensor, text: Tensor, image_ids: Tensor) -> Tensor:
        return torch.cdist(image, text)[image_ids[:, None] == image_ids[None, :]].mean()


@pytest.mark.parametrize(("labelled", "remembered"), [(False, 0), (True, 4)])
def test_is_the_weighted_sum(batch_of, labelled, remembered):
    batch = batch_of(6, 5, labelled, remembered, seed=0)
    own = MeanDistance()
    losses = {"a": InfoNCELoss(), "b": WithinModality(TripletLoss(), "text"), "own": own, "off": ContrastiveLoss()}
    loss = WeightedSum(losses, {"a": 1.0, "b": 0.3, "own": 2, "off": 0.0})
    groups = batch.image_ids if batch.labels is None else batch.labels
    values = [losses[name](*batch).item() for name in ("a", "b")] + [own(batch.image, batch.text, groups).item()]
    assert loss(*batch).item() == pytest.approx(values[0] + 0.3 * values[1] + 2 * values[2], rel=1e-6)
    figures = loss.figures()
    assert set(figures) == {
        *("a_loss", "b_loss", "own_loss", "off_loss"),
        *("a_temperature", "b_active_triplets", "off_active_negatives"),
    }
    assert figures["b_loss"].item() == pytest.approx(values[1])
    assert not any(value.requires_grad for value in figures.values())


def test_gradient_agrees_with_finite_differences_and_every_term_learns(batch_of):
    image, text, ids, labels, memory = batch_of(5, 4, True, 3, seed=3)
    loss = WeightedSum({"a": InfoNCELoss(), "b": SigLIPLoss()}, {"a": 1.0, "b": 0.5}).double()
    loss(image, text, ids).backward()
    assert all(p.grad is not None for p in loss.parameters())
    assert torch.autograd.gradcheck(
        lambda i, t: loss(i, t, ids, labels, memory), (image.requires_grad_(), text.requires_grad_()), eps=1e-7
    )


def test_nan_in_any_term_is_not_hidden(batch_of):
    batch = batch_of(4, 4, False, 0, seed=0)
    batch.text[1, 1] = math.nan
    assert WeightedSum({"a": InfoNCELoss(), "b": TripletLoss()}, {"a": 0.0, "b": 1.0})(*batch).isnan()


def test_the_step_reaches_every_term(batch_of):
    loss = WeightedSum({"a": TripletLoss(negatives="hardest", warmup_steps=9)}, {"a": 1.0})
    batch = batch_of(6, 6, False, 0, seed=0)
    objective = Objective(loss)
    first = loss(*batch).item()
    objective.at_step(9, (0, 0))
    assert loss(*batch).item() != first


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        WeightedSum(
            {"cross": TripletLoss(), "text": TripletLoss(), "c": TripletLoss()}, {"corss": 1, "text": -1, "c": "x"}
        )
    assert caught.value.faults == (
        "loss.weights.cross: this term of loss.losses has no weight",
        "loss.weights.corss: loss.losses has no such term. Did you mean 'cross'? Terms: cross, text, c",
        "loss.weights.text must be a number of at least 0, found -1",
        "loss.weights.c must be a number of at least 0, found 'x'",
    )


@pytest.mark.parametrize("losses", [{}, {"a": None}, {"a": TripletLoss()}])
def test_something_has_to_be_learned(losses):
    with pytest.raises(ConfigError, match="at least one term with a weight above 0"):
        WeightedSum(losses, dict.fromkeys(losses, 0.0))


def test_terms_are_chosen_and_set_from_the_command_line():
    chosen = ["loss=weighted", "loss@loss.losses.cross=siglip", "loss@loss.losses.text.loss=contrastive"]
    loss = instantiate(compose([*chosen, "loss.losses.cross.bias=-5.0", "loss.weights.text=0.5"]).loss)
    assert isinstance(loss.losses["cross"], SigLIPLoss)
    assert loss.losses["cross"].bias.item() == -5
    assert isinstance(loss.losses["text"].loss, ContrastiveLoss)
    assert loss.weights == {"cross": 1.0, "text": 0.5}
    only = instantiate(compose(["loss=weighted", "loss.losses.text=null"]).loss)
    assert list(only.losses) == ["cross"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("loss.losses.cross.temprature=1.0", "Did you mean 'loss.losses.cross.temperature'?"),
        ("loss.losses.cross.temperature=cold", "expected a number, found 'cold'"),
        ("loss.losses.text.loss.negatives=hard", "found 'hard'. Did you mean 'hardest'"),
        ("loss.weights.crosss=1.0", "Did you mean 'loss.weights.cross'?"),
        ("loss@loss.losses.cross=inofnce", "there is no loss 'inofnce'. Did you mean 'infonce'?"),
    ],
)
def test_faults_within_terms_are_found_before_anything_is_made(setting, said):
    (fault,) = check_overrides(["loss=weighted", setting])
    assert fault.startswith(f"{setting}: ")
    assert said in fault


def test_weights_sizes_and_labels_are_checked():
    faults = check(
        compose(
            [
                "loss=weighted",
                "loss.weights.text=-1",
                "loss.weights.cross=much",
                "loss.losses.text.side=image",
                "embedding_dim=64",
                "matryoshka=[16,64,x]",
            ]
        )
    )
    assert faults == [
        "matryoshka=[16,64,x]: expected whole numbers from 1 to 63, smaller than embedding_dim=64, which is trained as "
        "well; found 64, 'x'.",
        "loss.weights.cross=much: expected a number of at least 0, found 'much'.",
        "loss.weights.text=-1: expected a number of at least 0, found -1.",
        "loss.losses.text.side=image: which images match, only labels can tell. Add relevance=label (the data set "
        "needs labels), or compare texts: loss.losses.text.side=text.",
    ]
    assert check(compose(["loss=image_to_image", "relevance=label", "matryoshka=[64,128]"])) == []
    (fault,) = check(compose(["loss=image_to_image"]))
    assert fault.startswith("loss.side=image: ")
