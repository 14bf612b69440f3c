"""Training the last layers of BERT on what is stored at the cut, beside computing the frozen layers in every step.

Same tail, heads, loss, optimizer and batches, in the same order; the losses of the last step must agree. The other way
is given ready token ids and computes the frozen layers without gradients, in evaluation mode: the fastest that one can
do without a store.

Theory counts a block's forward pass as 1 and its backward pass as 2: with N of L blocks trained, a step costs
L + 2N without the cut and 3N with it. It leaves aside what is done besides blocks (batches, heads, loss, optimizer),
so an epoch without any block is measured too, and the ratio is also given without its time.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from alternation import Comparison, seconds, take_turns
from parts.inputs import Inputs, bert_folder, into_new_store, prepared
from random_pairs import numbered_items
from torch import Tensor, nn

from xmodal.config.command_line import compose
from xmodal.encoders.bert import BertEncoder
from xmodal.features.datamodule import PairDataModule
from xmodal.features.store import FeatureStore
from xmodal.models.build import build_model, with_feature_widths
from xmodal.models.dual_encoder import DualEncoder
from xmodal.types import PairBatch, RaggedFeatures

IMAGE_WIDTH = 512
BATCH_SIZE = 64
SEED = 0
AGREEMENT = 0.01  # of the losses; the stored features are float16

Before = Callable[[Tensor, Tensor], Tensor]  # stored values and their mask → what the tail or the tower is given


@dataclass(frozen=True)
class Epoch:
    """One way of training: what a caption's features are, what precedes the tail, and the tail."""

    texts: RaggedFeatures
    before: Before | None
    tail: nn.Module | None
    text_dim: int

    def run(self, device: torch.device) -> float:
        """Train for one epoch from the same start each time; the loss of the last step."""
        model = new_model(self.text_dim, self.tail).to(device).train()
        optimizer = model.configure_optimizers()["optimizer"]
        torch.manual_seed(SEED)  # drop-out
        loss = torch.zeros(())
        for batch in pairs(self.texts).train_dataloader():
            loss = step(model, optimizer, batch, self.before, device)
        return float(loss)


def measure(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A line of rates, one of the losses, and one of theory."""
    weights = str(bert_folder(options, folder))
    captions = Inputs.read(options, folder).captions
    captions = captions[: len(captions) // 5 * 5]
    whole = prepared(BertEncoder(weights=weights), captions, options, folder)
    cut = prepared(BertEncoder(weights=weights, trainable_layers=options.layers), captions, options, folder)
    made: list[Path] = []
    once = seconds(lambda: made.append(into_new_store(cut, captions, options, folder)), options.device)
    stored = FeatureStore(made[0].parents[1]).read(made[0])
    width = whole.feature_dim
    frozen = frozen_layers(whole.network, options.layers)
    ways = {
        "xmodal": Epoch(stored, None, cut.tail(), width),
        "recomputed": Epoch(token_ids(whole, captions), frozen, cut.tail(), width),
        "heads": Epoch(ones(len(captions), width), None, None, width),
    }
    losses: dict[str, float] = {}
    rates = take_turns({name: rate(name, way, losses, options.device) for name, way in ways.items()}, options.repeats)
    require_agreement(losses)
    comparison = Comparison(rates["xmodal"], rates["recomputed"])
    blocks = whole.network.config.num_hidden_layers
    yield comparison.line(f"finetune {options.layers} of {blocks} blocks", "captions/s", "recomputed")
    yield f"  loss of the last step: xmodal {losses['xmodal']:.5f}, recomputed {losses['recomputed']:.5f}"
    yield theory(rates, blocks, options.layers)
    yield f"  features at the cut: {once:.1f} s once, {stored.nbytes / 2**20:.1f} MiB"


def rate(name: str, way: Epoch, losses: dict[str, float], device: torch.device) -> Callable[[], float]:
    def measured() -> None:
        losses[name] = way.run(device)

    return lambda: len(way.texts) / seconds(measured, device)


def theory(rates: dict[str, tuple[float, ...]], blocks: int, trained: int) -> str:
    """What counting blocks allows, and the measured ratio of what is left without the heads' time."""
    allowed = (blocks + 2 * trained) / (3 * trained)
    ours, other, heads = (1 / np.array(rates[name]) for name in ("xmodal", "recomputed", "heads"))
    return (
        f"  theory allows {allowed:.3f}; batches, heads and optimizer take {median(heads / ours):.1%} of xmodal's "
        f"epoch, without which the ratio is {median((other - heads) / (ours - heads)):.3f}"
    )


def require_agreement(losses: dict[str, float]) -> None:
    if not abs(losses["xmodal"] - losses["recomputed"]) <= AGREEMENT * abs(losses["recomputed"]):
        raise SystemExit(f"The two ways train differently: their last losses are {losses}.")


def new_model(text_dim: int, tail: nn.Module | None) -> DualEncoder:
    """The same heads each time, and a copy of the tail in front of them."""
    torch.manual_seed(SEED)
    model = build_model(with_feature_widths(compose(["text_encoder=bert"]), IMAGE_WIDTH, text_dim))
    if tail is not None:
        model.text_tower.attach(copy.deepcopy(tail).requires_grad_(True))
    return model


def pairs(texts: RaggedFeatures) -> PairDataModule:
    """Captions with random images, in an order that the seed decides."""
    images = len(texts) // 5
    values = np.random.default_rng(SEED).standard_normal((images, IMAGE_WIDTH), np.float32)
    image_features = RaggedFeatures(values, np.arange(images + 1))
    return PairDataModule(numbered_items(images), image_features, texts, BATCH_SIZE, seed=SEED)


def step(model: DualEncoder, optimizer: Any, batch: PairBatch, before: Before | None, device: torch.device) -> Tensor:
    """One step of training; its loss."""
    image, text = batch.image.to(device), batch.text.to(device)
    if before is not None:
        text = text._replace(x=before(text.x, text.mask))
    optimizer.zero_grad()
    loss = model.loss(model.embed_images(image), model.embed_texts(text), image.image_ids)
    loss.backward()
    optimizer.step()
    return loss.detach()


def token_ids(encoder: BertEncoder, captions: list[str]) -> RaggedFeatures:
    """The token ids of each caption as its set, (n, 1)."""
    found = encoder.tokenizer(captions, truncation=True, max_length=encoder.max_length)["input_ids"]
    return RaggedFeatures.from_sets([np.array(ids, np.float32)[:, None] for ids in found])


def frozen_layers(network: Any, trained: int) -> Before:
    """The network without its last layers."""
    frozen = copy.deepcopy(network).eval().requires_grad_(False)
    frozen.pooler = None
    frozen.encoder.layer = frozen.encoder.layer[: len(frozen.encoder.layer) - trained]

    @torch.no_grad()
    def before(ids: Tensor, mask: Tensor) -> Tensor:
        return frozen(input_ids=ids.squeeze(-1).long(), attention_mask=mask.long()).last_hidden_state

    return before


def ones(count: int, width: int) -> RaggedFeatures:
    """Sets of one vector, as the tail would give them."""
    return RaggedFeatures(np.ones((count, width), np.float32), np.arange(count + 1))
