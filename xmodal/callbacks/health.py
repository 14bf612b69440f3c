"""Says in plain words when a training run has collapsed, overfits or learns nothing, and what to try."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from xmodal.callbacks.diagnosis import DIVERGED, Finding, Limits, Reading, are_numbers, diagnose, diverged
from xmodal.callbacks.remedies import Treated, remedies
from xmodal.callbacks.retrieval import EmbeddedSplit, RetrievalEvaluation
from xmodal.errors import ConfigError, XmodalError
from xmodal.losses.comparison import EmbeddedPairs
from xmodal.models.dual_encoder import DualEncoder
from xmodal.retrieval.geometry import alignment, effective_rank, mean_similarity, sample, uniformity

log = logging.getLogger(__name__)

_SIDES = {"t2i": ("image", "text"), "i2i": ("image",), "t2t": ("text",)}  # that take part in a search
_SEED = 0  # of samples: the same rows in every epoch, so that curves are smooth


class TrainingHealth(pl.Callback):
    """Logs how the embeddings of a validation lie in their space, and warns of what is wrong, once per kind.

    Logs ``val/alignment``, ``val/image_uniformity``, ``val/image_similarity`` (mean over pairs), and
    ``val/image_effective_rank``, the same of ``text`` (`xmodal.retrieval.geometry`); where the loss counts active
    triplets or negatives, ``val/active_triplets``, of validation pairs in batches of the usual size.

    In training it warns, in one line each, of embeddings that are one point (COLLAPSED) or lie in a plane (FLAT), of a
    model that learns nothing (NOT LEARNING), of one that is past its best (OVERFITTING), and of a loss that is no
    number any more (DIVERGED), with the figures found and settings to try that this run does not have yet.

    Args:
        monitor: the figure that the best epoch is chosen by.
        stop: end training at the first finding; the best epoch so far is tested as usual.
        max_similarity: COLLAPSED: the mean cosine similarity of a side is above this, and recall near chance.
        min_effective_rank: FLAT: a side differs in fewer directions.
        near_chance: recall is near chance where the mean rank of a caption's image is above this share of what random
            order gives. (Where a figure of ``i2i`` or ``t2t`` is monitored, it is that search that is judged.)
        patience: validations before NOT LEARNING, and below the best one before OVERFITTING.
        drop: share of its best value that the monitored figure has lost where OVERFITTING is said.
        sample_size: items of a side that uniformity and effective rank are taken of, at most.

    Raises:
        ConfigError: values out of range, all of them at once.
    """

    def __init__(
        self,
        monitor: str = "val/rsum",
        stop: bool = False,
        max_similarity: float = 0.98,
        min_effective_rank: float = 3.0,
        near_chance: float = 0.8,
        patience: int = 5,
        drop: float = 0.1,
        sample_size: int = 2048,
    ) -> None:
        if sample_size < 2:
            raise ConfigError(f"callbacks.health.sample_size must be at least 2, found {sample_size}.")
        self.limits = Limits(max_similarity, min_effective_rank, near_chance, patience, drop)
        self.monitor = monitor
        way = monitor.rpartition("/")[2].partition("_")[0]
        self._way = way if way in _SIDES else "t2i"
        self.stop = stop
        self.sample_size = sample_size
        self._forget()

    def _forget(self) -> None:
        self._readings: list[Reading] = []
        self._told: set[str] = set()
        self._losses: Tensor | None = None  # sum since the last validation
        self._steps = 0
        self._chance, self._gallery = math.nan, 0
        self._room: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"readings": [reading._asdict() for reading in self._readings], "told": sorted(self._told)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._readings = [Reading(**reading) for reading in state_dict["readings"]]
        self._told = set(state_dict["told"])

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded.

        Raises:
            ConfigError: no retrieval callback stands before this one, which takes the embeddings over from it.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, RetrievalEvaluation) for callback in callbacks[: callbacks.index(self)]):
            raise ConfigError("callbacks.health reads the embeddings that callbacks.retrieval gathers: put it behind.")
        if stage == "fit":
            self._forget()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up losses; now and then see whether there still is one.

        Raises:
            StopIteration: there is none, and training is to stop. It ends the epoch without its validation, which
                would refuse embeddings that are no numbers.
        """
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # by which Lightning has divided it
        self._losses = loss if self._losses is None else self._losses + loss
        self._steps += 1
        often = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # each look waits for the GPU
        if (batch_idx + 1) % often == 0 or trainer.is_last_batch:
            self._require_numbers(trainer, pl_module, loss)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, DualEncoder)
        split = _retrieval(trainer).gathered
        assert split is not None
        figures = geometry(split, self.sample_size)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        figures |= active_shares(pl_module, split, self.sample_size, datamodule.batch_size)
        self._chance, self._gallery = random_order(split, datamodule.labels, self._way)
        labels = pl_module.objective.labels if pl_module.objective.relevance == "label" else None
        most = math.inf if labels is None else int(labels.max())  # C points, one for each label, differ in C − 1
        self._room = {
            side: int(min(len(rows) - 1, rows.shape[1], most))
            for side, rows in (("image", split.image), ("text", split.text))
        }
        pl_module.log_dict({f"val/{name}": value for name, value in figures.items()}, batch_size=1, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judged by what was logged, which is the same in all processes.

        Raises:
            XmodalError: the monitored figure was not.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._readings.append(self._reading(trainer))
        finding = diagnose(self._readings, self.limits, self.monitor)
        if finding is not None:
            self._tell(trainer, pl_module, finding)

    def _reading(self, trainer: pl.Trainer) -> Reading:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._require_monitored(found)
        mean = math.nan
        if self._losses is not None:
            mean = float(trainer.strategy.reduce(self._losses / self._steps, reduce_op="mean"))
        self._losses, self._steps = None, 0
        return Reading(
            epoch=trainer.current_epoch,
            train_loss=mean,
            val_loss=found["val/loss"],
            monitored=found[self.monitor],
            way=self._way,
            rank=found[f"val/{self._way}_meanR"],
            chance=self._chance,
            gallery=self._gallery,
            similarity={side: found[f"val/{side}_similarity"] for side in _SIDES[self._way]},
            effective_rank={side: found[f"val/{side}_effective_rank"] for side in _SIDES[self._way]},
            room={side: self._room[side] for side in _SIDES[self._way]},
        )

    def _require_monitored(self, found: Mapping[str, float]) -> None:
        absent = [name for name in (self.monitor, f"val/{self._way}_meanR") if name not in found]
        if not absent:
            return
        known = [name for name in found if name.startswith("val/")]
        why = "" if self._way == "t2i" else f" (nothing has a match in a search {self._way}, or there are no labels)"
        raise XmodalError(
            f"callbacks.health.monitor={self.monitor}: this validation gave no {absent[0]}{why}. Choose another figure "
            f"with monitor=…; it gave {', '.join(known)}."
        )

    def _require_numbers(self, trainer: pl.Trainer, model: pl.LightningModule, loss: Tensor) -> None:
        # scaled half precision skips the steps whose gradient overflows: then the weights are as they were
        is_over = not bool(loss.isfinite().all()) and not are_numbers(model)
        if not trainer.strategy.reduce_boolean_decision(is_over, all=False):
            return
        self._tell(trainer, model, Finding(DIVERGED, diverged(float(loss), trainer.global_step)))
        if self.stop:
            raise StopIteration

    def _tell(self, trainer: pl.Trainer, model: pl.LightningModule, finding: Finding) -> None:
        assert isinstance(model, DualEncoder)
        if self.stop:
            trainer.should_stop = True
        if finding.kind in self._told:
            return
        self._told.add(finding.kind)
        if trainer.is_global_zero:
            to_try = "; ".join(remedies(finding.kind, Treated(trainer, model)))
            end = " Training ends here (callbacks.health.stop=true)." if self.stop else ""
            log.warning(
                "%s in epoch %d: %s. Try: %s.%s", finding.kind, trainer.current_epoch, finding.evidence, to_try, end
            )


def geometry(split: EmbeddedSplit, sample_size: int) -> dict[str, float]:
    """``alignment``, and of each side ``image_uniformity``, ``image_similarity`` and ``image_effective_rank``."""
    if split.image.device.type == "mps":  # knows no float64
        split = split._replace(image=split.image.cpu(), text=split.text.cpu())
    figures = {"alignment": alignment(split.image, split.text, split.image_of_text)}
    for side, embeddings in (("image", split.image), ("text", split.text)):
        drawn = sample(embeddings, sample_size, _SEED)
        figures[f"{side}_uniformity"] = uniformity(drawn)
        figures[f"{side}_similarity"] = mean_similarity(embeddings)
        figures[f"{side}_effective_rank"] = effective_rank(drawn)
    return figures


@torch.no_grad()
def active_shares(model: DualEncoder, split: EmbeddedSplit, sample_size: int, batch_size: int) -> dict[str, float]:
    """What the loss calls active (``active_triplets``, ``active_negatives``), over a sample of pairs in batches."""
    if not [name for name in model.objective.figures() if name.startswith("active_")]:
        return {}
    owners, device = split.image_of_text, split.image.device
    found: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[device] if split.image.is_cuda else []):
        torch.manual_seed(_SEED)
        for rows in torch.randperm(len(split.text))[:sample_size].split(batch_size):
            ids = split.text_image_ids[rows].to(device)
            model.objective(EmbeddedPairs(split.image[owners[rows]], split.text[rows], ids))
            for name, value in model.objective.figures().items():
                if name.startswith("active_"):
                    found.setdefault(name, []).append(float(value) * len(rows))
    seen = min(sample_size, len(split.text))
    return {name: sum(values) / seen for name, values in found.items()}


def random_order(split: EmbeddedSplit, labels: np.ndarray | None = None, way: str = "t2i") -> tuple[float, int]:
    """Mean over queries of the expected rank of their best match in random order, ``(N + 1) / (R + 1)``; and N.

    R of N items are matches of a query: the caption's own image, or all of its label but itself. Queries without a
    match take no part; NaN where there are no others.

    Args:
        labels: of all images of the data set, where relevance is by class.
        way: of the search, ``t2i``, ``i2i`` or ``t2t``.
    """
    images, texts = split.image_ids.numpy(), split.text_image_ids.numpy()
    if labels is not None:
        images, texts = labels[images], labels[texts]
    queries, gallery = {"t2i": (texts, images), "i2i": (images, images), "t2t": (texts, texts)}[way]
    itself = int(way != "t2i")
    known, counts = np.unique(gallery, return_counts=True)
    matches = counts[np.searchsorted(known, queries)] - itself
    matches, size = matches[matches > 0], len(gallery) - itself
    return (float(np.mean((size + 1) / (matches + 1))) if len(matches) else math.nan), size


def _retrieval(trainer: pl.Trainer) -> RetrievalEvaluation:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, RetrievalEvaluation))
