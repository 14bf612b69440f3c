"""Shipped settings train without collapsing: every pair of loss, aggregators and encoders occurs in a short training.

Photos, networks and widths are small, so that all of it takes about a minute. Everything that decides whether training
works (losses, rates, drop-out, standardisation, initialisation) is as shipped. Options are found in conf/.
"""

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from xmodal.callbacks.diagnosis import COLLAPSED, DIVERGED, FLAT, NOT_LEARNING, OVERFITTING
from xmodal.config.command_line import compose
from xmodal.config.sources import ConfigSource
from xmodal.experiment.features import Dataset, features_of, load_dataset
from xmodal.experiment.fitted_model import fitted_model
from xmodal.experiment.parts import Parts, build_parts
from xmodal.features.datamodule import PairDataModule
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.models.dual_encoder import DualEncoder
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.geometry import effective_rank, mean_similarity

FACTORS = ("loss", "image_aggregator", "text_aggregator", "image_encoder", "text_encoder")
NOT_TRAINED = {
    "loss": {"image_to_image", "text_to_text"},  # losses of one side alone: nothing brings photos to captions
    "image_encoder": {"precomputed"},  # whatever is in a file
    "text_encoder": {"precomputed"},
}
SMALL = {  # networks that take a second for all photos
    "vgg": ["data.limit=8"],  # 138 million parameters: on fewer photos
    "frcnn": ["image_encoder.min_size=64", "image_encoder.num_regions=6"],
    "timm": ["image_encoder.model=resnet18.a1_in1k"],
    "clip": [],
}
STEPS = 20  # after which a training is looked at, and again after as many, up to MOST: some losses are slow to begin
MOST = 160
KINDS = (DIVERGED, COLLAPSED, FLAT, NOT_LEARNING, OVERFITTING)

SOURCE = ConfigSource()

Row = dict[str, str]


def covering(factors: Mapping[str, Sequence[str]], seed: int = 0) -> list[Row]:
    """Rows in which every two options of different factors occur together, found greedily.

    Each row begins with a pair that is still to be covered; the other factors, in random order, take the option that
    covers most further pairs.
    """
    random = np.random.default_rng(seed)
    options = {name: [(name, option) for option in found] for name, found in factors.items()}
    open_pairs = {
        frozenset(pair) for a, b in itertools.combinations(options.values(), 2) for pair in itertools.product(a, b)
    }
    rows = []
    while open_pairs:
        row = sorted(min(open_pairs, key=sorted))
        for name in random.permutation([name for name in options if name not in dict(row)]):
            shuffled = [options[name][i] for i in random.permutation(len(options[name]))]
            row.append(max(shuffled, key=lambda new: sum(frozenset((new, old)) in open_pairs for old in row)))
        open_pairs -= {frozenset(pair) for pair in itertools.combinations(row, 2)}
        rows.append(dict(row))
    return rows


def shipped() -> dict[str, list[str]]:
    """The options of conf/ that a training can have."""
    groups = SOURCE.groups()
    return {name: [o for o in groups[name] if o not in NOT_TRAINED.get(name, ())] for name in FACTORS}


ROWS = covering(shipped())


