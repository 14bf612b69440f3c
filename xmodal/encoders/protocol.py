"""What every encoder offers, and in which order it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch

from xmodal.types import FeatureSet


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
