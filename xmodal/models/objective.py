"""What a training step minimises: the loss over a batch, over what other processes hold, and over a memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from xmodal.errors import ConfigError
from xmodal.losses.comparison import EmbeddedPairs, evaluate, figures_of, takes_memory, unit

RELEVANCES = ("instance", "label")


class Objective(nn.Module):
    """The loss of a batch of embedded pairs, with what the loss itself need not know about.

    Args:
        loss: maps image (B, E), text (B, E), image ids (B,) to a scalar; ``labels`` and ``memory`` are handed to those
            losses that take them.
        relevance: what training takes for a match: items of one image (``instance``) or of one ``label``.
        cross_batch_memory: embeddings of so many pairs of the batches before are kept as further candidates, without
            gradient (Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020); 0: none. Where processes do
            not gather, each keeps a memory of its own; a checkpoint holds that of the first, with which all go on.
        matryoshka: sizes d below E whose first d dimensions are to be good embeddings as well: the loss is the mean
            of the loss at each size and at E (Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022,
            equation 1, with equal weights).
        seed: of what the loss draws.
        normalize: embeddings have length 1; their first dimensions are brought to it as well.

    Raises:
        ConfigError: values out of range, or a memory that the loss has no use for; all faults at once.
    """

    labels: Tensor | None

    def __init__(
        self,
        loss: nn.Module,
        relevance: Literal["instance", "label"] = "instance",
        cross_batch_memory: int = 0,
        matryoshka: Sequence[int] | None = None,
        seed: int = 0,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        faults = _faults(relevance, cross_batch_memory, matryoshka or ())
        if cross_batch_memory and not takes_memory(loss):
            why = "none of its terms takes a" if hasattr(loss, "takes_memory") else "its forward takes no"
            faults.append(
                f"cross_batch_memory={cross_batch_memory}: {type(loss).__name__} compares the pairs of a batch alone "
                f"({why} memory). Choose another loss, or cross_batch_memory=0."
            )
        if faults:
            raise ConfigError(faults)
        self.loss = loss
        self.relevance = relevance
        self.cross_batch_memory = cross_batch_memory
        self.sizes = tuple(sorted(set(matryoshka or ())))
        self.seed = seed
        self.normalize = normalize
        self.memory: EmbeddedPairs | None = None
        self.register_buffer("labels", None, persistent=False)

    def use_labels(self, labels: np.ndarray) -> None:
        """Give the label of every image of the data set, by its row; needed where relevance is by label."""
        codes = np.unique(labels, return_inverse=True)[1]
        self.labels = torch.from_numpy(codes.astype(np.int64))

    def at_step(self, step: int, seed: Sequence[int]) -> None:
        """Tell the loss, and losses within it, which optimizer step comes next.

        Args:
            step: optimizer steps so far.
            seed: of this step; equal in processes that are to draw alike.
        """
        drawn = int(np.random.SeedSequence([self.seed, *seed]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        for part in self.loss.modules():
            told: Any = getattr(part, "at_step", None)
            if callable(told):
                told(step, drawn)

    def forward(self, pairs: EmbeddedPairs) -> Float[Tensor, ""]:
        """The loss of a batch; in training with the memory as further candidates, which then takes in the batch.

        Raises:
            RuntimeError: relevance is by label, and no labels were given.
        """
        pairs = self._labelled(pairs)
        memory = None
        if self.training and self.memory is not None:
            memory = self._labelled(_like(pairs, self.memory))
        width = pairs.image.shape[1]
        losses = [self._at_size(size, pairs, memory) for size in (*self.sizes_below(width), width)]
        if self.training and self.cross_batch_memory:
            self._remember(pairs)
        return torch.stack(losses).mean()

    def sizes_below(self, width: int) -> list[int]:
        """The Matryoshka sizes of embeddings of this width."""
        return [size for size in self.sizes if size < width]

    def first_of(self, size: int, embeddings: Float[Tensor, "N E"]) -> Float[Tensor, "N d"]:
        """The first d dimensions as embeddings of their own: of length 1 where the whole ones are."""
        first = embeddings[:, :size]
        return unit(first) if self.normalize else first

    def figures(self) -> dict[str, Tensor]:
        """What the loss has to tell of its last batch."""
        return figures_of(self.loss)

    def remembered(self) -> dict[str, Tensor]:
        """The memory as plain tensors, for a checkpoint; nothing where there is none (yet)."""
        if self.memory is None:
            return {}
        parts = {"image": self.memory.image, "text": self.memory.text, "image_ids": self.memory.image_ids}
        return {name: part.clone() for name, part in parts.items()}  # of the memory alone, not of what it was cut from

    def remember_again(self, remembered: Mapping[str, Tensor]) -> None:
        """Go on with what `remembered` gave; as much of it as the memory holds."""
        if remembered and self.cross_batch_memory:
            self.memory = EmbeddedPairs(**{name: part[-self.cross_batch_memory :] for name, part in remembered.items()})

    def _at_size(self, size: int, pairs: EmbeddedPairs, memory: EmbeddedPairs | None) -> Float[Tensor, ""]:
        return evaluate(self.loss, self._first(size, pairs), None if memory is None else self._first(size, memory))

    def _first(self, size: int, pairs: EmbeddedPairs) -> EmbeddedPairs:
        if size == pairs.image.shape[1]:
            return pairs
        return pairs._replace(image=self.first_of(size, pairs.image), text=self.first_of(size, pairs.text))

    def _labelled(self, pairs: EmbeddedPairs) -> EmbeddedPairs:
        if self.relevance == "instance":
            return pairs
        if self.labels is None:
            raise RuntimeError("Matches are those of one label: give the labels of all images with use_labels first.")
        return pairs._replace(labels=self.labels[pairs.image_ids])

    def _remember(self, pairs: EmbeddedPairs) -> None:
        """Keep the last pairs, without their labels, which follow from the ids of their images.

        Pairs that are not finite are not kept: they would spoil all batches until they have left the memory.
        """
        finite = pairs.image.isfinite().all(dim=1) & pairs.text.isfinite().all(dim=1)
        kept = [part.detach()[finite] for part in pairs[:3] if part is not None]
        if self.memory is not None:
            old = _like(pairs, self.memory)[:3]
            kept = [torch.cat([a, b]) for a, b in zip(old, kept, strict=True) if a is not None]
        image, text, image_ids = (part[-self.cross_batch_memory :] for part in kept)
        self.memory = EmbeddedPairs(image, text, image_ids)


def _like(pairs: EmbeddedPairs, remembered: EmbeddedPairs) -> EmbeddedPairs:
    """The memory where a batch is, and of its type."""
    image, text = remembered.image.to(pairs.image), remembered.text.to(pairs.text)
    return EmbeddedPairs(image, text, remembered.image_ids.to(pairs.image_ids))


def _faults(relevance: str, memory: int, sizes: Sequence[int]) -> list[str]:
    faults = []
    if relevance not in RELEVANCES:
        faults.append(f"relevance must be {' or '.join(RELEVANCES)}, found {relevance!r}.")
    if memory < 0:
        faults.append(f"cross_batch_memory must be a number of pairs of at least 0, found {memory}.")
    if wrong := [size for size in sizes if size < 1]:
        faults.append(f"matryoshka must list sizes of at least 1, found {', '.join(map(str, wrong))}.")
    return faults