@dataclass
class Bench:
    """Trains small models on a few scenes; composes each option, and runs each encoder, once."""

    root: Path
    nodes: dict[tuple[str, str], Any] = field(default_factory=dict)
    encoded: dict[tuple[str, str, bool], tuple[Dataset, Any, Any]] = field(default_factory=dict)

    def base(self, *overrides: str) -> DictConfig:
        return compose(
            [
                "data.train_size=16",
                "data.val_size=1",
                "data.test_size=1",
                "data.captions_per_image=2",
                "data.image_size=64",
                f"data.root={self.root / 'scenes'}",
                "data.batch_size=16",
                "embedding_dim=64",
                "model.image_tower.projection.hidden_dim=128",
                "model.text_tower.projection.hidden_dim=128",
                "logger=none",
                "trainer=cpu",
                f"paths.output_dir={self.root}",
                *overrides,
            ]
        )

    def config(self, row: Row) -> DictConfig:
        """What ``compose`` gives for all options of a row together, at a fraction of the time."""
        if ("", "") not in self.nodes:
            self.nodes["", ""] = self.base()
        cfg = self.nodes["", ""].copy()
        OmegaConf.set_readonly(cfg, False)
        OmegaConf.set_struct(cfg, False)
        for name, option in row.items():
            if (name, option) not in self.nodes:
                small = SMALL.get(option, []) if name == "image_encoder" else []
                self.nodes[name, option] = SOURCE.load([f"{name}={option}", *small])
            cfg[name] = self.nodes[name, option]._get_node(name)
            _shrink(cfg[name])
        cfg.data.limit = self.nodes["image_encoder", row["image_encoder"]].data.limit
        return cfg

    def features(self, cfg: DictConfig, side: str, option: str) -> tuple[Dataset, Any, Any]:
        """Data set, encoder and features of one side."""
        key = (side, option, cfg.data.limit is not None)
        if key not in self.encoded:
            parts = build_parts(cfg)
            dataset = load_dataset(cfg, parts)
            encoder = parts.image_encoder if side == "image" else parts.text_encoder
            self.encoded[key] = (dataset, encoder, features_of(cfg, parts, dataset, [side])[side])
        return self.encoded[key]

    def ready(self, row: Row) -> tuple[DictConfig, DualEncoder, PairDataModule]:
        cfg = self.config(row)
        pl.seed_everything(cfg.seed, verbose=False)
        dataset, image_encoder, images = self.features(cfg, "image", row["image_encoder"])
        _, text_encoder, texts = self.features(cfg, "text", row["text_encoder"])
        data = PairDataModule(dataset.used, images, texts, batch_size=cfg.data.batch_size, seed=cfg.seed)
        cfg, model = fitted_model(cfg, Parts(None, image_encoder, text_encoder, {}), data)
        return cfg, model, data


def _shrink(node: Any) -> None:
    """Recurrent and self-attention layers of an eighth of the width."""
    if isinstance(node, DictConfig) and node.get("hidden_size", 0) == 512:
        OmegaConf.set_readonly(node, False)
        node.hidden_size = 64


@dataclass(frozen=True)
class Seen:
    """The training split in the eyes of a model."""

    loss: float
    rank: float
    similarity: dict[str, float]
    effective_rank: dict[str, float]


@torch.no_grad()
def look(model: DualEncoder, data: PairDataModule) -> Seen:
    model.eval()
    images, captions = data.image_rows("train"), data.caption_rows("train")
    owners = torch.from_numpy(data.items.caption_images[captions])
    ids = torch.from_numpy(images)
    image = model.embed_images(data._reader("image").batch(ids, ids))
    text = model.embed_texts(data._reader("text").batch(torch.from_numpy(captions), owners))
    pairs = EmbeddedPairs(image[torch.searchsorted(ids, owners)], text, owners)
    result = evaluate_retrieval(image, text, ids, owners, similarity=model.similarity)
    return Seen(
        float(model.objective(pairs)),
        result.metrics["t2i_meanR"],
        {"image": mean_similarity(image), "text": mean_similarity(text)},
        {"image": effective_rank(image), "text": effective_rank(text)},
    )


class UntilLearned(pl.Callback):
    """Ends training once matches stand out, and embeddings are apart."""

    def __init__(self, data: PairDataModule) -> None:
        self.data = data
        self.seen: list[Seen] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        if trainer.global_step % STEPS == 0:
            self.seen.append(look(pl_module, self.data))
            pl_module.train()
            trainer.should_stop = has_learned(self.seen[-1], self.data)


def has_learned(seen: Seen, data: PairDataModule) -> bool:
    """Captions find their images at less than half of the rank that random order gives, and no side is a point."""
    chance = (len(data.image_rows("train")) + 1) / 2
    return seen.rank < 0.5 * chance and max(seen.similarity.values()) < 0.98 and min(seen.effective_rank.values()) > 2


