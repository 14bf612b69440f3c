import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal.data.items import Items
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.features.datamodule import PairDataModule, SetReader
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures

COUNTS = [2, 1, 3, 0, 2, 5, 1, 4]
SPLITS = ["train", "val", "train", "train", "test", "train", "val", "train"]


def _marked(lengths: list[int], dtype: str = "float32") -> RaggedFeatures:
    """Sets whose vectors say (their set, their place in it)."""
    return RaggedFeatures.from_sets(
        [np.array([[i, k] for k in range(n)]).reshape(n, 2) for i, n in enumerate(lengths)], dtype
    )


@pytest.fixture
def items(make_items) -> Items:
    return make_items(COUNTS, splits=SPLITS)


@pytest.fixture
def module(items: Items) -> PairDataModule:
    images = _marked([1 + i % 3 for i in range(len(COUNTS))])
    texts = _marked([k % 4 for k in range(sum(COUNTS))])
    return PairDataModule(items, images, texts, batch_size=4, seed=1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8) | st.integers(0, 3).map(lambda n: [n] * 5),
    data=st.data(),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_padding_equals_a_naive_loop(lengths: list[int], data: st.DataObject, dtype: str) -> None:
    features = _marked(lengths, dtype)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9))
    found = SetReader(features).batch(torch.tensor(rows), torch.tensor(rows))
    longest = max(1, *(lengths[row] for row in rows)) if len(rows) > 1 else max(1, lengths[rows[0]])
    assert found.x.shape == (len(rows), longest, 2)
    assert found.x.dtype == torch.float32
    for b, row in enumerate(rows):
        for k in range(longest):
            assert bool(found.mask[b, k]) == (k < lengths[row])
            assert found.x[b, k].tolist() == ([float(row), float(k)] if k < lengths[row] else [0.0, 0.0])
    padded = features.pad(np.array(rows), np.array(rows))
    assert all(torch.equal(one, other) for one, other in zip(found[:3], padded[:3], strict=True))
    assert not found.pooled


def _captions_of(items: Items, row: int) -> list[int]:
    return [k for k, caption in enumerate(items.captions) if caption.image == row]


def _sets(batch: FeatureBatch) -> list[list[list[float]]]:
    return [x[mask].tolist() for x, mask in zip(batch.x, batch.mask, strict=True)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_training_caption_comes_once_with_its_image(
    items: Items, module: PairDataModule, num_workers: int
) -> None:
    module.num_workers = num_workers
    loader = module.train_dataloader()
    batches: list[PairBatch] = list(loader)
    assert [len(batch.image.x) for batch in batches] == [4, 4, 4, 2]
    images = [s for batch in batches for s in _sets(batch.image)]
    texts = [s for batch in batches for s in _sets(batch.text)]
    ids = [int(i) for batch in batches for i in batch.image.image_ids]
    assert ids == [int(i) for batch in batches for i in batch.text.image_ids]
    for batch in batches:
        assert batch.image.x.dtype == batch.text.x.dtype == torch.float32
    seen = []
    for image, text, row in zip(images, texts, ids, strict=True):
        assert image == module.image_features[row].tolist()
        owners = [k for k in _captions_of(items, row) if module.text_features[k].tolist() == text]
        assert owners
        seen.append((row, tuple(map(tuple, text))))
    wanted = [
        (int(items.caption_images[k]), tuple(map(tuple, module.text_features[k].tolist())))
        for k in items.caption_rows("train").tolist()
    ]
    assert sorted(seen) == sorted(wanted)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("role", "images", "captions"), [("val", [1, 6], [1, 1]), ("test", [4], [2])])
def test_a_gallery_holds_each_image_and_each_caption_once_in_order(
    items: Items, module: PairDataModule, role: str, images: list[int], captions: list[int], num_workers: int
) -> None:
    module.batch_size, module.num_workers = 1, num_workers
    image_loader, text_loader = getattr(module, f"{role}_dataloader")()
    found = [(int(i), s) for batch in image_loader for i, s in zip(batch.image_ids, _sets(batch), strict=True)]
    assert found == [(row, module.image_features[row].tolist()) for row in images]
    texts = [(int(i), s) for batch in text_loader for i, s in zip(batch.image_ids, _sets(batch), strict=True)]
    rows = [k for row in images for k in _captions_of(items, row)]
    assert texts == [(int(items.caption_images[k]), module.text_features[k].tolist()) for k in rows]
    assert len(texts) == sum(captions)


