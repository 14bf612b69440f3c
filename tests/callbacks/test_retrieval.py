"""The validation hook in a real, tiny training."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from xmodal.aggregators.mean import MeanAggregator
from xmodal.callbacks.retrieval import RetrievalEvaluation, pair_loss
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError
from xmodal.features.datamodule import PairDataModule
from xmodal.losses.triplet import TripletLoss
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.projection import Projection
from xmodal.models.tower import Tower
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.index import FlatIndex, IVFPQIndex
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures


def tower() -> Tower:
    return Tower(5, MeanAggregator(5), partial(Projection, output_dim=4, num_layers=1), standardize=False)


def model(loss: nn.Module, lr: float = 0.0, **options: Any) -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(tower(), tower(), loss, partial(torch.optim.SGD, lr=lr), **options)


def datamodule(images: int = 8, captions: int = 3, batch_size: int = 4, **options: str) -> PairDataModule:
    random = np.random.default_rng(0)
    splits = ["train"] * images + ["val"] * images
    items = Items(
        "some",
        tuple(ImageItem(i, split, label="abc"[i % 3]) for i, split in enumerate(splits)),
        tuple(Caption(i, i // captions, f"caption {i}") for i in range(2 * images * captions)),
    )
    sets = [
        [random.normal(size=(random.integers(1, 4), 5)).astype(np.float32) for _ in range(count)]
        for count in (2 * images, 2 * images * captions)
    ]
    return PairDataModule(items, *(RaggedFeatures.from_sets(s) for s in sets), batch_size=batch_size, **options)


def trained(module, data, callback, epochs=2, **options):
    history = []

    class History(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            history.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[callback, History()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return history


@pytest.mark.parametrize("negatives", ["all", "random"])
def test_val_loss_of_an_unchanged_model_is_the_same_in_every_epoch(negatives):
    history = trained(model(TripletLoss(negatives=negatives)), datamodule(), RetrievalEvaluation(FlatIndex()), epochs=3)
    assert len({row["val/loss"] for row in history}) == 1
    assert history[0]["val/loss"] > 0


def test_validation_draws_nothing_from_the_global_generator():
    module, images, texts = model(TripletLoss(negatives="random")), torch.randn(4, 4), torch.randn(10, 4)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pair_loss(module, images, texts, torch.tensor([9, 3, 5, 7]), torch.tensor([3, 3, 9, 5, 7, 7, 9, 5, 3, 7]), 4)
    assert torch.equal(torch.rand(3), expected)


def test_val_loss_is_the_mean_over_pairs_in_the_drawn_batches():
    module = model(TripletLoss())
    images, texts = torch.randn(3, 4), torch.randn(7, 4)
    ids, of_text = [11, 4, 6], [4, 6, 11, 11, 4, 6, 6]
    torch.manual_seed(0)
    order = torch.randperm(7).tolist()
    total = 0.0
    for start in range(0, 7, 3):
        rows = order[start : start + 3]
        own = torch.stack([images[ids.index(of_text[row])] for row in rows])
        total += len(rows) * float(module.loss(own, texts[rows], torch.tensor([of_text[row] for row in rows])))
    assert pair_loss(module, images, texts, torch.tensor(ids), torch.tensor(of_text), 3) == pytest.approx(total / 7)


@pytest.mark.parametrize("ks", [[0], [True], [1, -2]])
def test_a_cutoff_that_is_no_positive_whole_number_is_refused(ks):
    with pytest.raises(ConfigError, match="whole numbers of at least 1, found"):
        RetrievalEvaluation(FlatIndex(), ks)


def test_captions_of_images_beyond_the_limit_are_left_out():
    callback, data = RetrievalEvaluation(FlatIndex()), datamodule(images=8, captions=3, batch_size=4)
    (row,) = trained(model(TripletLoss()), data, callback, epochs=1, limit_val_batches=1)
    found = callback.retrieved
    assert found.image_rows.tolist() == [8, 9, 10, 11]
    assert found.caption_rows.tolist() == [24, 25, 26, 27]  # one batch of captions: of images 8, 8, 8 and 9
    (row,) = trained(model(TripletLoss()), data, callback, epochs=1, limit_val_batches=2)
    assert callback.retrieved.image_rows.tolist() == list(range(8, 16))
    assert callback.retrieved.caption_rows.tolist() == list(range(24, 32))
    assert row["val/t2i_meanR"] >= 1


def test_captions_whose_images_are_not_in_the_gallery_take_no_part():
    callback, data = RetrievalEvaluation(FlatIndex()), datamodule(images=6, captions=1, batch_size=2)
    items = Items(data.items.name, data.items.images, tuple(reversed(data.items.captions)))
    data = PairDataModule(items, data.image_features, data.text_features.select(np.arange(12)[::-1]), batch_size=2)
    trained(model(TripletLoss()), data, callback, epochs=1, limit_val_batches=2)
    images, captions = callback.retrieved.image_rows.tolist(), callback.retrieved.caption_rows.tolist()
    assert images == [6, 7, 8, 9]
    assert [data.items.captions[row].image for row in captions] == [9, 8]


def test_found_items_are_the_nearest():
    callback, data = RetrievalEvaluation(FlatIndex()), datamodule()
    module = model(TripletLoss())
    trained(module, data, callback, epochs=1)
    found = callback.retrieved
    with torch.no_grad():
        image = module.embed_images(data.image_features.pad(found.image_rows, found.image_rows))
        text = module.embed_texts(data.text_features.pad(found.caption_rows, found.caption_rows))
    assert found.captions_of_images.tolist() == (image @ text.T).topk(5).indices.tolist()
    assert found.images_of_captions.tolist() == (text @ image.T).topk(5).indices.tolist()
    for query, row in enumerate(found.image_rows):
        own = data.items.caption_images[found.caption_rows] == row
        scores = image[query] @ text.T
        rank = 1 + int((scores[torch.tensor(~own)] >= scores[torch.tensor(own)].max()).sum())
        assert found.result.ranks["i2t"][query] == rank


def embeddings_of(module, data, found):
    with torch.no_grad():
        return (
            module.embed_images(data.image_features.pad(found.image_rows, found.image_rows)),
            module.embed_texts(data.text_features.pad(found.caption_rows, found.caption_rows)),
        )


def naive_map(queries, gallery, query_labels, gallery_labels, is_itself=False):
    """Mean over queries of the average precision over all items of the query's class."""
    precisions = []
    for q, label in enumerate(query_labels):
        order = sorted(range(len(gallery)), key=lambda g: -float(queries[q] @ gallery[g]))
        ranked = [gallery_labels[g] == label for g in order if not (is_itself and g == q)]
        places = [place + 1 for place, match in enumerate(ranked) if match]
        if places:
            precisions.append(sum((n + 1) / place for n, place in enumerate(places)) / len(places))
    return 100 * sum(precisions) / len(precisions)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("relevance", ["instance", "class"])
