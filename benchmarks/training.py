"""Training steps per second from cached features: PairDataModule, DualEncoder and pl.Trainer beside a bare loop.

    python benchmarks/training.py --steps 60
    python benchmarks/training.py --case lstm --device cpu
    python benchmarks/training.py --case 4096-256 --profile

Both sides train the same model from the same start on the same batches in the same order, which the printed losses
show: they must be equal. The bare loop is what one would write by hand: index_select, forward, backward, clip, step.
Features are random, in the form of Flickr30k's: five captions per image, float16 as in the feature store. In the case
mean xmodal pools the ragged captions once before training, which the bare loop does in every step.

    python benchmarks/training.py --case vsepp --threads 1

is of another kind: VSE++ from scratch, in captions per second, beside the published procedure (parts/vsepp.py). It is
measured only where it is asked for.
"""

import argparse
import cProfile
import logging
import pstats
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from alternation import alternate, choose_device, describe, synchronize
from omegaconf import DictConfig
from parts import vsepp
from parts.lightning_steps import SEED, Training, through_lightning
from random_pairs import CAPTIONS_PER_IMAGE, numbered_items, random_features
from torch import Tensor

from xmodal.config.command_line import compose
from xmodal.features.datamodule import EpochShuffle, PairDataModule
from xmodal.models.build import build_model, with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.pooled import pool_once


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
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    print(f"training on {describe(device)}, {options.images} images, {options.steps} steps a time")
    for name in options.case or CASES:
        measured = vsepp.compare(options, device) if name == "vsepp" else beside_bare_loop(name, options, device)
        for line in measured:
            print(line, flush=True)


def beside_bare_loop(name: str, options: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """The rates of one case, and the losses that both ways arrive at."""
    case = CASES[name]
    cfg, datamodule = prepare(case, options.images)
    setting = Setting(cfg, datamodule, BareData(datamodule), device, options.warmup, options.steps)
    pooled = pool_beforehand(setting)
    losses = Losses()
    ours, bare = partial(in_lightning, setting, losses), partial(bare_loop, setting, losses)
    if options.profile:
        print_profile(ours)
    yield alternate(ours, bare, options.repeats).line(f"{name}, batch {case.batch_size}", "steps/s")
    yield f"  loss of the last step: xmodal {losses.ours:.5f}, bare {losses.bare:.5f}"
    yield from pooled


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
    return [f"  pooled once, in {time.perf_counter() - start:.2f} s"] if image or text else []


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


def in_lightning(setting: Setting, losses: Losses) -> float:
    """Steps per second of the real path."""
    training = Training(
        setting.cfg, setting.datamodule, setting.new_model, setting.device, setting.warmup, setting.steps
    )
    rate, losses.ours = through_lightning(training)
    return rate


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
    parser.add_argument(
        "--case", action="append", choices=[*CASES, "vsepp"], help="which (repeatable); default: all but vsepp"
    )
    parser.add_argument("--steps", type=int, default=60, help="measured steps per alternation")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--images", type=int, default=5000, help="images, each with five captions (not of vsepp)")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    clock = (
        "of vsepp; cpu: the processor's time for this process, where others keep the machine busy (with --threads 1)"
    )
    parser.add_argument("--clock", choices=list(vsepp.CLOCKS), default="wall", help=clock)
    parser.add_argument("--profile", action="store_true", help="first, where xmodal's time goes, by Python function")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    main()
