"""Training steps per second from cached features: PairDataModule, DualEncoder and pl.Trainer beside a bare loop.

    python benchmarks/training.py --steps 60
    python benchmarks/training.py --case lstm --device cpu
    python benchmarks/training.py --case 4096-256 --profile

Both sides train the same model from the same start on the same batches in the same order, which the printed losses
show: they must be equal. The bare loop is what one would write by hand: index_select, forward, backward, clip, step.
Features are random, in the form of Flickr30k's: five captions per image, float16 as in the feature store. In the case
mean xmodal pools the ragged captions once before training, which the bare loop does in every step.
"""

import argparse
import cProfile
import logging
import pstats
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytorch_lightning as pl
import torch
from alternation import alternate, choose_device, describe, synchronize
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger
from random_pairs import CAPTIONS_PER_IMAGE, numbered_items, random_features
from torch import Tensor

from xmodal.config.command_line import compose
from xmodal.features.datamodule import EpochShuffle, PairDataModule
from xmodal.models.build import build_model, with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.pooled import pool_once

SEED = 0


@dataclass(frozen=True)
class Case:
    """What is trained: widths of the features, length of the captions, and the configuration of the model."""

    image_dim: int
    text_dim: int
    words: tuple[int, int]  # shortest and longest caption
    batch_size: int
    overrides: tuple[str, ...]


CASES = {
    "4096-1024": Case(4096, 768, (1, 1), 256, ("embedding_dim=1024",)),
    "4096-256": Case(4096, 768, (1, 1), 128, ("embedding_dim=256",)),
    "mean": Case(4096, 300, (5, 20), 128, ("embedding_dim=256", "text_aggregator=mean")),
    "lstm": Case(4096, 100, (5, 20), 128, ("embedding_dim=512", "text_aggregator=lstm")),
}


@dataclass(frozen=True)
class Setting:
    """One case, ready to be trained in either way."""

    cfg: DictConfig
    datamodule: PairDataModule
    bare: "BareData"  # the same features, for the bare loop
    device: torch.device
    warmup: int
    steps: int

    def new_model(self) -> DualEncoder:
        """The same model each time."""
        torch.manual_seed(SEED)
        return build_model(self.cfg)


@dataclass
class Losses:
    """Loss of the last step of either way."""

    ours: float = float("nan")
    bare: float = float("nan")


def main() -> None:
    """Measure every chosen case and print one line for each."""
    options = _parser().parse_args()
    quiet()
    device = choose_device(options.device)
    print(f"training on {describe(device)}, {options.images} images, {options.steps} steps a time")
    for name in options.case or CASES:
        case = CASES[name]
        cfg, datamodule = prepare(case, options.images)
        setting = Setting(cfg, datamodule, BareData(datamodule), device, options.warmup, options.steps)
        pooled = pool_beforehand(setting)
        losses = Losses()
        ours, bare = partial(through_lightning, setting, losses), partial(bare_loop, setting, losses)
        if options.profile:
            print_profile(ours)
        print(alternate(ours, bare, options.repeats).line(f"{name}, batch {case.batch_size}", "steps/s"))
        print(f"  loss of the last step: xmodal {losses.ours:.5f}, bare {losses.bare:.5f}", flush=True)
        print("".join(pooled), end="", flush=True)


def pool_beforehand(setting: Setting) -> list[str]:
    """Give xmodal's batches vectors that are pooled already, where it does so itself; a line on the time it took."""
    datamodule, model = setting.datamodule, setting.new_model()
    towers = {"image": model.image_tower, "text": model.text_tower}
    sources = {"image": datamodule.image_features, "text": datamodule.text_features}
    start = time.perf_counter()
    image, text = (
        pool_once(tower, sources[side], datamodule.batch_size, datamodule.room_for_pooled(side))
        for side, tower in towers.items()
    )
    datamodule.use_pooled(image, text)
    return [f"  pooled once, in {time.perf_counter() - start:.2f} s\n"] if image or text else []


def print_profile(work: Callable[[], object]) -> None:
    """The Python functions in which the steps spend their time."""
    profile = cProfile.Profile()
    profile.runcall(work)
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def prepare(case: Case, images: int) -> tuple[DictConfig, PairDataModule]:
    """Configuration and features of a case."""
    cfg = with_feature_widths(compose(case.overrides), case.image_dim, case.text_dim)
    random = np.random.default_rng(SEED)
    image_features = random_features(random, np.ones(images, np.int64), case.image_dim)
    lengths = random.integers(case.words[0], case.words[1] + 1, images * CAPTIONS_PER_IMAGE)
    text_features = random_features(random, lengths, case.text_dim)
    return cfg, PairDataModule(numbered_items(images), image_features, text_features, case.batch_size, seed=SEED)


