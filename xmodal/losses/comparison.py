"""Who is compared with whom: the matches and the negatives that every loss has in common."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xmodal.errors import ConfigError


class EmbeddedPairs(NamedTuple):
    """P matching pairs, embedded: row p of both sides belongs to the image ``image_ids[p]``.

    ``labels``, where given, say what a match is: items of one label, rather than of one image.
    """

    image: Float[Tensor, "P E"]
    text: Float[Tensor, "P E"]
    image_ids: Int[Tensor, "P"]
    labels: Int[Tensor, "P"] | None = None

    @property
    def groups(self) -> Int[Tensor, "P"]:
        """Items of one group match."""
        return self.image_ids if self.labels is None else self.labels


class Comparison(NamedTuple):
    """A anchors, C candidates, and what each candidate is to each anchor.

    A candidate is a match (``positives``), a negative (``negatives``) or, where it is neither, left out.
    """

    anchors: Float[Tensor, "A E"]
    candidates: Float[Tensor, "C E"]
    positives: Bool[Tensor, "A C"]
    negatives: Bool[Tensor, "A C"]


def across(
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    image_ids: Int[Tensor, "B"],
    labels: Int[Tensor, "B"] | None = None,
    memory: EmbeddedPairs | None = None,
    siblings: str = "mask",
) -> tuple[Comparison, Comparison]:
    """Images with texts, and texts with images; candidates are the other side of the batch, then that of the memory.

    Candidate b is anchor b's own match. Other items of the same image (with labels: of the same label), its siblings,
    are never negatives.

    Args:
        siblings: ``mask`` leaves them out, ``positive`` counts them as matches.
    """
    pairs = EmbeddedPairs(image, text, image_ids, labels)
    images, texts = (None, None) if memory is None else (memory.image, memory.text)
    from_image = _one_way(pairs, image, text, memory, texts, siblings)
    return from_image, _one_way(pairs, text, image, memory, images, siblings)


def within(
    side: str,
    image: Float[Tensor, "B E"],
    text: Float[Tensor, "B E"],
    image_ids: Int[Tensor, "B"],
    labels: Int[Tensor, "B"] | None = None,
    memory: EmbeddedPairs | None = None,
) -> Comparison:
    """Items of one side with one another: other captions of the same image, or other items of the same label, match.

    An item is not compared with itself: an image not with the same image in another pair of the batch or memory. Texts
    have no ids, so a text is known only by its place in the batch: where the memory is longer than an epoch, or a
    sampler repeats items, the same text in another place counts as a match of itself, at a distance near 0.

    Args:
        side: ``image`` or ``text``.
    """
    pairs = EmbeddedPairs(image, text, image_ids, labels)
    anchors: Tensor = getattr(pairs, side)
    candidates, groups = _with_memory(pairs, anchors, memory, None if memory is None else getattr(memory, side))
    same = pairs.groups[:, None] == groups[None, :]
    return Comparison(anchors, candidates, same & ~_itself(pairs, side, memory), ~same)


def _one_way(
    pairs: EmbeddedPairs,
    anchors: Float[Tensor, "B E"],
    others: Float[Tensor, "B E"],
    memory: EmbeddedPairs | None,
    remembered: Float[Tensor, "M E"] | None,
    siblings: str,
) -> Comparison:
    candidates, groups = _with_memory(pairs, others, memory, remembered)
    same = pairs.groups[:, None] == groups[None, :]
    own = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
    return Comparison(anchors, candidates, same if siblings == "positive" else own, ~same)


def _with_memory(
    pairs: EmbeddedPairs, own: Float[Tensor, "B E"], memory: EmbeddedPairs | None, remembered: Tensor | None
) -> tuple[Float[Tensor, "C E"], Int[Tensor, "C"]]:
    """Candidates of the batch, then of the memory, and their groups."""
    if memory is None or remembered is None:
        return own, pairs.groups
    return torch.cat([own, remembered.to(own.dtype)]), torch.cat([pairs.groups, memory.groups])


def _itself(pairs: EmbeddedPairs, side: str, memory: EmbeddedPairs | None) -> Bool[Tensor, "B C"]:
    count = len(pairs.image_ids)
    if side == "image":
        ids = pairs.image_ids if memory is None else torch.cat([pairs.image_ids, memory.image_ids])
        return pairs.image_ids[:, None] == ids[None, :]
    width = count if memory is None else count + len(memory.image_ids)
    return torch.eye(count, width, dtype=torch.bool, device=pairs.image_ids.device)


def evaluate(loss: nn.Module, pairs: EmbeddedPairs, memory: EmbeddedPairs | None = None) -> Float[Tensor, ""]:
    """The loss of a batch; labels and memory go to those losses that take them.

    One that takes no labels gets them in place of the image ids: numbers that matches have in common.
    """
    parameters = accepted(loss)
    extra: dict[str, Any] = {}
    if "labels" in parameters:
        extra["labels"] = pairs.labels
    if memory is not None and "memory" in parameters:
        extra["memory"] = memory
    ids = pairs.image_ids if "labels" in parameters else pairs.groups
    found: Tensor = loss(pairs.image, pairs.text, ids, **extra)
    return found


def accepted(loss: nn.Module) -> frozenset[str]:
    """Names of the parameters of a loss's ``forward``."""
    return _parameters(type(loss).forward)


def takes_memory(loss: nn.Module) -> bool:
    """Whether a loss compares a batch with a memory; one that is made of others is asked by ``takes_memory()``."""
    asked: Any = getattr(loss, "takes_memory", None)
    return bool(asked()) if callable(asked) else "memory" in accepted(loss)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def figures_of(loss: nn.Module) -> dict[str, Tensor]:
    """What a loss has to tell of its last batch; nothing where it has no ``figures``."""
    told: Any = getattr(loss, "figures", None)
    return dict(told()) if callable(told) else {}


def choice_faults(chosen: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for each parameter whose value is none of its choices."""
    return [
        f"loss.{name} must be one of {', '.join(choices[name])}; found {value!r}"
        for name, value in chosen.items()
        if value not in choices[name]
    ]


def cosine_similarity(a: Float[Tensor, "A E"], b: Float[Tensor, "C E"]) -> Float[Tensor, "A C"]:
    """Cosine of the angle between each a (row) and each b (column), in float32 at least, also under autocast.

    A zero vector has the cosine 0 to everything, with a bounded gradient.
    """
    with torch.autocast(device_type=a.device.type, enabled=False):
        return unit(at_least_float32(a)) @ unit(at_least_float32(b)).T


def zero_of(*embeddings: Float[Tensor, "_ E"]) -> Float[Tensor, ""]:
    """0 with a gradient of 0; NaN where an embedding is not finite."""
    return torch.stack([(0.0 * at_least_float32(one)).sum() for one in embeddings]).sum()


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself, or in float32 where it is of half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit(x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """Rows of length 1; a zero row stays zero, with a bounded gradient."""
    norm = x.norm(dim=1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1.0)


def require(faults: list[str]) -> None:
    """Raise ConfigError where there are faults."""
    if faults:
        raise ConfigError(faults)
