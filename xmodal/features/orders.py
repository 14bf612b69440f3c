"""The order of the training pairs: which of them make a batch, and which batch comes when."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import Sampler

BATCHES_PER_WINDOW = 50  # within which pairs are ordered by length; as in Hugging Face's LengthGroupedSampler

Batches = list[np.ndarray]  # numbers of the pairs of each batch


class EpochShuffle(Sampler[int]):
    """All of ``0 … count − 1`` in an order that depends on seed and epoch alone, so that a resumed run continues it.

    Lightning calls ``set_epoch``; without it every pass counts as the next epoch.
    """

    def __init__(self, count: int, seed: int, epoch: int = 0) -> None:
        self.count = count
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        # two numbers, not their sum: epoch 1 of seed 0 is not epoch 0 of seed 1
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(int(state)))
        self.epoch += 1
        return iter(order.tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch


class EpochBatches(Sampler[list[int]]):
    """Batches that are drawn anew for each epoch, from seed and epoch alone, so that a resumed run continues them.

    An element is a whole batch. So where Lightning shares out the elements among W processes, each process takes
    whole batches, all the same number: where W does not divide it, up to W − 1 batches are trained on twice.
    Lightning calls ``set_epoch``; without it every pass is the same, because loaders with workers and the sharing out
    begin passes that they don't use.

    Args:
        draw: all batches of an epoch from a random generator, always the same number.
    """

    def __init__(self, draw: Callable[[np.random.Generator], Batches], seed: int, epoch: int = 0) -> None:
        self.draw = draw
        self.seed = seed
        self.epoch = epoch
        self._count = len(draw(np.random.default_rng(seed)))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.draw(np.random.default_rng([self.seed, self.epoch]))
        return iter([batch.tolist() for batch in batches])

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of the next passes."""
        self.epoch = epoch


def batches_by_length(lengths: Int[np.ndarray, "P"], batch_size: int, random: np.random.Generator) -> Batches:
    """Batches of pairs of nearly equal length: shuffled, ordered by length within windows of some 50 batches, cut.

    Every pair is in one batch; all batches but one are full. They come in random order.

    Args:
        lengths: of the caption of each of P pairs, in vectors.
    """
    if not len(lengths):
        return []
    order = random.permutation(len(lengths))
    batches = -(-len(order) // batch_size)
    windows = max(1, round(batches / BATCHES_PER_WINDOW))
    bounds = np.linspace(0, batches, windows + 1).round().astype(int)[1:-1] * batch_size
    ordered = [part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, bounds)]
    return _shuffled(np.split(np.concatenate(ordered), range(batch_size, len(order), batch_size)), random)


def batches_by_image(
    images: Int[np.ndarray, "P"], batch_size: int, together: int, random: np.random.Generator
) -> Batches:
    """Batches of ``⌊batch_size / k⌋`` images with k captions each, where an image has as many left.

    The captions of an image are shuffled and parted into groups of k, and one group of the r that are left over. A
    batch holds groups of one size, all of different images: so of no image more than k captions, and of all the same
    number. Every pair is in one batch, and the number of batches depends on the counts alone. Groups of r give batches
    of ``⌊batch_size / r⌋`` images. They come in random order.

    Args:
        images: image of each of P pairs.
        together: k, from 1 to ``batch_size``.
    """
    order = random.permutation(len(images))
    order = order[np.argsort(images[order], kind="stable")]
    _, firsts, counts = np.unique(images[order], return_index=True, return_counts=True)
    within = np.arange(len(order)) - np.repeat(firsts, counts)
    group = within // together
    sizes = np.minimum(together, np.repeat(counts, counts) - group * together)
    group[sizes < together] = -1  # what is left over is one group of its image, whichever number it would have
    batches: Batches = []
    for size, number in np.unique(np.stack([sizes, group], axis=1), axis=0):
        groups = order[(sizes == size) & (group == number)].reshape(-1, size)
        groups = groups[random.permutation(len(groups))]
        parts = -(-len(groups) // (batch_size // size))
        batches += [part.ravel() for part in np.array_split(groups, parts)]  # nearly equal, no tiny last one
    return _shuffled(batches, random)


def batching_faults(batch_size: int, group_by_length: bool, captions_together: int) -> list[str]:
    """What is wrong with the settings of batches."""
    faults = []
    if batch_size < 1:
        faults.append(f"data.batch_size must be at least 1, found {batch_size}.")
    elif not 1 <= captions_together <= batch_size:
        faults.append(
            f"data.captions_together must be from 1 to data.batch_size={batch_size}, found {captions_together}."
        )
    if group_by_length and captions_together != 1:
        faults.append(
            f"data.group_by_length=true and data.captions_together={captions_together} exclude one another: captions "
            "of one image differ in length. Set data.group_by_length=false, or data.captions_together=1."
        )
    return faults


def _shuffled(batches: Batches, random: np.random.Generator) -> Batches:
    return [batches[place] for place in random.permutation(len(batches))]
