"""Encoders whose last layers are trained: the same as without cached features, kept whole by the checkpoint."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.embedded_run import embed_run
from xmodal.experiment.evaluation import evaluate
from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.features.datamodule import EpochShuffle
from xmodal.features.live import LiveImages
from xmodal.features.store import FeatureFile
from xmodal.models import checkpoint
from xmodal.models.build import optimizer_of
from xmodal.tokens import tokenize

BERT = ("text_encoder=bert", *(f"text_encoder.{line}" for line in ("hidden_size=16", "num_layers=2", "num_heads=2")))
# photos of 160 × 160 pixels for a network of a few thousand parameters
TINY_RESNET = ("image_encoder=timm", "image_encoder.model=test_resnet.r160_in1k", "image_encoder.weights=null")
# three regions of a photo, however unsure of them random weights are
SMALL = ("min_size=64", "max_size=64", "num_regions=3", "score_threshold=0.0")
DETECTOR = ("image_encoder=frcnn", *(f"image_encoder.{line}" for line in SMALL))
FEW = ("data.train_size=6", "data.val_size=4", "data.test_size=4", "data.batch_size=16")
EXACT = (
    "features.dtype=float32",
    "features.precision=float32",
    "features.pool_once=false",  # the loop pools in each step
    "model.image_tower.feature_dropout=0.0",
    "trainer.max_epochs=2",
    "scheduler=none",
    "optimizer=sgd",  # Adam would make of a gradient that is zero but for rounding a step of full size
    "optimizer.lr=0.05",
    "optimizer.tail_lr_factor=0.5",
)


def without_drop_out(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


class WholeBert(nn.Module):
    """BERT from the captions' words to [CLS], in every step; its last N blocks learn."""

    def __init__(self, encoder, layers: int) -> None:
        super().__init__()
        self.network, self.tokenizer = copy.deepcopy(encoder.network).eval(), encoder.tokenizer
        self.network.requires_grad_(False)
        self.trained = self.network.encoder.layer[len(self.network.encoder.layer) - layers :].requires_grad_(True)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        inputs = self.tokenizer(list(captions), padding="longest", return_tensors="pt")
        first = self.network(**inputs).last_hidden_state[:, :1]
        return first, torch.ones(len(captions), 1, dtype=torch.bool)

    def counterpart(self, tower) -> list[tuple[str, Tensor, Tensor]]:
        other = dict(tower.tail.blocks.named_parameters())
        return [(name, value, other[name]) for name, value in self.trained.named_parameters()]