def train(cfg: DictConfig, model: DualEncoder, data: PairDataModule, steps: int, *callbacks: pl.Callback) -> None:
    trainer = pl.Trainer(
        barebones=True,
        accelerator="cpu",
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=cfg.trainer.gradient_clip_val,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    model.train()
    trainer.fit(model, datamodule=data)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return Bench(tmp_path_factory.mktemp("bench"))


def test_every_pair_of_options_is_covered():
    factors = shipped()
    assert set(factors["loss"]) >= {"triplet", "infonce", "max_of_hinges"}
    for one, other in itertools.combinations(FACTORS, 2):
        found = {(row[one], row[other]) for row in ROWS}
        assert found == set(itertools.product(factors[one], factors[other]))
    largest = sorted(map(len, factors.values()))[-2:]
    assert len(ROWS) <= 1.3 * largest[0] * largest[1]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("row", ROWS, ids=["-".join(row[name] for name in FACTORS) for row in ROWS])
def test_shipped_settings_train_without_collapsing(bench, row):
    cfg, model, data = bench.ready(row)
    before, until = look(model, data), UntilLearned(data)
    train(cfg, model, data, MOST, until)
    after = until.seen[-1]
    assert has_learned(after, data), until.seen
    assert after.loss < before.loss


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_the_hardest_negatives_after_their_warm_up_draw_nothing_together(bench):
    """Well beyond the steps in which all negatives give way to the hardest."""
    row = {"loss": "max_of_hinges", "image_aggregator": "mean", "text_aggregator": "lstm"}
    cfg, model, data = bench.ready({**row, "image_encoder": "timm", "text_encoder": "fasttext"})
    train(cfg, model, data, cfg.loss.warmup_steps + 60)
    seen = look(model, data)
    assert seen.rank < 2
    assert max(seen.similarity.values()) < 0.5


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_that_collapses_says_so_and_ends_in_order(workshop, stop):
    """VSE++ without its warm-up, at a high rate, as a student might start it."""
    hasty = ("loss=max_of_hinges", "loss.warmup_steps=0", "optimizer.lr=0.05", "text_aggregator=lstm")
    run = workshop.run(f"hasty-{stop}", *hasty, "trainer.max_epochs=5", f"callbacks.health.stop={str(stop).lower()}")
    lines = [line for line in run.output.splitlines() if line.startswith("COLLAPSED in epoch ")]
    assert len(lines) == 1
    assert "loss.warmup_steps=200 (now 0); loss.negatives=semihard loss.warmup_steps=0; optimizer.lr=0.005" in lines[0]
    rows, epoch = run.experiment.record.history, int(lines[0].removeprefix("COLLAPSED in epoch ").partition(":")[0])
    assert len(rows) == (epoch + 1 if stop else 5)
    assert max(rows[epoch]["val/image_similarity"], rows[epoch]["val/text_similarity"]) > 0.98
    figures = json.loads((run.folder / "metrics.json").read_text())
    assert {"test/rsum", "val/alignment", "val/text_effective_rank", "best_epoch"} <= figures.keys()
    assert figures["best_epoch"] == max(rows, key=lambda row: row["val/rsum"])["epoch"]


def test_a_run_with_shipped_settings_has_no_line_but_figures(plain_run):
    assert not [kind for kind in KINDS if f"{kind} in epoch" in plain_run.output]
    header, *rows = (plain_run.folder / "history.csv").read_text().splitlines()
    wanted = {"val/alignment", "train/active_triplets", "val/active_triplets"}
    wanted |= {f"val/{s}_{figure}" for s in ("image", "text") for figure in ("uniformity", "similarity")}
    assert wanted <= set(header.split(","))
    assert all(all(row.split(",")) for row in rows)


def test_a_composed_row_is_what_the_command_line_gives(bench):
    row = {
        "loss": "infonce",
        "image_aggregator": "gru",
        "text_aggregator": "transformer",
        "image_encoder": "timm",
        "text_encoder": "bert",
    }
    together = bench.base(*(f"{name}={option}" for name, option in row.items()), *SMALL["timm"])
    for name in ("image_aggregator", "text_aggregator"):
        _shrink(together[name])
    expected = OmegaConf.to_container(together, resolve=False)
    assert OmegaConf.to_container(bench.config(row), resolve=False) == expected
