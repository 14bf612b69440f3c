"""What every encoder offers, and in which order it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from xmodal.types import FeatureSet

TrainableLayers = int | Literal["all"]  # layers at the end of an encoder that are trained; 0: it stays frozen


@runtime_checkable
class Encoder(Protocol):
    """A frozen network that turns one photo or caption into a set of vectors (n, D).

    Life of an encoder::

        encoder = VGGEncoder(...)                  # cheap: parameters are checked, nothing is read
        faults = encoder.check()                   # quick: plain sentences about files that are absent
        encoder.prepare(captions, cache_dir)       # loads weights, or makes them from the TRAINING captions
        encoder.fingerprint()                      # what the features depend on
        encoder.to(device)
        sets = encoder.encode([encoder.preprocess(item) for item in items])

    A checkpoint stores ``state()``; ``restore(state)`` on an encoder built with the same parameters replaces
    ``prepare``. ``preprocess`` is a static method, so that handing it to a worker process takes no network along.
    """

    modality: Literal["image", "text"]
    batch_size: int

    if TYPE_CHECKING:  # Python 3.11's isinstance would read the property, which an unprepared encoder refuses

        @property
        def feature_dim(self) -> int:
            """Width D of the vectors; known after ``prepare`` or ``restore``."""
            ...

    def check(self) -> list[str]:
        """One sentence per named file or folder that is absent or of the wrong kind; loads nothing."""
        ...

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights, or make them from the training captions, kept under ``cache_dir``.

        A second call does nothing.

        Raises:
            WeightsError: the weights can't be had, or don't fit.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able: class name, every parameter that changes the vectors, sha256 of the weights in use."""
        ...

    def preprocess(self, item: Any) -> Any:
        """A PIL image in RGB → tensor; a caption → str or list of words."""
        ...

    def encode(self, batch: list[Any]) -> list[FeatureSet]:
        """Outputs of ``preprocess`` → one float32 set on the CPU per item; an empty set is (0, D)."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move the network to a device."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must carry besides the constructor's parameters: plain containers and CPU tensors."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``: afterwards the encoder is prepared.

        Raises:
            WeightsError: weights that the state only names are absent or have changed.
        """
        ...


@runtime_checkable
class Sizing(Protocol):
    """An encoder that knows beforehand how much work each item is, so that batches are made of items alike."""

    def sizes(self, items: Sequence[Any]) -> list[int]:
        """One number per item (photo file, PIL image or caption): items of one number need no padding together.

        A function of the items alone, so that an extraction that is continued makes the same batches. Called in
        another thread than ``encode``, but never beside ``collate`` of the same text encoder.
        """
        ...


@runtime_checkable
class Collating(Protocol):
    """An encoder whose ``encode`` also takes what ``collate`` made of a batch, ahead, in another thread."""

    def collate(self, batch: list[Any]) -> Any:
        """Outputs of ``preprocess`` → one batch as the network wants it (stacked, tokenised, padded), on the CPU."""
        ...


@runtime_checkable
class Counting(Protocol):
    """An encoder that knows beforehand how many vectors it will give, at most."""

    def most_vectors(self, items: Sequence[Any]) -> int:
        """No set of vectors of these items together is larger; exact where every item gives one vector."""
        ...


@runtime_checkable
class WordTable(Protocol):
    """An encoder that gives a word the same vector wherever it stands, so that a table and codes can be stored."""

    def words(self, item: str) -> list[str]:
        """The words of a caption, those without a vector too."""
        ...

    def known(self, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
        """Those of the distinct ``words`` that have a vector, in the order given, and the vectors (V, D) float32."""
        ...


@runtime_checkable
class FineTuned(Protocol):
    """An encoder whose last layers can be trained.

    With ``trainable_layers`` = N > 0 its sets are what comes out of the frozen part, at the cut, and its
    ``feature_dim`` is their width there. With ``"all"`` nothing is frozen and its sets are the inputs: of a photo one
    vector of all pixel values (1, 3·H·W), of a caption its token ids (n, 1).
    """

    trainable_layers: TrainableLayers

    def tail(self) -> nn.Module:
        """The layers behind the cut with the encoder's own weights, as a new `Tail`; known after ``prepare``."""
        ...


class Tail(Protocol):
    """The trainable layers behind the cut: sets of vectors at the cut → the sets that the frozen encoder would give.

    A ``torch.nn.Module``; ``forward(x, mask)`` takes x (B, L, D), mask (B, L) and returns (B, M, F), (B, M) with
    F = ``output_dim``. With a true attribute ``learns_with_heads`` (see `xmodal.encoders.trainable`) it is trained at
    the optimizer's own rate and from the first epoch on, as what starts from random numbers has to be.
    """

    output_dim: int