class WholeTable(nn.Module):
    """A vector per word, looked up by its spelling; all of them learn."""

    def __init__(self, encoder, layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.rows: dict[str, int] = {}
        table = encoder.table
        names, vectors = table.known(list(table.rows))
        self.rows = {name: row for row, name in enumerate(names)}
        self.trained = nn.Embedding.from_pretrained(torch.tensor(vectors), freeze=False)

    def forward(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        sentences = [[self.rows[word] for word in self.encoder.words(caption)] for caption in captions]
        longest = max(map(len, sentences))
        mask = torch.tensor([[place < len(words) for place in range(longest)] for words in sentences])
        padded = torch.tensor([words + [0] * (longest - len(words)) for words in sentences])
        return self.trained(padded), mask

    def counterpart(self, tower) -> list[tuple[str, Tensor, Tensor]]:
        learned = self.encoder._trained_words
        pairs = [(word, self.trained.weight[row]) for word, row in self.rows.items() if word in learned]
        return [(word, vector, tower.tail.table.weight[learned[word]]) for word, vector in pairs]


class WholeDetector(nn.Module):
    """Faster R-CNN from photos to fc7, in every step; the frozen detector says where to look, and fc7 learns."""

    def __init__(self, encoder, layers: int) -> None:
        super().__init__()
        assert layers == 1
        self.network = copy.deepcopy(encoder.network).eval().requires_grad_(False)
        self.trained = copy.deepcopy(self.network.roi_heads.box_head.fc7).requires_grad_(True)

    def forward(self, photos: Sequence[Path]) -> tuple[Tensor, Tensor]:
        seen = {path: self.regions(path) for path in dict.fromkeys(photos)}
        assert all(len(vectors) > 1 for vectors in seen.values()), "nothing was detected"
        sets = [seen[path] for path in photos]
        mask = torch.tensor([[place < len(found) for place in range(max(map(len, sets)))] for found in sets])
        return nn.utils.rnn.pad_sequence(sets, batch_first=True), mask

    def regions(self, path: Path) -> Tensor:
        photo = pil_to_tensor(Image.open(path).convert("RGB")).float() / 255
        with torch.no_grad():
            (found,) = self.network([photo])
            images, _ = self.network.transform([photo])
            maps = self.network.backbone(images.tensors)
            scale = torch.tensor(images.image_sizes[0]) / torch.tensor(photo.shape[1:])
            boxes = found["boxes"] * scale.flip(0).repeat(2)
            head = self.network.roi_heads
            values = head.box_roi_pool(maps, [boxes], images.image_sizes).flatten(1)
            hidden = torch.relu(head.box_head.fc6(values))
        return torch.relu(self.trained(hidden))

    def counterpart(self, tower) -> list[tuple[str, Tensor, Tensor]]:
        (layer,) = (part for part in tower.tail.layers if isinstance(part, nn.Linear))
        return [("weight", self.trained.weight, layer.weight), ("bias", self.trained.bias, layer.bias)]


def train_without_cache(experiment, side: str, whole: nn.Module, learned: list[Tensor]):
    """The same epochs in a plain loop, one side's network running over photos or captions themselves in each step."""
    cfg, data, model = experiment.cfg, experiment.datamodule, copy.deepcopy(experiment.model).train()
    tower = {"image": model.image_tower, "text": model.text_tower}[side]
    tower.tail = None
    groups = [{"params": list(model.parameters())}, {"params": learned}]
    optimizer = optimizer_of(cfg.model)([group for group in groups if group["params"]])
    optimizer.param_groups[-1]["lr"] *= cfg.optimizer.tail_lr_factor if learned else 1.0
    rows = data.caption_rows("train")

    def embedded(inputs: Sequence[str | Path]) -> Tensor:
        return tower(*whole(inputs))

    def both(chosen: np.ndarray, images: np.ndarray) -> tuple[Tensor, Tensor]:
        if side == "image":
            photos = embedded([data.items.images[row].path for row in images])
            return photos, model.embed_texts(data.text_features.pad(chosen, chosen))
        sentences = embedded([data.items.captions[row].text for row in chosen])
        return model.embed_images(data.image_features.pad(images, images)), sentences

    for epoch in range(cfg.trainer.max_epochs):
        order = list(EpochShuffle(len(rows), cfg.seed, epoch))
        for start in range(0, len(order), data.batch_size):
            chosen = rows[order[start : start + data.batch_size]]
            images = data.items.caption_images[chosen]
            loss = model.loss(*both(chosen, images), torch.tensor(images))
            optimizer.zero_grad()
            loss.backward()
            clipped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(clipped, cfg.trainer.gradient_clip_val)
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("network", "layers", "settings"),
    [
        (WholeBert, 0, BERT),
        (WholeBert, 1, BERT),
        (WholeBert, 2, BERT),
        (WholeTable, 1, ()),
        (WholeDetector, 1, DETECTOR),
    ],
    ids=["bert, none", "bert, one of two", "bert, both", "fasttext", "faster r-cnn, fc7"],
)
def test_training_from_the_cut_is_training_without_a_cache(workshop, network, layers, settings):
    side = "image" if network is WholeDetector else "text"
    few = (
        (
            "data.batch_size=16",
            "data.train_size=4",
            "data.val_size=2",
            "data.test_size=2",
            f"data.root={workshop.root}/four",
        )
        if side == "image"
        else ()
    )
    experiment = workshop.build("cut", *few, *settings, f"{side}_encoder.trainable_layers={layers}", *EXACT)
    without_drop_out(experiment.model)
    whole = network(experiment.model.encoders.encoder(side), layers)
    without_drop_out(whole)
    before = {name: value.clone() for name, value in experiment.model.state_dict().items()}
    learned = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    expected = train_without_cache(experiment, side, whole, learned)
    experiment.fit()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(experiment.model.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
    if layers == 0:
        assert experiment.model.tails == []
        return
    moved = 0.0
    for name, value, found in whole.counterpart(getattr(experiment.model, f"{side}_tower")):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5, msg=name)
    for name, value in experiment.model.state_dict().items():
        moved += float((value - before[name]).abs().max()) if ".tail." in name else 0.0
    assert moved > 1e-3, "the tail has not learned anything"


@pytest.fixture(scope="module")
def tuned(workshop):
    """The last of two blocks of BERT, trained from the second of three epochs on."""
    learning = ("text_encoder.trainable_layers=1", "unfreeze_epoch=1", "trainer.max_epochs=3")
    return workshop.run("tuned", *BERT, *learning, "features.dtype=float32")


@pytest.fixture(scope="module")
def from_pixels(workshop):
    """A small network trained from photos, in a loader with a worker process; and the words' own vectors."""
    return workshop.run(
        "pixels",
        *TINY_RESNET,
        *FEW,
        f"data.root={workshop.root}/few",
        "image_encoder.trainable_layers=all",
        "text_encoder.trainable_layers=all",
        "data.num_workers=1",
        "trainer.max_epochs=1",
    )


def state_of(run, name: str = "best.ckpt") -> dict[str, Tensor]:
    return checkpoint.read(run.folder / "checkpoints" / name)["state_dict"]


def photos_and_captions(run, role: str = "val") -> tuple[list[Path], list[str]]:
    data = run.experiment.datamodule
    paths = [data.items.images[row].path for row in data.image_rows(role)]
    return paths, [data.items.captions[row].text for row in data.caption_rows(role)]


def of_validation(run, side: str) -> Tensor:
    """Embeddings of the best checkpoint as validation makes them, from the features of the run."""
    model, data = run.experiment.model, run.experiment.datamodule
    model.load_state_dict(state_of(run))
    rows = data.image_rows("val") if side == "image" else data.caption_rows("val")
    sets = {"image": data.image_features, "text": data.text_features}[side].select(rows)
    embed = {"image": model.eval().embed_images, "text": model.eval().embed_texts}[side]
    with torch.no_grad():
        return embed(sets.pad(np.arange(len(rows)), rows))


def figures_of_evaluation(folder: Path, *overrides: str) -> dict[str, float]:
    options = EvaluationOptions(bootstrap=0)
    return evaluate(embed_run(folder, options, list(overrides), torch.device("cpu")), options).figures


def said_in_building(workshop, caplog, *overrides: str) -> str:
    with caplog.at_level("INFO", logger="xmodal.experiment"):
        workshop.build("said", *overrides)
    return caplog.text


def test_the_tail_and_its_price_are_named_before_training(workshop, caplog):
    said = said_in_building(workshop, caplog, *BERT, "text_encoder.trainable_layers=1", "unfreeze_epoch=2")
    assert "text encoder: the last layer will be trained, 3,280 parameters (0.0 MB" in said
    assert "at 0.1 of optimizer.lr, from epoch 2 on" in said
    assert "numbers." in said


def test_settings_that_change_nothing_are_named(workshop, caplog):
    said = said_in_building(workshop, caplog, "unfreeze_epoch=2", "optimizer.tail_lr_factor=0.5")
    assert "unfreeze_epoch=2 and optimizer.tail_lr_factor=0.5 change nothing: both encoders stay frozen" in said
    assert "image_encoder.trainable_layers=N" in said
    caplog.clear()
    assert "nothing:" not in said_in_building(workshop, caplog)


def test_augmentation_that_changes_nothing_is_named_whatever_else_is_trained(workshop, caplog):
    said = said_in_building(workshop, caplog, "text_encoder.trainable_layers=1", "augmentation.flip=0.25")
    assert "augmentation.flip=0.25 changes nothing: photos are augmented only" in said
    assert "both encoders stay frozen" not in said


def test_layers_at_no_rate_are_said_to_stay(workshop, caplog):
    said = said_in_building(workshop, caplog, "text_encoder.trainable_layers=all", "optimizer.tail_lr_factor=0.0")
    assert "whose weights stay as they are: optimizer.tail_lr_factor=0. Each caption" in said
    assert "will be trained" not in said


def test_the_tail_waits_for_its_epoch_and_the_encoder_keeps_its_own_weights(tuned):
    encoder = tuned.experiment.model.encoders.encoder("text")
    initial = {f"text_tower.tail.{name}": value for name, value in encoder.tail().state_dict().items()}
    epochs = {
        name: checkpoint.read(tuned.folder / "checkpoints" / name)["epoch"] for name in ("best.ckpt", "last.ckpt")
    }
    for name, epoch in epochs.items():
        state = state_of(tuned, name)
        is_changed = any(not torch.equal(state[key], value) for key, value in initial.items())
        assert is_changed == (epoch >= 1), (name, epoch)
    assert epochs["last.ckpt"] == 2
    saved = tuned.experiment.model.encoders.checkpoint()["fingerprints"]["text"]
    assert json.loads(saved) == json.loads(json.dumps(encoder.fingerprint(), default=str))


def test_statistics_are_those_behind_the_tail_at_the_start(tuned):
    """A loop over single captions, without padding."""
    data, encoder = tuned.experiment.datamodule, tuned.experiment.model.encoders.encoder("text")
    tail = encoder.tail().eval()
    with torch.no_grad():
        sets = [torch.tensor(data.text_features[int(row)])[None] for row in data.caption_rows("train")]
        values = torch.cat([tail(x, torch.ones(x.shape[:2], dtype=torch.bool))[0].flatten(0, 1) for x in sets])
    standardizer = tuned.experiment.model.text_tower.standardizer
    torch.testing.assert_close(standardizer.mean, values.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(standardizer.deviation, values.std(dim=0, correction=0), rtol=1e-3, atol=1e-5)


def test_a_checkpoint_encodes_captions_through_its_tail(tuned):
    loaded = checkpoint.load(tuned.folder / "checkpoints" / "best.ckpt")
    _, captions = photos_and_captions(tuned)
    expected = of_validation(tuned, "text")
    torch.testing.assert_close(loaded.encode_texts(captions), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(loaded.encode_texts(captions, batch_size=7), expected, rtol=0, atol=1e-4)
    fresh = loaded.encoders.encoder("text").tail().state_dict()
    loaded.text_tower.tail.load_state_dict({name: torch.zeros_like(value) for name, value in fresh.items()})
    assert not torch.allclose(loaded.encode_texts(captions), expected, atol=1e-2)


def test_an_evaluation_of_a_run_with_tails_has_its_figures(tuned, from_pixels):
    for run in (tuned, from_pixels):
        found = figures_of_evaluation(run.folder)
        for name in ("test/rsum", "test/i2t_mAP", "test/t2i_mAP"):
            assert found[name] == pytest.approx(run.experiment.metrics[name], abs=1e-3), name


def test_an_evaluation_reads_features_beyond_its_memory_from_disk(tuned, monkeypatch):
    read: list[int] = []
    select = FeatureFile.select
    monkeypatch.setattr(FeatureFile, "select", lambda self, rows: read.append(len(rows)) or select(self, rows))
    found = figures_of_evaluation(tuned.folder, "features.memory_gb=1e-4")
    assert sum(read) == 70
    assert found["test/rsum"] == pytest.approx(tuned.experiment.metrics["test/rsum"], abs=1e-3)


def test_photos_of_a_network_trained_from_pixels_are_read_as_they_are_needed(workshop, from_pixels):
    data, cfg = from_pixels.experiment.datamodule, from_pixels.experiment.cfg
    assert isinstance(data.image_features, LiveImages)
    assert data.image_features.feature_dim == 3 * 160 * 160
    assert data.image_features.augment.min_scale == cfg.augmentation.min_scale == 0.6
    assert not list(Path(cfg.paths.features_dir).rglob("image-timm*"))
    encoder = from_pixels.experiment.model.encoders.encoder("image")
    paths, _ = photos_and_captions(from_pixels)
    rows = data.image_rows("val")
    (pixels,) = encoder.encode([encoder.preprocess(Image.open(paths[0]).convert("RGB"))])
    np.testing.assert_array_equal(data.image_features.select(rows[:1])[0], pixels.numpy())


def test_training_photos_are_augmented_and_those_of_the_gallery_are_not(from_pixels):
    data = from_pixels.experiment.datamodule
    data.num_workers = 0
    still = {row: data.image_features.select(np.array([row])).values[0] for row in data.image_rows("train")}
    batch = next(iter(data.train_dataloader()))
    same = [np.allclose(x[0], still[int(row)]) for x, row in zip(batch.image.x, batch.image.image_ids, strict=True)]
    assert sum(same) < len(same) / 2
    gallery = next(iter(data.val_dataloader()[0]))
    expected = data.image_features.select(gallery.image_ids.numpy()).values
    np.testing.assert_array_equal(gallery.x[:, 0].numpy(), expected)


def test_a_checkpoint_encodes_photos_and_captions_from_pixels_and_words(from_pixels):
    loaded = checkpoint.load(from_pixels.folder / "checkpoints" / "best.ckpt")
    paths, captions = photos_and_captions(from_pixels)
    pictures = [Image.open(path) for path in paths]
    expected = of_validation(from_pixels, "image")
    for photos in (paths, pictures):
        torch.testing.assert_close(loaded.encode_images(photos, batch_size=3), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(loaded.encode_texts(captions), of_validation(from_pixels, "text"), rtol=0, atol=1e-4)
    initial = loaded.encoders.encoder("image").tail().state_dict()
    state = state_of(from_pixels)
    changed = [name for name, value in initial.items() if not torch.equal(state[f"image_tower.tail.{name}"], value)]
    assert any(name.endswith("weight") for name in changed)


def test_a_damaged_photo_is_found_before_anything_is_trained(workshop, tmp_path):
    learning = (*TINY_RESNET, *FEW, "image_encoder.trainable_layers=all", f"data.root={tmp_path}/scenes")
    cfg = workshop.compose("damaged", *learning)
    items = build_parts(cfg).source.load()
    items.images[2].path.write_bytes(b"no photo")
    with pytest.raises(DataError, match=rf"1 of 14 images can't be used(.|\n)*{items.images[2].path.name}"):
        workshop.build("damaged", *learning)


def test_a_resumed_run_unfreezes_when_an_uninterrupted_one_does(workshop, stop_after):
    """Word vectors, because drop-out of a network's tail is drawn anew."""
    learning = ("text_encoder.trainable_layers=1", "unfreeze_epoch=2", "trainer.max_epochs=3")
    plain_heads = ("model.image_tower.feature_dropout=0.0",)
    whole = workshop.build("whole words", *learning, *plain_heads)
    whole.fit()
    stopped, _, _ = workshop.interrupted("stopped words", stop_after(epoch=1), *learning, *plain_heads)
    last = stopped.folder / "checkpoints" / "last.ckpt"
    groups = checkpoint.read(last)["optimizer_states"][0]["param_groups"]
    assert [group["name"] for group in groups] == ["heads", "tail"]
    resumed = workshop.build("resumed words", *learning, *plain_heads, f"ckpt_path={last}")
    resumed.fit()
    for name, value in state_of(whole, "last.ckpt").items():
        torch.testing.assert_close(state_of(resumed, "last.ckpt")[name], value, rtol=0, atol=0, msg=name)
    table = "text_tower.tail.table.weight"
    assert torch.equal(
        checkpoint.read(last)["state_dict"][table], stopped.model.encoders.encoder("text").tail().table.weight
    )
    assert not torch.equal(state_of(whole, "last.ckpt")[table], checkpoint.read(last)["state_dict"][table])


def test_a_run_goes_on_only_with_the_layers_that_it_began_with(workshop, tuned, plain_run):
    last = tuned.folder / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"text_encoder\.trainable_layers: 1 in the checkpoint, 2 now"):
        workshop.build("other", *BERT, "text_encoder.trainable_layers=2", f"ckpt_path={last}")
    frozen = plain_run.folder / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"text_encoder\.trainable_layers: 0 in the checkpoint, 1 now"):
        workshop.build("other", "text_encoder.trainable_layers=1", f"ckpt_path={frozen}")


@pytest.fixture(scope="module")
def vectors(workshop) -> str:
    """A file with a vector for each word that both training and validation captions have: as many words of either."""
    items = load_dataset(cfg := workshop.compose("for words"), build_parts(cfg)).used
    rows = [items.caption_rows(role) for role in ("train", "val")]
    words = sorted(set.intersection(*({w for r in some for w in tokenize(items.captions[r].text)} for some in rows)))
    drawn = np.random.default_rng(0).normal(size=(len(words), 4))
    lines = [" ".join([word, *(f"{value:.3f}" for value in row)]) for word, row in zip(words, drawn, strict=True)]
    path = workshop.root / "words.vec"
    path.write_text("\n".join([f"{len(words)} 4", *lines]) + "\n")
    return f"text_encoder.vectors={path}"


def saved_words(experiment) -> list[str]:
    return checkpoint.read(last_of(experiment))["xmodal"]["states"]["text"]["trained_words"]


def last_of(experiment) -> Path:
    return experiment.folder / "checkpoints" / "last.ckpt"


def test_trained_words_go_on_only_with_the_captions_that_they_are_from(workshop, vectors):
    """Other captions: of as many words in another order, and of fewer words."""
    learning = (vectors, "text_encoder.trainable_layers=1", "trainer.max_epochs=1")
    first = workshop.build("words", *learning)
    first.fit()
    again = (*learning, f"ckpt_path={last_of(first)}")
    counts = []
    for change in ("data.splits.train=[val]", "data.limit=2"):
        with pytest.raises(ConfigError, match=r"the text encoder, .*trained_words: \w+… in the checkpoint") as caught:
            workshop.build("other words", *again, change)
        key, _, _ = change.partition("=")
        assert f"Settings that differ: {key}: " in str(caught.value)
        assert "leave ckpt_path out" in str(caught.value)
        alone = workshop.build("alone", *learning, change).model.encoders.encoder("text")
        counts.append(len(alone.state()["trained_words"]))
        assert alone.state()["trained_words"] != saved_words(first)
    assert counts[0] == len(saved_words(first)) > counts[1]
    assert workshop.build("same words", *again, "data.batch_size=8").model.tails  # nothing is refused


def test_a_vocabulary_goes_on_only_with_the_captions_that_it_is_from(workshop):
    learning = (*BERT, "text_encoder.trainable_layers=all", "trainer.max_epochs=1")
    first = workshop.build("vocabulary", *learning)
    first.fit()
    with pytest.raises(ConfigError, match=r"the text encoder, .*trainable_layers=all.*; .*data\.limit"):
        workshop.build("other vocabulary", *learning, "data.limit=2", f"ckpt_path={last_of(first)}")


def test_a_run_goes_on_only_at_the_rate_that_it_began_with(workshop, tuned, plain_run):
    settings = (*BERT, "text_encoder.trainable_layers=1", "features.dtype=float32")
    last = tuned.folder / "checkpoints" / "last.ckpt"
    with pytest.raises(ConfigError, match=r"optimizer\.tail_lr_factor: 0\.1 in the checkpoint, 0\.9 now"):
        workshop.build("rate", *settings, "optimizer.tail_lr_factor=0.9", f"ckpt_path={last}")
    frozen = plain_run.folder / "checkpoints" / "last.ckpt"
    workshop.build("no rate", "optimizer.tail_lr_factor=0.9", f"ckpt_path={frozen}")  # of no effect, as is said


LATER = {
    "": ("unfreeze_epoch", "augmentation"),
    "features": ("precision", "image_chunk_size", "text_chunk_size", "num_workers", "memory_gb", "pool_once"),
    "optimizer": ("tail_lr_factor",),
    "model": ("tail_lr_factor", "unfreeze_epoch"),
    "text_encoder": ("trainable_layers",),
    "data": ("on_error", "exclude"),
}


@pytest.fixture
def older(plain_run, tmp_path) -> Path:
    """The checkpoint of a run from before there were trainable layers."""
    content = torch.load(plain_run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    config = content["xmodal"]["config"]
    for group, names in LATER.items():
        node = config[group] if group else config
        for name in names:
            del node[name]
    del config["model"]["optimizer"]["tail_lr_factor"]
    del config["query_encoders"]["text"]["trainable_layers"]
    config["features"]["chunk_size"] = 512
    torch.save(content, tmp_path / "older.ckpt")
    return tmp_path / "older.ckpt"


def test_a_checkpoint_from_before_trainable_layers_is_evaluated_and_resumed(workshop, plain_run, older):
    found = figures_of_evaluation(older)
    for name in ("test/rsum", "test/i2t_mAP", "test/t2i_mAP"):
        assert found[name] == plain_run.experiment.metrics[name]
    new = checkpoint.load(plain_run.folder / "checkpoints" / "best.ckpt")
    _, captions = photos_and_captions(plain_run)
    assert torch.equal(checkpoint.load(older).encode_texts(captions), new.encode_texts(captions))
    workshop.build("older", f"ckpt_path={older}")  # nothing is refused


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_numbers_of_words_are_not_rounded(workshop, precision):
    cfg = workshop.compose("half", "text_encoder.trainable_layers=1", f"trainer.precision={precision}")
    with pytest.raises(
        ConfigError, match=rf"trainer\.precision={precision}: text_encoder\.trainable_layers=1 reads numbers"
    ):
        build_parts(cfg)


def test_pooling_once_changes_nothing_but_rounding(workshop):
    runs = {}
    for pooled in ("true", "false"):
        runs[pooled] = workshop.build(f"pooled {pooled}", "trainer.max_epochs=1", f"features.pool_once={pooled}")
        runs[pooled].fit()
    batch = next(iter(runs["true"].datamodule.train_dataloader()))
    assert (batch.text.pooled, batch.text.x.shape[1], batch.image.pooled) == (True, 1, False)
    assert not next(iter(runs["false"].datamodule.train_dataloader())).text.pooled
    ends = [state_of(runs[pooled], "last.ckpt") for pooled in ("true", "false")]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