def test_the_last_smaller_batch_is_kept_in_galleries(module: PairDataModule) -> None:
    module.batch_size = 3
    images, texts = module.val_dataloader()
    assert [len(batch.x) for batch in images] == [2]
    assert [len(batch.x) for batch in texts] == [2]


def test_a_split_smaller_than_a_batch_trains(module: PairDataModule) -> None:
    module.batch_size = 1000
    [batch] = module.train_dataloader()
    assert len(batch.image.x) == 14


def _order(loader) -> list[int]:
    return [int(v) for batch in loader for v in batch.text.x[:, 0, 0]]


def test_the_order_depends_on_seed_and_epoch_alone(items: Items) -> None:
    features = _marked([1] * len(COUNTS)), _marked([1] * sum(COUNTS))
    loader = PairDataModule(items, *features, batch_size=4, seed=3).train_dataloader()
    first, second = _order(loader), _order(loader)
    assert first != second
    assert sorted(first) == sorted(second) == items.caption_rows("train").tolist()
    torch.manual_seed(999)
    again = PairDataModule(items, *features, batch_size=4, seed=3).train_dataloader()
    again.sampler.set_epoch(1)
    assert _order(again) == second
    assert _order(PairDataModule(items, *features, batch_size=4, seed=4).train_dataloader()) != first


