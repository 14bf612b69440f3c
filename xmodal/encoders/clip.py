"""CLIP and SigLIP: photos and captions → embeddings in one space, which was learned from pairs on the web."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from xmodal.encoders.clip_towers import ClipTower, absent_tower, embed, load_tower, tower_from_files
from xmodal.encoders.hub import kept_state, published_model, saved_files, token_counts
from xmodal.encoders.portable import PhotoSets, PortableEncoder, pixels_alone
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.published import Published
from xmodal.encoders.trainable import marked, trainable
from xmodal.encoders.weights import check_probe, freeze, seeded
from xmodal.encoders.wordpiece import train_vocabulary, vocabulary_of, wordpiece_tokenizer
from xmodal.errors import ConfigError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

_POSITIONS = 77  # tokens of a caption, as in the published models of CLIP
_LEGACY_END = 2  # a published model that names this row as its end of text means the largest row instead


class CLIPImageEncoder:
    """Image tower of CLIP (Radford et al., 2021) or SigLIP (Zhai et al., 2023): its projected embedding, a set of one.

    The embedding has the length that the network gives it; zero-shot retrieval compares by cosine.

    Args:
        model: name of the model that ``weights=pretrained`` stands for.
        weights: ``pretrained``, a Hugging Face folder or name, or None: a small CLIP with random weights.
        seed: of random weights.
        hidden_size: width of the random CLIP and of its embeddings.
        num_layers: its layers.
        num_heads: its attention heads.
        image_size: side of its photos in pixels.
        patch_size: side of its patches in pixels.
        trainable_layers: 0 (frozen), or ``all``: the whole network is trained, and the set is one vector of all pixel
            values.
        batch_size: photos per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "image"

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        weights: str | None = None,
        seed: int = 0,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        image_size: int = 224,
        patch_size: int = 32,
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 32,
    ) -> None:
        positive = {"num_layers": num_layers, "patch_size": patch_size, "batch_size": batch_size}
        faults = _faults("image_encoder", positive, hidden_size, num_heads, trainable_layers)
        if patch_size > 0 and (image_size < patch_size or image_size % patch_size):
            faults.append(
                f"image_encoder.image_size must be a multiple of patch_size, found {image_size} and {patch_size}."
            )
        if faults:
            raise ConfigError(faults)
        self.model = model
        self.weights = weights
        self.seed = seed
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.image_size = image_size
        self.patch_size = patch_size
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self._photos = _Photos()
        self._prepared: ClipTower | None = None
        self._from_folder = False  # then a checkpoint carries everything: the folder may go

    @property
    def feature_dim(self) -> int:
        if self.trainable_layers == "all":
            return 3 * self.network.config.image_size**2
        return self._tower().width

    @property
    def network(self) -> Any:
        """The image tower with its projection; known after ``prepare`` or ``restore``."""
        return self._tower().network

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """The model's own image processor, known after ``prepare``; it carries no network."""
        return self._photos

    def check(self) -> list[str]:
        return absent_tower(self.weights, "image_encoder")

    def published(self) -> Published | None:
        return published_model(self.weights, self.model, "image")

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights; captions and cache are not needed.

        Raises:
            WeightsError: they can't be had, or are not of a CLIP or SigLIP model.
        """
        if self._prepared is None:
            self._set(self._obtain())

    def fingerprint(self) -> dict[str, Any]:
        return marked({"encoder": "CLIPImageEncoder", **self._tower().identity()}, self.trainable_layers)

    def collate(self, batch: list[Tensor]) -> Float[Tensor, "B 3 H W"]:
        return torch.stack(batch)

    def most_vectors(self, items: Sequence[Any]) -> int:
        return len(items)

    @torch.inference_mode()
    def encode(self, batch: list[Tensor] | Tensor) -> list[FeatureSet]:
        photos = batch if isinstance(batch, Tensor) else self.collate(batch)
        if self.trainable_layers == "all":
            return list(photos.float().cpu().flatten(1).unsqueeze(1))
        found = embed(self.network, {"pixel_values": photos.to(self.network.device)})
        return list(found.float().cpu().unsqueeze(1))

    def tail(self) -> "CLIPImageTail":
        """The whole tower, with weights of its own."""
        side = self.network.config.image_size
        return CLIPImageTail(trainable(self.network), (3, side, side), self._tower().width)

    def portable(self) -> PortableEncoder:
        processor, side = self._tower().processor, self.network.config.image_size
        return PortableEncoder(
            pixels_alone() if self.trainable_layers == "all" else PhotoSets(self.network, _embedded_photos),
            {"pixels": ("batch", 3, side, side)},
            lambda batch: (self.collate(batch),),
            {"image_processor": "image_processor"},
            {f"image_processor/{name}": content for name, content in saved_files(processor).items()},
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        return kept_state(self.network, self._tower().processor, self._from_folder)

    def restore(self, state: dict[str, Any]) -> None:
        self._from_folder = "files" in state
        kept = tower_from_files(state["files"], state["weights"], "image") if self._from_folder else self._obtain()
        check_probe(kept.network, state, f"image_encoder {self.weights or 'clip'}")
        self._set(kept)

    def _tower(self) -> ClipTower:
        return _ready(self._prepared, "CLIPImageEncoder")

    def _set(self, tower: ClipTower) -> None:
        self._photos.processor = tower.processor
        self._prepared = tower

    def _obtain(self) -> ClipTower:
        if self.weights is None:
            return self._random()
        tower, self._from_folder = load_tower(self.weights, self.model, "image", "image_encoder")
        return tower

    def _random(self) -> ClipTower:
        log.info(f"CLIP uses random weights for photos (seed {self.seed}), because image_encoder.weights=null.")
        config = CLIPVisionConfig(
            **_sizes(self.hidden_size, self.num_layers, self.num_heads),
            image_size=self.image_size,
            patch_size=self.patch_size,
        )
        with seeded(self.seed):
            network = CLIPVisionModelWithProjection(config)
        processor = CLIPImageProcessor(size={"shortest_edge": self.image_size}, crop_size=self.image_size)
        return ClipTower("image", freeze(network), processor)


class CLIPTextEncoder:
    """Text tower of CLIP (Radford et al., 2021) or SigLIP (Zhai et al., 2023): its projected embedding, a set of one.

    Tokens beyond the network's positions are cut off. SigLIP gets every caption padded to its full length, and attends
    to the padding, as it did in its training.

    Args:
        model: name of the model that ``weights=pretrained`` stands for.
        weights: ``pretrained``, a Hugging Face folder or name, or None: a small CLIP with random weights and a
            WordPiece vocabulary learned from the training captions.
        seed: of random weights.
        hidden_size: width of the random CLIP and of its embeddings.
        num_layers: its layers.
        num_heads: its attention heads.
        vocab_size: most word pieces in its vocabulary.
        trainable_layers: 0 (frozen), or ``all``: the whole network is trained, and the set is the token ids (n, 1).
        batch_size: captions per forward pass.

    Raises:
        ConfigError: a parameter is out of range.
    """

    modality: ClassVar[Literal["image", "text"]] = "text"

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        weights: str | None = None,
        seed: int = 0,
        hidden_size: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        vocab_size: int = 8000,
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 64,
    ) -> None:
        positive = {"num_layers": num_layers, "batch_size": batch_size}
        faults = _faults("text_encoder", positive, hidden_size, num_heads, trainable_layers)
        if vocab_size < 100:
            faults.append(f"text_encoder.vocab_size must be at least 100, found {vocab_size}.")
        if faults:
            raise ConfigError(faults)
        self.model = model
        self.weights = weights
        self.seed = seed
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.vocab_size = vocab_size
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self._prepared: ClipTower | None = None
        self._from_folder = False

    @property
    def feature_dim(self) -> int:
        return 1 if self.trainable_layers == "all" else self._tower().width

    @property
    def needs_float32(self) -> bool:
        """Whether sets hold token ids, of which float16 would confuse those above 2048."""
        return self.trainable_layers == "all"

    @property
    def network(self) -> Any:
        """The text tower with its projection; known after ``prepare`` or ``restore``."""
        return self._tower().network

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; known after ``prepare`` or ``restore``."""
        return self._tower().processor

    def check(self) -> list[str]:
        return absent_tower(self.weights, "text_encoder")

    def published(self) -> Published | None:
        return published_model(self.weights, self.model, "text")

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load network and tokenizer, or make them: vocabulary from the captions, weights from the seed.

        Raises:
            WeightsError: they can't be had, or are not of a CLIP or SigLIP model.
        """
        if self._prepared is None:
            vocabulary = train_vocabulary(captions, self.vocab_size) if self.weights is None else []
            self._prepared = self._obtain(vocabulary)

    def fingerprint(self) -> dict[str, Any]:
        return marked({"encoder": "CLIPTextEncoder", **self._tower().identity()}, self.trainable_layers)

    @staticmethod
    def preprocess(item: str) -> str:
        """The caption itself; the tokenizer works on whole batches."""
        return item

    def sizes(self, items: Sequence[str]) -> list[int]:
        """Tokens of each caption, special ones included; SigLIP's padding too."""
        if self._tower().family == "siglip":
            return [self._positions()] * len(items)
        return token_counts(self.tokenizer, items, self._positions())

    def most_vectors(self, items: Sequence[str]) -> int:
        return sum(self.sizes(items)) if self.trainable_layers == "all" else len(items)

    def collate(self, batch: list[str]) -> dict[str, Tensor]:
        """Token ids, padded to the longest caption of the batch (SigLIP: to the full length, without a mask)."""
        is_siglip = self._tower().family == "siglip"
        found = self.tokenizer(
            batch,
            padding="max_length" if is_siglip else "longest",
            truncation=True,
            max_length=self._positions(),
            return_tensors="pt",
        )
        names = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
        return {name: found[name] for name in names}

    @torch.inference_mode()
    def encode(self, batch: list[str] | Mapping[str, Tensor]) -> list[FeatureSet]:
        inputs = batch if isinstance(batch, Mapping) else self.collate(batch)
        if self.trainable_layers == "all":
            ids = inputs["input_ids"]
            kept = inputs.get("attention_mask", torch.ones_like(ids)).bool()
            return [row[mask].float().unsqueeze(1) for row, mask in zip(ids, kept, strict=True)]
        found = embed(self.network, {name: tensor.to(self.network.device) for name, tensor in inputs.items()})
        return list(found.float().cpu().unsqueeze(1))

    def tail(self) -> "CLIPTextTail":
        """The whole tower, with weights of its own."""
        has_mask = self._tower().family == "clip"
        return CLIPTextTail(trainable(self.network), self.tokenizer.pad_token_id, has_mask, self._tower().width)

    def portable(self) -> PortableEncoder:
        is_siglip = self._tower().family == "siglip"
        axes: dict[str, tuple[int | str, ...]] = {"input_ids": ("batch", self._positions() if is_siglip else "length")}
        if not is_siglip:
            axes["attention_mask"] = ("batch", "length")
        return PortableEncoder(
            _TextSets(self.network, is_pooled=self.trainable_layers == 0),
            axes,
            lambda batch: tuple(self.collate(batch)[name] for name in axes),
            {
                "tokenizer": "text_tokenizer",
                "padding": "max_length" if is_siglip else "longest",
                "truncation": True,
                "max_length": self._positions(),
            },
            {f"text_tokenizer/{name}": content for name, content in saved_files(self.tokenizer).items()},
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        learned = {} if self._from_folder or self.weights else {"vocabulary": vocabulary_of(self.tokenizer)}
        return kept_state(self.network, self.tokenizer, self._from_folder) | learned

    def restore(self, state: dict[str, Any]) -> None:
        self._from_folder = "files" in state
        if self._from_folder:
            tower = tower_from_files(state["files"], state["weights"], "text")
        else:
            tower = self._obtain(state.get("vocabulary", []))
        check_probe(tower.network, state, f"text_encoder {self.weights or 'clip'}")
        self._prepared = tower

    def _tower(self) -> ClipTower:
        return _ready(self._prepared, "CLIPTextEncoder")

    def _positions(self) -> int:
        return int(self.network.config.max_position_embeddings)

    def _obtain(self, vocabulary: list[str]) -> ClipTower:
        if self.weights is None:
            return self._random(vocabulary)
        tower, self._from_folder = load_tower(self.weights, self.model, "text", "text_encoder")
        return tower

    def _random(self, vocabulary: list[str]) -> ClipTower:
        log.info(
            f"CLIP uses random weights for captions (seed {self.seed}) and {len(vocabulary)} word pieces learned from "
            "the training captions, because text_encoder.weights=null."
        )
        tokenizer = wordpiece_tokenizer(vocabulary)
        assert tokenizer.sep_token_id != _LEGACY_END
        config = CLIPTextConfig(
            **_sizes(self.hidden_size, self.num_layers, self.num_heads),
            vocab_size=len(vocabulary),
            max_position_embeddings=_POSITIONS,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )
        with seeded(self.seed):
            network = CLIPTextModelWithProjection(config)
        return ClipTower("text", freeze(network), tokenizer)


def _embedded_photos(network: Any, photos: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 F"]:
    return embed(network, {"pixel_values": photos}).unsqueeze(1)


class _TextSets(nn.Module):
    """Token ids and, where the network has one, their mask → a set of one embedding, or of the ids themselves."""

    def __init__(self, network: nn.Module, is_pooled: bool) -> None:
        super().__init__()
        self.network = network
        self.is_pooled = is_pooled

    def forward(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Int[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B M F"], Bool[Tensor, "B M"]]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not self.is_pooled:
            return input_ids.float().unsqueeze(2), mask.bool()
        inputs = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        return embed(self.network, inputs).unsqueeze(1), mask.bool().any(dim=1, keepdim=True)


class CLIPImageTail(nn.Module):
    """A whole image tower: sets of one vector of pixel values → a set of one embedding.

    Args:
        network: the tower with its projection.
        shape: (3, H, W) of a photo.
        output_dim: width F of the embeddings.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], output_dim: int) -> None:
        super().__init__()
        self.network = network
        self.shape = shape
        self.output_dim = output_dim

    def forward(
        self, x: Float[Tensor, "B 1 P"], mask: Bool[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B 1 F"], Bool[Tensor, "B 1"]]:
        return embed(self.network, {"pixel_values": x.reshape(x.shape[0], *self.shape)}).unsqueeze(1), mask


class CLIPTextTail(nn.Module):
    """A whole text tower: sets of token ids → a set of one embedding.

    Args:
        network: the tower with its projection.
        padding: the token that fills a caption up.
        has_mask: whether the network is told which tokens are padding (CLIP), or attends to them (SigLIP).
        output_dim: width F of the embeddings.
    """

    def __init__(self, network: nn.Module, padding: int, has_mask: bool, output_dim: int) -> None:
        super().__init__()
        self.network = network
        self.padding = padding
        self.has_mask = has_mask
        self.output_dim = output_dim

    def forward(
        self, x: Float[Tensor, "B L 1"], mask: Bool[Tensor, "B L"]
    ) -> tuple[Float[Tensor, "B 1 F"], Bool[Tensor, "B 1"]]:
        inputs = {"input_ids": x.squeeze(2).round().long().masked_fill(~mask, self.padding)}
        if self.has_mask:
            inputs["attention_mask"] = mask.long()
        return embed(self.network, inputs).unsqueeze(1), mask.any(dim=1, keepdim=True)


class _Photos:
    """Photo → (3, H, W) as the network wants it, once its processor is known; carries no network."""

    def __init__(self) -> None:
        self.processor: Any = None

    def __call__(self, item: Any) -> Float[Tensor, "3 H W"]:
        if self.processor is None:
            raise RuntimeError("CLIPImageEncoder has no weights yet: call prepare() or restore() first")
        found: Tensor = self.processor(images=item, return_tensors="pt")["pixel_values"][0]
        return found


def _ready(tower: ClipTower | None, name: str) -> ClipTower:
    if tower is None:
        raise RuntimeError(f"{name} has no weights yet: call prepare() or restore() first")
    return tower


def _sizes(hidden_size: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    """Of a random tower, in the words of its configuration."""
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "projection_dim": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
    }


def _faults(
    key: str, positive: Mapping[str, int], hidden_size: int, num_heads: int, trainable_layers: TrainableLayers
) -> list[str]:
    positive = {"hidden_size": hidden_size, "num_heads": num_heads, **positive}
    faults = [f"{key}.{name} must be positive, found {value}." for name, value in positive.items() if value < 1]
    if num_heads > 0 and hidden_size % num_heads:
        faults.append(f"{key}.hidden_size must be a multiple of num_heads, found {hidden_size} and {num_heads}.")
    if trainable_layers not in (0, "all"):
        faults.append(f"{key}.trainable_layers must be 0 or all for this encoder, found {trainable_layers}.")
    return faults