def through_lightning(setting: Setting, losses: Losses) -> float:
    """Steps per second of the real path, with logging, without validation and checkpoints."""
    stopwatch = Stopwatch(setting)
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            setting.cfg.trainer,
            accelerator="gpu" if setting.device.type == "cuda" else "cpu",
            max_epochs=-1,
            max_steps=setting.warmup + setting.steps,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            logger=CSVLogger(folder),
            callbacks=[stopwatch],
            default_root_dir=folder,
        )
        trainer.fit(setting.new_model(), datamodule=setting.datamodule)
    losses.ours = stopwatch.loss
    return setting.steps / stopwatch.seconds


class Stopwatch(pl.Callback):
    """Seconds from the end of the last warm-up step to the end of the last step."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.start = self.seconds = self.loss = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, i: int) -> None:
        if i == 0:
            torch.manual_seed(SEED + trainer.current_epoch)  # so that drop-out is the bare loop's

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: dict, batch: object, i: int
    ) -> None:
        if trainer.global_step == self.setting.warmup:
            synchronize(self.setting.device)
            self.start = time.perf_counter()
        if trainer.global_step == self.setting.warmup + self.setting.steps:
            self.loss = float(outputs["loss"])
            synchronize(self.setting.device)
            self.seconds = time.perf_counter() - self.start


def bare_loop(setting: Setting, losses: Losses) -> float:
    """Steps per second of a loop written by hand over the same tensors."""
    model = setting.new_model().to(setting.device).train()
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    data = setting.bare
    step, epoch, start = 0, 0, 0.0
    while step < setting.warmup + setting.steps:
        torch.manual_seed(SEED + epoch)
        for rows in data.epoch(epoch):
            image, text, image_ids = data.batch(rows, setting.device)
            optimizer.zero_grad()
            loss = model.loss(model.image_tower(*image), model.text_tower(*text), image_ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), setting.cfg.trainer.gradient_clip_val)
            optimizer.step()
            step += 1
            if step == setting.warmup:
                synchronize(setting.device)
                start = time.perf_counter()
            if step == setting.warmup + setting.steps:
                break
        scheduler.step()
        epoch += 1
    losses.bare = float(loss)
    synchronize(setting.device)
    return setting.steps / (time.perf_counter() - start)


class BareData:
    """Features as two padded tensors, which is the simplest thing that works where memory is plenty."""

    def __init__(self, datamodule: PairDataModule) -> None:
        everything = np.arange(len(datamodule.text_features))
        self.images = torch.from_numpy(datamodule.image_features.values)[:, None]
        padded = datamodule.text_features.pad(everything, everything)
        self.texts, self.mask = padded.x.to(self.images.dtype), padded.mask
        self.lengths = padded.mask.sum(dim=1)
        self.image_of_caption = torch.from_numpy(datamodule.items.caption_images)
        self.batch_size = datamodule.batch_size

    def epoch(self, number: int) -> tuple[Tensor, ...]:
        """Rows of the captions of each batch, in PairDataModule's order."""
        return torch.tensor(list(EpochShuffle(len(self.texts), SEED, number))).split(self.batch_size)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """Vectors and mask of both sides, and the image ids."""
        image_ids = self.image_of_caption.index_select(0, rows)
        images = self.images.index_select(0, image_ids).float()
        longest = int(self.lengths.index_select(0, rows).max())
        texts = self.texts[:, :longest].index_select(0, rows).float()
        mask = self.mask[:, :longest].index_select(0, rows)
        ones = torch.ones(len(rows), 1, dtype=torch.bool)
        image, text = (images.to(device), ones.to(device)), (texts.to(device), mask.to(device))
        return image, text, image_ids.to(device)


def quiet() -> None:
    """Lightning's hints on workers and devices have no place between the figures."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Training steps/s from cached features, beside a bare PyTorch loop.")
    parser.add_argument("--case", action="append", choices=list(CASES), help="which (repeatable); default: all")
    parser.add_argument("--steps", type=int, default=60, help="measured steps per alternation")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--images", type=int, default=5000, help="images, each with five captions")
    parser.add_argument("--profile", action="store_true", help="first, where xmodal's time goes, by Python function")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    main()