class Recorder(pl.LightningModule):
    """Trains one number and remembers which captions came in which epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.orders: dict[int, list[int]] = {}
        self.galleries: list[tuple[int, int]] = []

    def training_step(self, batch: PairBatch) -> torch.Tensor:
        order = self.orders.setdefault(self.current_epoch, [])
        order += batch.text.x[:, 0, 0].int().tolist()
        return (self.weight * batch.image.x).sum()

    def validation_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int) -> None:
        self.galleries.append((dataloader_idx, len(batch.x)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _fit(module: PairDataModule, folder, epochs: int, ckpt_path=None) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return recorder


def test_lightning_shuffles_by_epoch_and_a_resumed_run_goes_on_in_the_same_order(items: Items, tmp_path) -> None:
    def module() -> PairDataModule:
        return PairDataModule(items, _marked([1] * len(COUNTS)), _marked([1] * sum(COUNTS)), batch_size=4, seed=5)

    whole = _fit(module(), tmp_path, 3)
    assert len({tuple(order) for order in whole.orders.values()}) == 3
    assert whole.galleries == [(0, 2), (1, 2)] * 3
    _fit(module(), tmp_path, 2)
    resumed = _fit(module(), tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.orders == {2: whole.orders[2]}


@pytest.mark.parametrize("options", [{"group_by_length": True}, {"captions_together": 2}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_composed_batches_train_on_every_caption_and_a_resumed_run_goes_on(
    items: Items, tmp_path, options: dict, num_workers: int
) -> None:
    lengths = [1 + k % 4 for k in range(sum(COUNTS))]

    def module() -> PairDataModule:
        images, texts = _marked([1] * len(COUNTS)), _marked(lengths)
        return PairDataModule(items, images, texts, batch_size=4, num_workers=num_workers, seed=5, **options)

    for batch in module().train_dataloader():
        captions = batch.text.x[:, 0, 0].long().tolist()
        assert batch.text.mask.sum(dim=1).tolist() == [lengths[k] for k in captions]
        assert batch.image.image_ids.tolist() == items.caption_images[captions].tolist()
        assert batch.image.x[:, 0, 0].tolist() == batch.image.image_ids.tolist()
    whole = _fit(module(), tmp_path, 3)
    assert len({tuple(order) for order in whole.orders.values()}) == 3
    assert all(sorted(order) == items.caption_rows("train").tolist() for order in whole.orders.values())
    _fit(module(), tmp_path, 2)
    assert _fit(module(), tmp_path, 3, ckpt_path=tmp_path / "last.ckpt").orders == {2: whole.orders[2]}


def test_batches_by_length_have_little_padding_and_those_by_image_siblings(items: Items) -> None:
    images, texts = _marked([1] * len(COUNTS)), _marked([1 + k % 4 for k in range(sum(COUNTS))])
    by_length = PairDataModule(items, images, texts, batch_size=4, group_by_length=True).train_dataloader()
    found = [sorted(batch.text.mask.sum(dim=1).tolist()) for batch in by_length]
    lengths = sorted(1 + int(k) % 4 for k in items.caption_rows("train"))
    assert sorted(found) == [lengths[start : start + 4] for start in range(0, 14, 4)]
    assert len(by_length) == 4
    together = PairDataModule(items, images, texts, batch_size=4, captions_together=2).train_dataloader()
    found = [sorted(Counter(batch.image.image_ids.tolist()).values()) for batch in together]
    assert sorted(found) == [[1, 1], [2, 2], [2, 2], [2, 2]]  # of 2, 3, 5 and 4 captions
    assert len(together) == 4


def test_a_data_set_without_validation_trains(make_items, tmp_path) -> None:
    items = make_items([1, 2, 1])
    module = PairDataModule(items, _marked([1] * 3), _marked([1] * 4), batch_size=2)
    assert module.val_dataloader() == []
    assert module.test_dataloader() == []
    assert len(_fit(module, tmp_path, 1).orders[0]) == 4


def test_no_training_images(make_items) -> None:
    items = make_items([1, 2], splits=["val", "val"])
    module = PairDataModule(items, _marked([1] * 2), _marked([1] * 3))
    with pytest.raises(DataError, match="train"):
        module.train_dataloader()


def test_captions_without_any_word(make_items) -> None:
    module = PairDataModule(make_items([1, 1]), _marked([1, 1]), _marked([0, 0]), batch_size=2)
    [batch] = module.train_dataloader()
    assert batch.text.x.shape == (2, 1, 2)
    assert not batch.text.mask.any()


def test_wrong_counts_and_parameters(items: Items) -> None:
    images, texts = _marked([1] * len(COUNTS)), _marked([1] * sum(COUNTS))
    with pytest.raises(FeatureError, match="There are 7 sets of image features for 8 images"):
        PairDataModule(items, _marked([1] * 7), texts)
    with pytest.raises(FeatureError, match="There are 19 sets of text features for 18 captions"):
        PairDataModule(items, images, _marked([1] * 19))
    with pytest.raises(ConfigError, match=r"data.batch_size must be at least 1, found 0"):
        PairDataModule(items, images, texts, batch_size=0)
    with pytest.raises(ConfigError, match=r"data.num_workers must be 0 or more, found -1"):
        PairDataModule(items, images, texts, num_workers=-1)
    with pytest.raises(ConfigError, match=r"data\.relevance must be instance or class, found 'label'"):
        PairDataModule(items, images, texts, relevance="label")
    with pytest.raises(ConfigError, match=r"captions_together must be from 1 to data.batch_size=4, found 5"):
        PairDataModule(items, images, texts, batch_size=4, captions_together=5)


def test_by_class_there_is_a_label_for_every_image(items: Items) -> None:
    labels = [f"kind {row % 3}" for row in range(len(COUNTS))]
    images = tuple(replace(image, label=label) for image, label in zip(items.images, labels, strict=True))
    labelled = replace(items, images=images)
    features = _marked([1] * 8), _marked([1] * 18)
    assert PairDataModule(labelled, *features, relevance="class").labels.tolist() == labels
    assert PairDataModule(labelled, *features).labels is None


def test_relevance_by_class_without_labels_is_an_error(items: Items) -> None:
    images = tuple(replace(image, label=None if row in (2, 5) else row) for row, image in enumerate(items.images))
    with pytest.raises(DataError, match=r"2 of the 8 images of \w+ have none, the first of them .*relevance=instance"):
        PairDataModule(replace(items, images=images), _marked([1] * 8), _marked([1] * 18), relevance="class")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8) | st.integers(0, 3).map(lambda n: [n] * 5),
    kind=st.sampled_from(["uint8", "uint16", "uint32", "int64"]),
    device=st.sampled_from([None, "cpu"]),
    data=st.data(),
)
def test_codes_give_the_batches_of_the_vectors_they_stand_for(
    lengths: list[int], kind: str, device: str | None, data: st.DataObject
) -> None:
    plain = _marked(lengths, "float16")
    random = np.random.default_rng(len(lengths))
    table = random.permutation(np.unique(plain.values, axis=0)) if len(plain.values) else np.zeros((1, 2), np.float16)
    codes = np.array([np.flatnonzero((table == vector).all(axis=1))[0] for vector in plain.values], dtype=kind)
    coded = RaggedFeatures(table, plain.offsets, codes)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    options = {} if device is None else {"device": torch.device(device)}
    found = SetReader(coded, **options).batch(rows, rows)
    expected = plain.pad(rows.numpy(), rows.numpy())
    assert all(torch.equal(one, other) for one, other in zip(found[:3], expected[:3], strict=True))


def test_pooled_sides_come_as_vectors_and_say_so(items: Items, module: PairDataModule) -> None:
    pooled = RaggedFeatures(np.arange(36, dtype=np.float32).reshape(18, 2), np.arange(19))
    raw = weakref.ref(module.text_features)
    module.train_dataloader()
    module.use_pooled(None, pooled)
    assert raw() is None  # nothing keeps its memory
    assert module.text_features is pooled
    for batch in module.train_dataloader():
        assert (batch.image.pooled, batch.text.pooled) == (False, True)
        assert batch.text.x.shape == (len(batch.image.x), 1, 2)
        captions = batch.text.x[:, 0, 0].long() // 2
        assert items.caption_images[captions.numpy()].tolist() == batch.image.image_ids.tolist()
    _, texts = module.val_dataloader()
    assert all(batch.pooled for batch in texts)
    assert module.transfer_batch_to_device(next(iter(texts)), torch.device("cpu"), 0).pooled
    with pytest.raises(FeatureError, match="There are 18 sets of image features for 8"):
        module.use_pooled(pooled, None)
    with pytest.raises(FeatureError, match="more or less than one vector"):
        module.use_pooled(None, _marked([2] * 18))


class Drawn:
    """Sets that are made when they are asked for, those for training with 100 added."""

    def __init__(self, features: RaggedFeatures, added: float = 0.0) -> None:
        self.features, self.added = features, added
        self.feature_dim, self.lengths = features.feature_dim, features.lengths

    def __len__(self) -> int:
        return len(self.features)

    def for_training(self) -> "Drawn":
        return Drawn(self.features, 100.0)

    def select(self, rows: np.ndarray) -> RaggedFeatures:
        chosen = self.features.select(rows)
        return RaggedFeatures(chosen.values + np.float32(self.added), chosen.offsets)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_source_of_any_kind_is_asked_batch_by_batch(items: Items, num_workers: int) -> None:
    images, texts = _marked([1 + i % 3 for i in range(8)]), _marked([k % 4 for k in range(18)])
    drawn = PairDataModule(items, Drawn(images), texts, batch_size=4, seed=1, num_workers=num_workers)
    held = PairDataModule(items, images, texts, batch_size=4, seed=1)
    for found, expected in zip(drawn.train_dataloader(), held.train_dataloader(), strict=True):
        assert torch.equal(found.text.x, expected.text.x)
        assert torch.equal(found.image.mask, expected.image.mask)
        assert torch.equal(found.image.x[found.image.mask], expected.image.x[expected.image.mask] + 100)
        assert not found.image.x[~found.image.mask].any()
    for found, expected in zip(drawn.val_dataloader()[0], held.val_dataloader()[0], strict=True):
        assert torch.equal(found.x, expected.x)


@pytest.mark.parametrize("memory_gb", [0.0, -2.0, float("nan")])
def test_a_budget_out_of_range(items: Items, memory_gb: float) -> None:
    features = _marked([1] * 8), _marked([1] * 18)
    with pytest.raises(ConfigError, match=rf"features.memory_gb must be a number above 0, found {memory_gb}"):
        PairDataModule(items, *features, memory_gb=memory_gb)
