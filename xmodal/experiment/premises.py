"""What a run takes for granted of its data and its processes, looked at once both are known."""

import logging
import math
import re

import numpy as np
from omegaconf import DictConfig

from xmodal.config.values import value_of
from xmodal.data.items import Items
from xmodal.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def check_premises(cfg: DictConfig, items: Items, processes: int) -> None:
    """Refuse a run that has nothing to learn from or to be judged by; warn of settings that do not do what they say.

    Raises:
        DataError: relevance is by label, and images have none, or those to train on all have the same.
        ConfigError: the monitored figure is of searches in which nothing has a match.
    """
    if cfg.get("relevance") == "label":
        _require_negatives(items)
    _require_matches(cfg, items)
    _warn_of_statistics(cfg, processes)
    _warn_of_warmup(cfg, items, processes)


def _labels(items: Items, role: str, kind: str) -> np.ndarray:
    """Of the images of a role, or of its texts, each of which has that of its image."""
    rows = items.image_rows(role) if kind == "image" else items.caption_images[items.caption_rows(role)]
    labels: np.ndarray = items.labels[rows]
    return labels


def _require_negatives(items: Items) -> None:
    labels = _labels(items, "train", "text")
    if len(np.unique(labels)) > 1:
        return
    raise DataError(
        f"relevance=label: all items of {items.name} to train on have the label {labels[0]!s}, so that there is "
        "nothing to tell them from. Train on images of other labels too (data.splits.train=[…]), or go by pairs: "
        "relevance=instance."
    )


def _require_matches(cfg: DictConfig, items: Items) -> None:
    """An item is no match of its own: images are found by images, and texts by texts, only where labels are shared."""
    found = re.search(r"\b(i2i|t2t)_", cfg.monitor)
    if found is None:
        return
    kind = {"i2i": "image", "t2t": "text"}[found[1]]
    labels = _labels(items, "val", kind)
    if len(np.unique(labels)) < len(labels):
        return
    raise ConfigError(
        f"monitor={cfg.monitor}: no two of the {len(labels)} {kind}s of {items.name} to validate on share a label, so "
        "that none has a match and there is no such figure. Choose monitor=val/rsum, or other images: "
        "data.splits.val=[…]."
    )


def _warn_of_statistics(cfg: DictConfig, processes: int) -> None:
    keys = [
        f"model.{side}_tower.{projection}"
        for side in ("image", "text")
        for projection in ("projection", "vector_projection")
        if value_of(cfg, f"model.{side}_tower.{projection}.batch_norm") is True
        and value_of(cfg, f"model.{side}_tower.{projection}.num_layers") not in (0, 1)  # no hidden layer, no norm
    ]
    if keys and processes > 1 and not cfg.trainer.get("sync_batchnorm"):
        log.warning(
            "%s.batch_norm=true: each of the %d processes normalises over its own pairs alone. On GPUs, "
            "trainer.sync_batchnorm=true takes the statistics over all of them.",
            keys[0],
            processes,
        )


def _warn_of_warmup(cfg: DictConfig, items: Items, processes: int) -> None:
    warmup, steps = value_of(cfg, "scheduler.warmup_steps") or 0, _most_steps(cfg, items, processes)
    of_loss = value_of(cfg, "loss.warmup_steps") or 0
    if of_loss > steps:
        log.warning(
            "loss.warmup_steps=%d: the run has %d optimizer steps, so that it ends before the hardest negatives alone "
            "count. Lower it.",
            of_loss,
            steps,
        )
    if warmup >= 1 and warmup >= steps:
        log.warning(
            "scheduler.warmup_steps=%d: the run has %d optimizer steps, so that it ends before the learning rate is "
            "optimizer.lr. Lower it; a number below 1 is a share of all steps (0.05).",
            warmup,
            steps,
        )


def _most_steps(cfg: DictConfig, items: Items, processes: int) -> int | float:
    """Optimizer steps of the run, were all batches of an epoch taken; inf where nothing limits them."""
    epochs, steps = cfg.trainer.get("max_epochs", -1), cfg.trainer.get("max_steps", -1)
    batches = math.ceil(len(items.caption_rows("train")) / (cfg.data.batch_size * processes))
    each = math.ceil(batches / cfg.trainer.get("accumulate_grad_batches", 1))
    limits = [each * epochs if epochs is not None and epochs >= 0 else math.inf, steps if steps >= 0 else math.inf]
    return min(limits)