def test_figures_of_each_matryoshka_size_are_those_of_the_first_dimensions(similarity, relevance):
    callback, data = RetrievalEvaluation(FlatIndex(), ks=(2,)), datamodule(relevance=relevance)
    module = model(TripletLoss(), similarity=similarity, matryoshka=[2, 3])
    (row,) = trained(module, data, callback, epochs=1)
    image, text = embeddings_of(module, data, callback.retrieved)
    ids = callback.retrieved.image_rows
    own = data.items.caption_images[callback.retrieved.caption_rows]
    labels = {} if relevance == "instance" else {"image_labels": data.labels[ids], "text_labels": data.labels[own]}
    for size in (2, 3):
        first = [nn.functional.normalize(side[:, :size]) for side in (image, text)]  # as the whole embeddings are
        expected = evaluate_retrieval(*first, ids, own, similarity, (2,), **labels).metrics
        found = {name.removeprefix(f"val/dim{size}/"): row[name] for name in row if f"dim{size}/" in name}
        assert found == pytest.approx(expected, rel=1e-6)
    assert row["val/dim2/rsum"] != row["val/rsum"]
    assert not any("dim4" in name for name in row)


def test_training_by_label_is_validated_by_label():
    data, callback = datamodule(), RetrievalEvaluation(FlatIndex())
    module = model(TripletLoss(margin=2.0, siblings="positive"), relevance="label")
    module.objective.use_labels(data.items.labels)
    (row,) = trained(module, data, callback, epochs=1)
    image, text = embeddings_of(module, data, callback.retrieved)
    own = torch.from_numpy(data.items.caption_images[callback.retrieved.caption_rows])
    ids = torch.from_numpy(callback.retrieved.image_rows)
    _, codes = np.unique(data.items.labels, return_inverse=True)
    torch.manual_seed(0)
    losses = []
    for rows in torch.randperm(len(text)).split(4):
        own_images = torch.stack([image[ids == i][0] for i in own[rows]])
        losses.append(module.loss.eval()(own_images, text[rows], torch.from_numpy(codes)[own[rows]]).item())
    assert row["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("batches", [1.0, 2])
def test_by_class_all_items_of_one_label_are_matches(batches):
    callback, data = RetrievalEvaluation(FlatIndex()), datamodule(relevance="class")
    module = model(TripletLoss())
    (row,) = trained(module, data, callback, epochs=1, limit_val_batches=batches)
    found = callback.retrieved
    assert len(found.caption_rows) == (24 if batches == 1.0 else 8)
    image, text = embeddings_of(module, data, found)
    of_image = ["abc"[i % 3] for i in found.image_rows]
    of_text = ["abc"[data.items.captions[i].image % 3] for i in found.caption_rows]
    expected = {
        "i2t": naive_map(image, text, of_image, of_text),
        "t2i": naive_map(text, image, of_text, of_image),
        "i2i": naive_map(image, image, of_image, of_image, is_itself=True),
        "t2t": naive_map(text, text, of_text, of_text, is_itself=True),
    }
    assert {way: row[f"val/{way}_mAP"] for way in expected} == pytest.approx(expected, abs=1e-3)
    assert found.is_match(8, 11)
    assert not found.is_match(8, 9)


def test_by_instance_labels_count_for_nothing():
    callback = RetrievalEvaluation(FlatIndex())
    (row,) = trained(model(TripletLoss()), datamodule(), callback, epochs=1)
    assert not [name for name in row if name.startswith(("val/i2i", "val/t2t"))]
    assert callback.retrieved.is_match(8, 8)
    assert not callback.retrieved.is_match(8, 11)


def test_approximate_index_is_compared_with_the_exact_lists():
    index = IVFPQIndex(codes=2, bits=2)  # coarse enough to miss some
    callback, data = RetrievalEvaluation(index), datamodule()
    module = model(TripletLoss())
    (row,) = trained(module, data, callback, epochs=1)
    image, text = embeddings_of(module, data, callback.retrieved)
    for way, queries, gallery, lists in (
        ("i2t", image, text, callback.retrieved.captions_of_images),
        ("t2i", text, image, callback.retrieved.images_of_captions),
    ):
        exact = (queries @ gallery.T).topk(5).indices.tolist()
        found = sum(len(set(own) & set(best)) for own, best in zip(lists.tolist(), exact, strict=True))
        assert 0 < found < 5 * len(queries)
        assert row[f"val/{way}_index_recall@5"] == pytest.approx(100 * found / (5 * len(queries)))


def test_exact_index_has_no_recall_of_its_own():
    (row,) = trained(model(TripletLoss()), datamodule(), RetrievalEvaluation(FlatIndex()), epochs=1)
    assert not [name for name in row if "index_recall" in name]


def test_training_loss_is_the_loss_of_the_embeddings():
    module, data = model(TripletLoss()), datamodule()
    seen = []
    batch = next(iter(data.train_dataloader()))
    module.log = lambda name, value, **_: seen.append((name, value.item()))
    loss = module.training_step(batch, 0)
    assert isinstance(batch, PairBatch)
    assert isinstance(batch.text, FeatureBatch)
    expected = module.loss(module.embed_images(batch.image), module.embed_texts(batch.text), batch.image.image_ids)
    torch.testing.assert_close(loss, expected)
    assert ("train/loss", pytest.approx(expected.item())) in seen
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
