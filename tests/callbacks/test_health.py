"""Runs that collapse, overfit or learn nothing are provoked for real, and told; healthy ones are left in peace."""

import logging
import math
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from xmodal.aggregators.mean import MeanAggregator
from xmodal.callbacks.diagnosis import COLLAPSED, FLAT, NOT_LEARNING, OVERFITTING, Limits, Reading, diagnose
from xmodal.callbacks.health import TrainingHealth, active_shares, geometry, random_order
from xmodal.callbacks.retrieval import EmbeddedSplit, RetrievalEvaluation
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, XmodalError
from xmodal.features.datamodule import PairDataModule
from xmodal.losses.triplet import TripletLoss
from xmodal.losses.within import WithinModality
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.retrieval.geometry import alignment, effective_rank, mean_similarity, uniformity
from xmodal.retrieval.index import FlatIndex
from xmodal.types import RaggedFeatures

WIDTH = 12
LIMITS = Limits(similarity=0.98, effective_rank=3.0, chance=0.8, patience=3, drop=0.1)


def tower(normalize: bool = True, dropout: float = 0.0, layers: int = 2) -> Tower:
    projection = partial(Projection, output_dim=16, num_layers=layers, hidden_dim=64)
    return Tower(
        WIDTH, MeanAggregator(WIDTH), projection, standardize=False, normalize=normalize, feature_dropout=dropout
    )


def model(loss, lr=1e-3, **options) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(tower(**options), tower(**options), loss, partial(torch.optim.Adam, lr=lr))


