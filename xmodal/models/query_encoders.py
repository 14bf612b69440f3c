"""The encoders behind a trained model: they encode new photos and sentences, and travel in its checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from PIL.Image import Image

from xmodal import __version__
from xmodal.encoders.protocol import Encoder
from xmodal.errors import FeatureError, WeightsError
from xmodal.features.extract import encode_all
from xmodal.types import RaggedFeatures

Modality = Literal["image", "text"]


class QueryEncoders:
    """Image and text encoder of one model, prepared when first used.

    Args:
        config: the run's resolved configuration (plain containers). ``config["query_encoders"][modality]`` configures
            the encoder of new items; it is ``None`` where features were precomputed by an unnamed network.
        prepared: encoders that are ready to use, by modality.
        states: what encoders without an entry in ``prepared`` are restored from.
        fingerprints: what a restored encoder must be equal to.
    """

    def __init__(
        self,
        config: dict[str, Any],
        prepared: Mapping[str, Encoder] | None = None,
        states: Mapping[str, dict[str, Any]] | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.device = torch.device("cpu")  # where items are encoded; the model sets it to its own
        self._prepared = dict(prepared or {})
        self._states = dict(states or {})
        self._fingerprints = dict(fingerprints or {})
        for modality, encoder in self._prepared.items():
            self._states[modality] = encoder.state()
            self._fingerprints[modality] = canonical(encoder.fingerprint())

    @classmethod
    def from_checkpoint(cls, content: dict[str, Any]) -> "QueryEncoders":
        """Inverse of `checkpoint`."""
        return cls(content["config"], states=content["states"], fingerprints=content["fingerprints"])

    def checkpoint(self) -> dict[str, Any]:
        """Plain containers and tensors: version, resolved config, states and fingerprints of the encoders."""
        return {
            "version": __version__,
            "config": self.config,
            "states": self._states,
            "fingerprints": self._fingerprints,
        }

    @property
    def fine_tuned(self) -> list[Modality]:
        """The sides whose encoders have trainable layers, which the model holds as tails of its towers."""
        sides: tuple[Modality, ...] = ("image", "text")
        return [side for side in sides if self.config[f"{side}_encoder"].get("trainable_layers", 0) != 0]

    def image_features(self, images: Sequence[str | Path | Image]) -> RaggedFeatures:
        """Features of photos given as files or PIL images; of an encoder with trainable layers, those at its cut."""
        paths_or_pictures = [Path(image) if isinstance(image, str) else image for image in images]
        return encode_all(self.encoder("image"), paths_or_pictures)

    def text_features(self, texts: Sequence[str]) -> RaggedFeatures:
        """Features of sentences; of an encoder with trainable layers, those at its cut."""
        return encode_all(self.encoder("text"), list(texts))

    def encoder(self, modality: Modality) -> Encoder:
        """The prepared encoder of one side.

        Raises:
            FeatureError: its features were precomputed and ``made_by`` names no encoder.
            WeightsError: its weights are not those that the model was trained with.
        """
        if modality not in self._prepared:
            self._prepared[modality] = self._restore(modality)
        self._prepared[modality].to(self.device)
        return self._prepared[modality]

    def _restore(self, modality: Modality) -> Encoder:
        encoder_config = self.config["query_encoders"][modality]
        if encoder_config is None:
            raise FeatureError(
                f"The {modality} features of this model were read from {self.config[f'{modality}_encoder']['path']}; "
                f"which network made them is not recorded, so a new {modality} can't be encoded. Train with "
                f"{modality}_encoder.made_by=<encoder> (the name of a file in conf/{modality}_encoder/)."
            )
        encoder: Encoder = instantiate(encoder_config)
        if state := self._states.get(modality):
            encoder.restore(state)
        else:
            encoder.prepare([], Path(self.config["paths"]["cache_dir"]))
        self._compare(modality, encoder)
        return encoder

    def _compare(self, modality: Modality, encoder: Encoder) -> None:
        expected = self._fingerprints.get(modality)
        found = canonical(encoder.fingerprint())
        if expected is not None and found != expected:
            raise WeightsError(
                f"The {modality} encoder found here is not the one this model was trained with, so its embeddings "
                f"would mean nothing.\n  trained with: {expected}\n  found now:    {found}\n"
                "Restore the weights it names, or train again."
            )
        width = self.config["model"][f"{modality}_tower"]["feature_dim"]
        if modality in self.fine_tuned:  # the width behind the tail; its parameters are compared when they are loaded
            return
        if encoder.feature_dim != width:
            raise FeatureError(
                f"{modality}_encoder.made_by: the encoder gives vectors of width {encoder.feature_dim}, but the "
                f"precomputed features of this model have width {width}. Name the encoder that made them."
            )


def canonical(fingerprint: dict[str, Any]) -> str:
    """A fingerprint as a string that equal ones have in common; JSON."""
    return json.dumps(fingerprint, sort_keys=True, default=str)
