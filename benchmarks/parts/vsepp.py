"""VSE++ from scratch: the recipe of xmodal beside the published procedure, on the same captions and features.

The procedure (Faghri et al., BMVC 2018, and its public code), written anew: a data set that gives one pair at a time,
random batches that a collate function sorts, stacks and pads; embedding, packed GRU, its states padded and gathered at
the last word; the sum of the hardest hinges; clipping; Adam as torch has it. Captions are tokenized beforehand here,
which the published code does whenever a caption is read: that favours the procedure. Captions are random, with lengths
and frequencies of words in the form of Flickr8k's; an epoch has as many batches as steps are measured, so that
batches of short and of long captions are all measured.

xmodal trains the same model in four ways: in batches in any order or by length, as the recipe has it; in float32, or
with matrix products in bfloat16 (``bf16-mixed``), which rounds their factors to 8 significant bits, while parameters,
Adam's moments and the loss stay in float32. That pays where the processor multiplies bfloat16 (lscpu: avx512_bf16).
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from alternation import Comparison, synchronize, take_turns
from parts.lightning_steps import SEED, Training, through_lightning
from random_pairs import CAPTIONS_PER_IMAGE, numbered_items, random_features
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

from xmodal.config.command_line import compose
from xmodal.encoders.words import WordsEncoder
from xmodal.features.datamodule import PairDataModule
from xmodal.models.build import build_model, with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.types import RaggedFeatures

BATCH = 128
IMAGE_DIM, WORD_DIM, EMBEDDING_DIM = 1280, 300, 1024
WORDS, MEAN_LENGTH = 3000, 11  # frequent words of Flickr8k, and words of a caption
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WAYS = {
    "in any order": ("data.group_by_length=false",),
    "by length": (),
    "in any order, bf16-mixed": ("data.group_by_length=false", "trainer.precision=bf16-mixed"),
    "by length, bf16-mixed": ("trainer.precision=bf16-mixed",),
}


@dataclass(frozen=True)
class Pairs:
    """Image features, and captions as texts; five to an image."""

    image_features: RaggedFeatures
    captions: list[str]
    encoder: WordsEncoder

    @classmethod
    def random(cls, count: int) -> "Pairs":
        random = np.random.default_rng(SEED)
        images = count // CAPTIONS_PER_IMAGE
        lengths = 2 + random.negative_binomial(8, 8 / (8 + MEAN_LENGTH - 2), images * CAPTIONS_PER_IMAGE)
        shares = 1 / np.arange(1, WORDS + 1)  # Zipf's law
        drawn = random.choice(WORDS, lengths.sum(), p=shares / shares.sum())
        captions = [" ".join(f"w{word}" for word in words) for words in np.split(drawn, np.cumsum(lengths)[:-1])]
        everything = " ".join(f"w{word}" for word in range(WORDS))
        encoder = WordsEncoder(min_count=1)
        encoder.prepare([*captions, everything], Path())
        return cls(random_features(random, np.ones(images, np.int64), IMAGE_DIM), captions, encoder)

    @property
    def codes(self) -> list[np.ndarray]:
        """Numbers of the words of each caption, from 1."""
        return [codes.numpy() for codes in self.encoder.encode([text.split() for text in self.captions])]


def compare(options: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """A line for each way of training."""
    pairs = Pairs.random(options.steps * BATCH)
    published = Procedure(pairs, device, options)
    trainings = {name: _training(overrides, pairs, device, options) for name, overrides in WAYS.items()}
    rates = take_turns(
        {"VSE++": published.rate, **{name: partial(_rate, training) for name, training in trainings.items()}},
        options.repeats,
    )
    for name in WAYS:
        yield Comparison(rates[name], rates["VSE++"]).line(f"vsepp, {name}", "captions/s", "published")
    ours = next(iter(trainings.values())).new_model()
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, published.new_model())]
    yield f"  parameters: xmodal {counts[0]:,}, published {counts[1]:,}, which has a vector for padding"


def _training(overrides: tuple[str, ...], pairs: Pairs, device: torch.device, options: argparse.Namespace) -> Training:
    composed = compose(("experiment=vsepp_flickr8k", *overrides))
    cfg = with_feature_widths(composed, IMAGE_DIM, WORD_DIM)
    datamodule = PairDataModule(
        numbered_items(len(pairs.image_features)),
        pairs.image_features,
        RaggedFeatures.from_sets(pairs.codes),
        cfg.data.batch_size,
        seed=SEED,
        group_by_length=cfg.data.group_by_length,
    )

    def new_model() -> DualEncoder:
        torch.manual_seed(SEED)
        model = build_model(cfg)
        model.text_tower.attach(pairs.encoder.tail())
        return model

    return Training(cfg, datamodule, new_model, device, options.warmup, options.steps, CLOCKS[options.clock])


def _rate(training: Training) -> float:
    return through_lightning(training)[0] * training.datamodule.batch_size


class Procedure:
    """The published code's loop over its loader."""

    def __init__(self, pairs: Pairs, device: torch.device, options: argparse.Namespace) -> None:
        self.pairs = PublishedPairs(pairs)
        self.device = device
        self.warmup: int = options.warmup
        self.steps: int = options.steps
        self.clock = CLOCKS[options.clock]

    def new_model(self) -> "PublishedModel":
        torch.manual_seed(SEED)
        return PublishedModel(self.pairs.words)

    def rate(self) -> float:
        """Captions per second."""
        model = self.new_model().to(self.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
        loader = DataLoader(self.pairs, BATCH, shuffle=True, collate_fn=collate)
        start = 0.0
        for step, (images, captions, lengths) in zip(range(self.warmup + self.steps), _endless(loader), strict=False):
            if step == self.warmup:
                synchronize(self.device)
                start = self.clock()
            optimizer.zero_grad()
            hardest_hinges(*model(images.to(self.device), captions.to(self.device), lengths)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
        synchronize(self.device)
        return self.steps * BATCH / (self.clock() - start)


class PublishedPairs(Dataset[tuple[Tensor, Tensor]]):
    """One pair at a time: an image's features, and the numbers of <start>, the words, <end>."""

    def __init__(self, pairs: Pairs) -> None:
        self.images = pairs.image_features.values.astype(np.float32)
        known = len(pairs.encoder.vocabulary) + 1
        self.words = known + 3  # <pad>, which is 0 and moves all others on, <start>, <end>
        self.captions = [[known + 1, *(codes[:, 0].astype(int) + 1).tolist(), known + 2] for codes in pairs.codes]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.images[row // CAPTIONS_PER_IMAGE]), torch.tensor(self.captions[row])


def collate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
    """Images, padded captions and their lengths, the longest caption first."""
    pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
    lengths = [len(caption) for _, caption in pairs]
    padded = torch.zeros(len(pairs), max(lengths), dtype=torch.int64)
    for row, (_, caption) in enumerate(pairs):
        padded[row, : len(caption)] = caption
    return torch.stack([image for image, _ in pairs]), padded, lengths


class PublishedModel(nn.Module):
    """A linear layer for images; embedding and GRU for captions; both of length 1."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.image = nn.Linear(IMAGE_DIM, EMBEDDING_DIM)
        self.embedding = nn.Embedding(words, WORD_DIM)
        self.gru = nn.GRU(WORD_DIM, EMBEDDING_DIM, 1, batch_first=True)

    def forward(self, images: Tensor, captions: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
        states, _ = self.gru(pack_padded_sequence(self.embedding(captions), lengths, batch_first=True))
        padded, ends = pad_packed_sequence(states, batch_first=True)
        places = (ends - 1).to(padded.device)[:, None, None].expand(-1, 1, EMBEDDING_DIM)
        return _unit(self.image(images)), _unit(padded.gather(1, places).squeeze(1))


def hardest_hinges(images: Tensor, captions: Tensor) -> Tensor:
    """Sum over images and captions of ``max(0, 0.2 + s(hardest negative) − s(match))``; negatives: all others."""
    scores = images @ captions.t()
    matches = scores.diag()[:, None]
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    of_images = (0.2 + scores - matches).clamp(min=0).masked_fill(own, 0)
    of_captions = (0.2 + scores - matches.t()).clamp(min=0).masked_fill(own, 0)
    return of_images.max(dim=1)[0].sum() + of_captions.max(dim=0)[0].sum()


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.pow(2).sum(dim=1, keepdim=True).sqrt()


def _endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    while True:
        yield from loader