def datamodule(train: int = 40, val: int = 30, related: bool = True, noise: float = 0.3) -> PairDataModule:
    """Two captions per image; both sides are noisy views of a latent vector, unless they have nothing in common."""
    random = np.random.default_rng(0)
    count = train + val
    latent, turn = random.normal(size=(count, WIDTH)), random.normal(size=(WIDTH, WIDTH))
    of_texts = latent.repeat(2, axis=0) @ turn if related else random.normal(size=(2 * count, WIDTH))
    images, texts = (side + noise * random.normal(size=side.shape) for side in (latent, of_texts))
    items = Items(
        "views",
        tuple(ImageItem(i, "train" if i < train else "val", label="abc"[i % 3]) for i in range(count)),
        tuple(Caption(i, i // 2, f"caption {i}") for i in range(2 * count)),
    )
    sides = (RaggedFeatures.from_sets([row[None].astype(np.float32) for row in side]) for side in (images, texts))
    return PairDataModule(items, *sides, batch_size=20)


class Rows(pl.Callback):
    """The figures at the end of each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(module, data, health, epochs=8, more=(), **options):
    """The figures of each epoch, the trainer, and whatever was warned of."""
    rows = Rows()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[RetrievalEvaluation(FlatIndex()), health, *more, rows],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return rows.rows, trainer


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "xmodal.callbacks.health")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "xmodal.callbacks.health"]


def bare_triplet(**options):
    """Hardest negatives, euclidean, nothing to hold the lengths: the classic way into one point."""
    return TripletLoss(margin=1.0, distance="euclidean", negatives="hardest", **options)


def test_a_healthy_run_has_no_line(told):
    rows, _ = trained(model(TripletLoss(), lr=3e-3), datamodule(), TrainingHealth(patience=3), epochs=12)
    assert told() == []
    assert rows[-1]["val/t2i_meanR"] < 5
    assert rows[-1]["val/rsum"] > 2 * rows[0]["val/rsum"]


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapse_is_told_once_and_stops_training_where_asked(told, stop):
    module = model(bare_triplet(), lr=0.3, normalize=False, layers=3)
    rows, trainer = trained(module, datamodule(), TrainingHealth(stop=stop), epochs=8)
    last = rows[-1]
    assert last["val/t2i_meanR"] > 0.8 * 15.5
    assert max(last["val/image_similarity"], last["val/text_similarity"]) > 0.98
    (line,) = told()
    epoch = int(line.removeprefix("COLLAPSED in epoch ").partition(":")[0])
    assert 1 <= epoch < 5
    assert f"captions: mean cosine similarity {rows[epoch]['val/text_similarity']:.3f}, effective rank " in line
    assert f"rank {rows[epoch]['val/t2i_meanR']:.1f} of 30 on average, where random order gives 15.5" in line
    for advice in (
        "model.image_tower.normalize=true model.text_tower.normalize=true",
        "loss.warmup_steps=200 (now 0)",
        "loss.negatives=semihard loss.warmup_steps=0;",
        "optimizer.lr=0.03 (now 0.3)",
    ):
        assert advice in line
    assert ("callbacks.health.stop=true" in line) == stop
    assert trainer.current_epoch == (epoch + 1 if stop else 8)


def test_overfitting_is_told(told):
    module, data = model(TripletLoss(), lr=1e-2), datamodule(train=20, val=60, noise=0.2)
    rows, _ = trained(module, data, TrainingHealth(patience=3, stop=True), epochs=60)
    sums, losses = ([row[name] for row in rows] for name in ("val/rsum", "train/loss"))
    (line,) = told()
    best, last = int(np.argmax(sums)), len(rows) - 1
    assert max(sums[-3:]) < 0.9 * sums[best]
    assert line.startswith(f"OVERFITTING in epoch {last}: val/rsum was {sums[best]:.1f} in epoch {best} and is ")
    assert f"{sums[-1]:.1f} now, while the training loss fell from {losses[best]:.4g} to {losses[-1]:.4g}" in line
    assert "Try: callbacks=early_stopping; model.image_tower.feature_dropout=0.2 (now 0)" in line


def test_the_loss_of_accumulated_batches_is_not_divided():
    health = TrainingHealth()
    rows, _ = trained(model(TripletLoss()), datamodule(), health, epochs=1, accumulate_grad_batches=2)
    [reading] = health.state_dict()["readings"]
    assert reading["train_loss"] == pytest.approx(rows[0]["train/loss"], rel=1e-5)


def test_embeddings_of_labels_have_room_for_few_directions(told):
    """Three labels learned perfectly are three points: two directions, and nothing wrong."""
    module, data, health = model(TripletLoss()), datamodule(), TrainingHealth(patience=3)
    module.objective.relevance = "label"
    module.objective.use_labels(data.items.labels)
    trained(module, data, health, epochs=1)
    assert health.state_dict()["readings"][0]["room"] == {"image": 2, "text": 2}


def test_what_is_on_already_is_not_advised(told):
    module, data = model(TripletLoss(), lr=1e-2, dropout=0.5), datamodule(train=20, val=60, noise=0.2)
    stopping = EarlyStopping("val/rsum", mode="max", patience=1000)
    trained(module, data, TrainingHealth(patience=2, drop=0.0, stop=True), epochs=60, more=[stopping])
    (line,) = [line for line in told() if "OVERFITTING" in line]
    assert "Try: optimizer.lr=0.0033 (now 0.01)." in line


def test_pairs_that_have_nothing_in_common_are_not_learned(told):
    trained(model(TripletLoss()), datamodule(related=False, val=60), TrainingHealth(patience=3), epochs=6)
    (line,) = told()
    assert line.startswith("NOT LEARNING in epoch 2: after 3 validations, a caption finds its image at rank ")
    assert "do photos and captions belong together" in line
    assert "semihard" not in line
    assert "normalize" not in line


@pytest.mark.parametrize("stop", [False, True])
def test_a_loss_that_is_no_number_is_told(told, stop):
    data = datamodule()

    class Poison(pl.Callback):
        """Makes the weights infinite in the second epoch, as a gradient that overflows does."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.current_epoch == 1:
                with torch.no_grad():
                    next(pl_module.parameters()).mul_(math.inf)

    module, health = model(TripletLoss()), TrainingHealth(stop=stop)
    if stop:
        rows, trainer = trained(module, data, health, more=[Poison()])
        assert trainer.current_epoch == 2
        assert len(rows) == 2
    else:
        with pytest.raises(Exception, match="must be finite numbers"):
            trained(module, data, health, more=[Poison()])
    (line,) = told()
    assert line.startswith("DIVERGED in epoch 1: the loss is nan after step 8, and weights of the model hold NaN")
    assert "optimizer.lr=0.0001 (now 0.001); scheduler=warmup_cosine; trainer.gradient_clip_val=2.0" in line


def test_figures_are_those_of_the_embeddings():
    module, data = model(TripletLoss()), datamodule(val=30)
    ((row, *_), _) = trained(module, data, TrainingHealth(), epochs=1)
    module.eval()
    with torch.no_grad():
        loaders = zip((module.embed_images, module.embed_texts), data.val_dataloader(), strict=True)
        image, text = (torch.cat([embed(batch) for batch in loader]) for embed, loader in loaders)
    assert row["val/alignment"] == pytest.approx(alignment(image, text, torch.arange(60) // 2), abs=1e-5)
    for side, embeddings in (("image", image), ("text", text)):
        assert row[f"val/{side}_uniformity"] == pytest.approx(uniformity(embeddings), abs=1e-5)
        assert row[f"val/{side}_similarity"] == pytest.approx(mean_similarity(embeddings), abs=1e-5)
        assert row[f"val/{side}_effective_rank"] == pytest.approx(effective_rank(embeddings), abs=1e-4)
    assert 0 < row["val/active_triplets"] <= 1


def test_embeddings_are_let_go_of_after_the_validation():
    retrieval = RetrievalEvaluation(FlatIndex())
    seen = []

    class Look(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module) -> None:
            seen.append(retrieval.gathered)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[retrieval, TrainingHealth(), Look()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model(TripletLoss()), datamodule=datamodule())
    assert [split is None for split in seen] == [True, False]  # nothing in the sanity check
    assert retrieval.gathered is None


def test_it_stands_behind_the_retrieval():
    data, module = datamodule(), model(TripletLoss())
    trainer = pl.Trainer(logger=False, callbacks=[TrainingHealth(), RetrievalEvaluation(FlatIndex())])
    with pytest.raises(ConfigError, match=r"callbacks.health reads the embeddings that callbacks.retrieval gathers"):
        trainer.fit(module, datamodule=data)


def split_of(images: int, captions: list[int]) -> EmbeddedSplit:
    """Images in any order; caption k belongs to the image ``captions[k]``."""
    ids = torch.randperm(images, generator=torch.Generator().manual_seed(0)) + 7
    return EmbeddedSplit(torch.randn(images, 5), torch.randn(len(captions), 5), ids, torch.tensor(captions) + 7)


def test_the_image_of_a_caption():
    split = split_of(6, [5, 0, 0, 3])
    assert split.image_ids[split.image_of_text].tolist() == split.text_image_ids.tolist()
    expected = alignment(split.image, split.text, split.image_of_text)
    assert geometry(split, 100)["alignment"] == expected


@pytest.mark.parametrize("way", ["t2i", "i2i", "t2t"])
def test_chance_is_the_mean_over_all_orders(way):
    captions = [0, 1, 2, 3, 4, 4]
    labels = np.array(["?"] * 7 + ["a", "b", "a", "a", "c"])
    queries, gallery = ({"t": captions, "i": list(range(5))}[side] for side in (way[0], way[2]))
    for given in (None, labels) if way != "i2i" else (labels,):
        names = list(range(5)) if given is None else given[7:].tolist()
        random, ranks = np.random.default_rng(0), []
        for _ in range(3000):
            order = random.permutation(len(gallery)).tolist()
            found = []
            for q, image in enumerate(queries):
                seen = [g for g in order if way == "t2i" or g != q]
                found += [place for place, g in enumerate(seen, 1) if names[gallery[g]] == names[image]][:1]
            ranks.append(np.mean(found))
        chance, size = random_order(split_of(5, captions), given, way)
        assert chance == pytest.approx(np.mean(ranks), rel=0.03)
        assert size == len(seen)


def test_active_triplets_are_counted_over_batches_of_pairs():
    split, module = split_of(8, [0, 1, 2, 3, 4, 5, 6, 7] * 2), model(TripletLoss(margin=0.1, anchor="image"))
    torch.manual_seed(0)
    rows = torch.randperm(16)
    unit = [torch.nn.functional.normalize(side, dim=1) for side in (split.image, split.text)]
    owner = {int(image_id): row for row, image_id in enumerate(split.image_ids)}
    shares = []
    for chunk in rows.split(8):
        hinges = []
        for a in chunk.tolist():
            own = int(split.text_image_ids[a])
            others = [n for n in chunk.tolist() if int(split.text_image_ids[n]) != own]
            anchor = unit[0][owner[own]]
            hinges += [0.1 - float(anchor @ unit[1][a]) + float(anchor @ unit[1][n]) > 0 for n in others]
        shares.append(np.mean(hinges))
    assert active_shares(module, split, 100, 8) == {"active_triplets": pytest.approx(np.mean(shares))}


def test_losses_that_count_nothing_active_log_nothing():
    class Plain(torch.nn.Module):
        def forward(self, image, text, image_ids):
            return (image - text).square().mean()

    assert active_shares(model(Plain()), split_of(4, [0, 1, 2, 3]), 100, 4) == {}


def reading(epoch=0, **figures) -> Reading:
    plain = {
        "train_loss": 1.0,
        "val_loss": 1.0,
        "monitored": 100.0,
        "way": "t2i",
        "rank": 10.0,
        "chance": 50.0,
        "gallery": 99,
        "similarity": {"image": 0.2, "text": 0.2},
        "effective_rank": {"image": 40.0, "text": 40.0},
        "room": {"image": 64, "text": 64},
    }
    return Reading(epoch, **{**plain, **figures})


POINT = {"rank": 49.0, "similarity": {"image": 0.99, "text": 0.3}}
LINE = {"rank": 49.0, "effective_rank": {"image": 40.0, "text": 1.5}}
SIGNS = {
    "healthy": ([{}] * 9, None),
    "no validation": ([], None),
    "one point": ([POINT] * 2, COLLAPSED),
    "one point at first": ([POINT, {}], None),
    "one point for once": ([POINT], None),
    "nearly one point, and yet told apart": ([{**POINT, "rank": 20.0}] * 9, None),
    "on a line at chance": ([LINE] * 2, COLLAPSED),
    "on a line": ([{**LINE, "rank": 20.0}] * 3, FLAT),
    "zero vectors": ([{"rank": 99.0, "similarity": {"image": 1.0, "text": 0.0}}] * 2, COLLAPSED),
    "on a line, for want of room": ([{**LINE, "room": {"image": 98, "text": 2}}] * 2, None),
    "one point among very few": ([{**POINT, "gallery": 9}] * 9, None),
    "at chance": ([{"rank": 45.0}] * 3, NOT_LEARNING),
    "at chance for long, then better": ([{"rank": 45.0}] * 2 + [{"rank": 39.0}], None),
    "past its best": (
        [{"monitored": 200.0, "train_loss": 0.9}] + [{"monitored": 170.0, "train_loss": 0.5}] * 3,
        OVERFITTING,
    ),
    "past its best for a short time": ([{"monitored": 200.0}] + [{"monitored": 170.0, "train_loss": 0.5}] * 2, None),
    "worse all over": ([{"monitored": 200.0}] + [{"monitored": 170.0, "train_loss": 1.5}] * 3, None),
    "past its best by little": ([{"monitored": 200.0}] + [{"monitored": 181.0, "train_loss": 0.5}] * 3, None),
}


@pytest.mark.parametrize(("figures", "kind"), SIGNS.values(), ids=SIGNS.keys())
def test_signs(figures, kind):
    readings = [reading(epoch, **row) for epoch, row in enumerate(figures)]
    finding = diagnose(readings, LIMITS)
    assert (finding and finding.kind) == kind


def test_a_search_within_a_side_is_judged_by_that_side(told):
    """Photos by photos of their label: captions, which are not trained, stay at chance and count for nothing."""
    data, module = datamodule(val=60), model(WithinModality(TripletLoss(), "image"), lr=3e-3)
    data.relevance, module.objective.relevance = "class", "label"
    module.objective.use_labels(data.items.labels)
    health = TrainingHealth("val/i2i_mAP", patience=2)
    rows, _ = trained(module, data, health, epochs=4)
    reading = health._readings[-1]
    assert (reading.way, reading.gallery, set(reading.similarity)) == ("i2i", 59, {"image"})
    assert reading.rank == rows[-1]["val/i2i_meanR"]
    (line,) = told()  # the labels go round, whatever is in a photo
    assert line.startswith("NOT LEARNING in epoch 1: after 2 validations, an image finds one of its label at rank ")


@pytest.mark.parametrize("monitor", ["val/i2i_mAP", "val/t2i_R7"])
def test_a_monitored_figure_that_is_not_there_is_named_with_those_that_are(monitor):
    """Without labels, no search is within a side."""
    with pytest.raises(
        XmodalError, match=rf"callbacks\.health\.monitor={monitor}: this .* gave no {monitor}"
    ) as raised:
        trained(model(TripletLoss()), datamodule(), TrainingHealth(monitor), epochs=1)
    assert "val/t2i_mAP" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_similarity": 1.5}, r"max_similarity must lie between 0 and 1, found 1\.5"),
        ({"min_effective_rank": 0.5}, r"min_effective_rank must be at least 1, found 0\.5"),
        ({"near_chance": 0.0}, r"near_chance must lie in \(0, 1\], found 0\.0"),
        ({"patience": 0}, r"patience must be at least 1, found 0"),
        ({"drop": 1.0}, r"drop must lie in \[0, 1\), found 1\.0"),
        ({"sample_size": 1}, r"sample_size must be at least 2, found 1"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainingHealth(**options)


def test_a_resumed_run_goes_on_from_what_was_read(told):
    readings = [reading(epoch) for epoch in range(3)]
    first, second = TrainingHealth(), TrainingHealth()
    first._readings, first._told = readings, {FLAT}
    second.load_state_dict(first.state_dict())
    assert (second._readings, second._told) == (readings, {FLAT})
