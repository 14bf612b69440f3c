"""What is around a loss in training: memory, embedding sizes within embeddings, labels, and draws."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xmodal.aggregators.mean import MeanAggregator
from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.losses.contrastive import ContrastiveLoss
from xmodal.losses.infonce import InfoNCELoss
from xmodal.losses.siglip import SigLIPLoss
from xmodal.losses.triplet import TripletLoss
from xmodal.losses.weighted import WeightedSum
from xmodal.models.dual_encoder import MEMORY_ITEMS_KEY, MEMORY_KEY, DualEncoder
from xmodal.models.objective import Objective
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.types import FeatureBatch, PairBatch

LOSSES = {
    "triplet": lambda: TripletLoss(3.0),
    "contrastive": lambda: ContrastiveLoss(3.0),
    "infonce": InfoNCELoss,
    "siglip": SigLIPLoss,
}
ALL = pytest.mark.parametrize("name", LOSSES)


class MeanDistance(nn.Module):
    """A loss that a user may write: it knows nothing of labels, memory, steps or figures."""

    def forward(self, image: Tensor, text: Tensor, image_ids: Tensor) -> Tensor:
        same = image_ids[:, None] == image_ids[None, :]
        return torch.cdist(image, text)[same].mean()


def batches(number: int, size: int, images: int, seed: int = 0) -> list[EmbeddedPairs]:
    generator = torch.Generator().manual_seed(seed)
    return [
        EmbeddedPairs(
            torch.randn(size, 6, generator=generator),
            torch.randn(size, 6, generator=generator),
            torch.randint(images, (size,), generator=generator),
        )
        for _ in range(number)
    ]


def last(pairs: list[EmbeddedPairs], count: int) -> EmbeddedPairs:
    """The last pairs of all batches, first in, first out, by a list of rows."""
    rows = [row for batch in pairs for row in zip(batch.image, batch.text, batch.image_ids, strict=True)][-count:]
    return EmbeddedPairs(*(torch.stack(part) for part in zip(*rows, strict=True)))


@ALL
@pytest.mark.parametrize("size", [1, 5, 8, 100])
def test_the_last_pairs_of_earlier_batches_are_further_candidates(name, size):
    objective, loss = Objective(LOSSES[name](), cross_batch_memory=size), LOSSES[name]()
    seen = []
    for pairs in batches(5, size=4, images=6):
        memory = last(seen, size) if seen else None
        torch.testing.assert_close(objective(pairs), loss(*pairs[:3], memory=memory))
        seen.append(pairs)
        assert len(objective.memory.image_ids) == min(size, 4 * len(seen))


def test_siblings_in_the_memory_are_no_negatives():
    """An image that comes again and again has nothing but siblings in the memory."""
    objective = Objective(TripletLoss(10.0), cross_batch_memory=50)
    values = [objective(pairs._replace(image_ids=torch.full((4,), 7))).item() for pairs in batches(4, 4, 1)]
    assert values == [0, 0, 0, 0]
    other = batches(1, 4, 1)[0]._replace(image_ids=torch.full((4,), 8))
    assert objective(other).item() > 0


def test_evaluation_neither_reads_nor_fills_the_memory():
    objective, loss = Objective(InfoNCELoss(), cross_batch_memory=8), InfoNCELoss()
    first, second = batches(2, 4, 50)
    objective(first)
    remembered = objective.memory
    assert objective.eval()(second).item() == loss(*second[:3]).item()
    assert objective.memory is remembered
    assert objective.train()(second).item() != loss(*second[:3]).item()


def test_the_memory_has_no_gradient_and_holds_no_graph():
    objective = Objective(InfoNCELoss(), cross_batch_memory=8)
    for pairs in batches(3, 4, 50):
        image, text = pairs.image.requires_grad_(), pairs.text.requires_grad_()
        objective(pairs._replace(image=2 * image, text=2 * text)).backward()
        assert image.grad.abs().sum() > 0
    assert not objective.memory.image.requires_grad
    assert not objective.memory.text.requires_grad


@pytest.mark.parametrize("sizes", [8, 3, 50])
def test_a_restored_memory_goes_on_as_if_nothing_had_happened(sizes):
    whole, resumed = (Objective(SigLIPLoss(), cross_batch_memory=8) for _ in range(2))
    pairs = batches(4, 4, 50)
    for batch in pairs[:3]:
        whole(batch)
    resumed.remember_again(whole.remembered())
    assert resumed(pairs[3]).item() == whole(pairs[3]).item()
    other = Objective(SigLIPLoss(), cross_batch_memory=sizes)
    other.remember_again(whole.remembered())
    assert len(other.memory.image_ids) == min(8, sizes)
    assert torch.equal(other.memory.image_ids, whole.memory.image_ids[-sizes:])


def test_what_is_kept_in_a_checkpoint_is_no_larger_than_the_memory():
    objective = Objective(InfoNCELoss(), cross_batch_memory=3)
    assert objective.remembered() == {}
    for pairs in batches(3, 16, 50):
        objective(pairs)
    assert objective.remembered()["image"].untyped_storage().nbytes() == 3 * 6 * 4


def test_a_run_without_a_memory_takes_none_from_a_checkpoint():
    objective = Objective(InfoNCELoss())
    objective.remember_again({"image": torch.ones(1, 6), "text": torch.ones(1, 6), "image_ids": torch.ones(1)})
    assert objective.memory is None


@ALL
@pytest.mark.parametrize("memory", [0, 5])
def test_matryoshka_is_the_mean_of_the_loss_at_each_size(name, memory):
    objective, loss = Objective(LOSSES[name](), cross_batch_memory=memory, matryoshka=[4, 2, 4]), LOSSES[name]()
    first, second = batches(2, 4, 6)
    for pairs, old in ((first, None), (second, last([first], 5) if memory else None)):
        values = []
        for size in (2, 4, 6):
            cut = [EmbeddedPairs(p.image[:, :size], p.text[:, :size], p.image_ids) for p in (pairs, old) if p]
            values.append(loss(*cut[0][:3], memory=cut[1] if len(cut) > 1 else None).item())
        assert objective(pairs).item() == pytest.approx(sum(values) / 3, rel=1e-5)


def test_figures_are_those_of_the_whole_embedding():
    objective, loss = Objective(TripletLoss(), matryoshka=[2]), TripletLoss()
    (pairs,) = batches(1, 8, 6)
    objective(pairs)
    loss(*pairs[:3])
    assert objective.figures() == loss.figures()
    assert Objective(MeanDistance()).figures() == {}


@ALL
def test_by_label_all_items_of_one_label_go_together(name):
    objective, loss = Objective(LOSSES[name](), "label", cross_batch_memory=8), LOSSES[name]()
    objective.use_labels(np.array(["sea", "sky", "sea", "art", "sky"]))
    codes = torch.tensor([1, 2, 1, 0, 2])
    first, second = batches(2, 4, 5)
    torch.testing.assert_close(objective(first), loss(*first[:3], labels=codes[first.image_ids]))
    old = first._replace(labels=codes[first.image_ids])
    torch.testing.assert_close(objective(second), loss(*second[:3], codes[second.image_ids], old))


def test_a_loss_that_knows_nothing_of_labels_takes_them_for_ids():
    objective, loss = Objective(MeanDistance(), "label", matryoshka=[3]), MeanDistance()
    objective.use_labels(np.array([5, 5, 9, 9]))
    (pairs,) = batches(1, 6, 4)
    groups = pairs.image_ids // 2
    expected = (loss(pairs.image, pairs.text, groups) + loss(pairs.image[:, :3], pairs.text[:, :3], groups)) / 2
    torch.testing.assert_close(objective(pairs), expected)
    assert objective.state_dict() == {}  # labels belong to the data set


def test_labels_have_to_be_given():
    with pytest.raises(RuntimeError, match="give the labels of all images with use_labels"):
        Objective(TripletLoss(), "label")(batches(1, 4, 4)[0])


def test_every_step_draws_other_negatives_and_the_same_again_with_the_same_seed():
    pairs = batches(1, 12, 12)[0]
    drawn = []
    for seed, step in ((1, 0), (1, 0), (1, 1), (2, 0)):
        objective = Objective(TripletLoss(9.0, negatives="random"), seed=seed)
        objective.at_step(step, (0, step))
        drawn.append(objective(pairs).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Objective(MeanDistance(), cross_batch_memory=4, matryoshka=[0, 64, -1])
    assert caught.value.faults == (
        "matryoshka must list sizes of at least 1, found 0, -1.",
        "cross_batch_memory=4: MeanDistance compares the pairs of a batch alone (its forward takes no memory). Choose "
        "another loss, or cross_batch_memory=0.",
    )
    with pytest.raises(ConfigError, match="at least 0, found -1"):
        Objective(TripletLoss(), cross_batch_memory=-1)


def run(epochs: int, memory: int, start: str | None = None) -> tuple[DualEncoder, pl.Trainer]:
    """A training over three batches per epoch, from the beginning or from a checkpoint."""
    torch.manual_seed(0)
    towers = [Tower(6, MeanAggregator(6), partial(Projection, output_dim=4, num_layers=1)) for _ in range(2)]
    model = DualEncoder(*towers, InfoNCELoss(), partial(torch.optim.Adam, lr=0.1), cross_batch_memory=memory)
    model.validation_step = None
    mask = torch.ones(4, 1, dtype=torch.bool)
    loader = DataLoader(
        [
            PairBatch(*(FeatureBatch(side[:, None], mask, pairs.image_ids) for side in pairs[:2]))
            for pairs in batches(3, 4, 50)
        ],
        batch_size=None,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, enable_checkpointing=False, **quiet)
    trainer.fit(model, loader, ckpt_path=start, weights_only=True)
    return model, trainer


def test_a_resumed_run_with_a_memory_is_the_uninterrupted_one(tmp_path):
    _, first = run(1, memory=10)
    first.save_checkpoint(tmp_path / "one.ckpt")
    whole, _ = run(2, memory=10)
    resumed, _ = run(2, memory=10, start=str(tmp_path / "one.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    without = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(without.pop(MEMORY_KEY)) == {"image", "text", "image_ids"}
    torch.save(without, tmp_path / "forgot.ckpt")
    of_others = torch.load(tmp_path / "one.ckpt", weights_only=True) | {MEMORY_ITEMS_KEY: "of other photos"}
    torch.save(of_others, tmp_path / "others.ckpt")
    forgot, _ = run(2, memory=10, start=str(tmp_path / "forgot.ckpt"))
    assert not all(torch.equal(a, b) for a, b in zip(whole.parameters(), forgot.parameters(), strict=True))
    others, _ = run(2, memory=10, start=str(tmp_path / "others.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(forgot.parameters(), others.parameters(), strict=True))


def test_a_checkpoint_without_a_memory_says_nothing_of_one(tmp_path):
    _, trainer = run(1, memory=0)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert MEMORY_KEY not in torch.load(tmp_path / "one.ckpt", weights_only=True)


def test_unit_embeddings_stay_unit_at_every_size():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=1)
    text = image + 0.01 * torch.randn(6, 8, generator=generator)
    pairs = EmbeddedPairs(image, torch.nn.functional.normalize(text, dim=1), torch.arange(6))
    loss = ContrastiveLoss(1.4)
    cut = [torch.nn.functional.normalize(side[:, :3], dim=1) for side in (pairs.image, pairs.text)]
    expected = (loss(*cut, pairs.image_ids) + loss(pairs.image, pairs.text, pairs.image_ids)) / 2
    torch.testing.assert_close(Objective(loss, matryoshka=[3], normalize=True)(pairs), expected)
    assert not torch.isclose(Objective(loss, matryoshka=[3])(pairs), expected)


def test_what_is_no_number_spoils_one_batch_and_no_later_one():
    objective = Objective(TripletLoss(3.0), cross_batch_memory=8)
    broken, clean = batches(2, 4, 4)
    broken.image[1] = float("nan")
    assert objective(broken).isnan()
    assert objective(clean).isfinite()
    assert objective.memory is not None
    assert len(objective.memory.image_ids) == 7


def test_a_sum_takes_a_memory_where_one_of_its_terms_does():
    own = WeightedSum({"a": MeanDistance(), "b": MeanDistance()}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ConfigError, match=r"=4: WeightedSum compares.*\(none of its terms takes a memory\)"):
        Objective(own, cross_batch_memory=4)
    inner = WeightedSum({"t": TripletLoss()}, {"t": 1.0})
    Objective(WeightedSum({"a": MeanDistance(), "b": inner}, {"a": 1.0, "b": 1.0}), cross_batch_memory=4)
    with pytest.raises(ConfigError, match="none of its terms takes a memory"):
        Objective(WeightedSum({"a": own}, {"a": 1.0}), cross_batch_memory=4)


def test_a_batch_that_is_all_broken_leaves_an_empty_memory():
    objective, loss = Objective(InfoNCELoss(), cross_batch_memory=8), InfoNCELoss()
    broken, clean = batches(2, 4, 4)
    objective(broken._replace(text=torch.full((4, 6), float("inf"))))
    assert len(objective.memory.image_ids) == 0
    torch.testing.assert_close(objective(clean), loss(*clean[:3]))
