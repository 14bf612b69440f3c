"""Any model of timm: one photo → its pooled vector, or the grid of vectors that would be pooled."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants
from jaxtyping import Bool, Float
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from xmodal.config.suggestions import did_you_mean
from xmodal.encoders.portable import PhotoSets, PortableEncoder, pixels_alone
from xmodal.encoders.protocol import TrainableLayers
from xmodal.encoders.published import WEIGHT_FILES, Published, hub_file, of_timm, of_torch, torch_file
from xmodal.encoders.trainable import make_buffers, marked, trainable
from xmodal.encoders.weights import (
    PRETRAINED,
    UNREADABLE,
    StateDict,
    absent,
    check_probe,
    digest,
    first_line,
    freeze,
    frozen_state,
    is_path,
    load_strictly,
    read_state_dict,
    seeded,
    three_ways_on,
    unreachable,
)
from xmodal.errors import ConfigError, WeightsError
from xmodal.types import FeatureSet

log = logging.getLogger(__name__)

CHOICES = {"pooling": ("pooled", "grid")}
_KEY = "image_encoder"


class TimmEncoder:
    """An image model of timm (Wightman, 2019) without its classifier, fed as its own data configuration says.

    Args:
        model: its name in timm, perhaps with the tag of its weights: ``resnet50``, ``resnet50.a1_in1k``.
        weights: ``pretrained`` (those that timm publishes), the path of a state_dict of the model, or None: random.
        pooling: ``pooled``: a set of one, what the classifier would be given. ``grid``: what the network pools, the
            H·W vectors of a map or those of the patches (class and register tokens left out).
        seed: of random weights.
        trainable_layers: 0 (frozen), or ``all``: the whole network is trained, and the set is one vector of all pixel
            values.
        batch_size: photos per forward pass.

    Raises:
        ConfigError: a parameter is out of range; no such model (named with those of similar names), or one that does
            not take RGB photos.
    """

    modality: ClassVar[Literal["image", "text"]] = "image"

    def __init__(
        self,
        model: str = "resnet50.a1_in1k",
        weights: str | None = None,
        pooling: str = "pooled",
        seed: int = 0,
        trainable_layers: TrainableLayers = 0,
        batch_size: int = 32,
    ) -> None:
        if faults := [*_unknown_model(model), *_out_of_range(pooling, trainable_layers, batch_size)]:
            raise ConfigError(faults)
        self.model = model
        self.weights = weights
        self.pooling = pooling
        self.seed = seed
        self.trainable_layers = trainable_layers
        self.batch_size = batch_size
        self._input = resolve_data_config(pretrained_cfg=_published(model), verbose=False)
        self._transform = create_transform(**self._input, is_training=False)
        self._prepared: nn.Module | None = None
        self._shape = (0, 0)  # of one photo's set behind the network: (n, F)
        if self._input["input_size"][0] != 3:
            raise ConfigError(f"{_KEY}.model={model} takes {self._input['input_size'][0]} channels; RGB photos have 3.")

    @property
    def feature_dim(self) -> int:
        if self.trainable_layers == "all":
            return prod(self._input["input_size"])
        return self._output_shape[1]

    @property
    def network(self) -> nn.Module:
        """timm's model without classifier; known after ``prepare`` or ``restore``."""
        if self._prepared is None:
            raise RuntimeError("TimmEncoder has no weights yet: call prepare() or restore() first")
        return self._prepared

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:
        """timm's own transform for the model in evaluation; it carries no network."""
        return self._transform

    def check(self) -> list[str]:
        faults = absent(self.weights, _KEY)
        return [f"{fault} The name of a model goes into {_KEY}.model." for fault in faults]

    def published(self) -> Published | None:
        source = _published(self.model)
        repository, url = source.get("hf_hub_id"), source.get("url")
        if self.weights != PRETRAINED or not (repository or url):
            return None
        return of_timm(str(repository)) if repository else of_torch(str(url))

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        """Load the weights; captions and cache are not needed.

        Raises:
            WeightsError: they can't be had, or don't fit.
            ConfigError: the model has no vectors of the kind that ``pooling`` asks for.
        """
        if self._prepared is None:
            self._set(self._obtain(None))

    def fingerprint(self) -> dict[str, Any]:
        used = {
            "encoder": "TimmEncoder",
            "model": self.model.partition(".")[0],
            "input": self._fed_with(),
            "pooling": self.pooling,
            "weights": digest(self.network.state_dict()),
        }
        return marked(used, self.trainable_layers)

    def collate(self, batch: list[Tensor]) -> Float[Tensor, "B C H W"]:
        """The photos in one array, in the memory format that convolutions like best."""
        return torch.stack(batch).contiguous(memory_format=torch.channels_last)

    def most_vectors(self, items: Sequence[Any]) -> int:
        return len(items) * (1 if self.trainable_layers == "all" else self._output_shape[0])

    @torch.inference_mode()
    def encode(self, batch: list[Tensor] | Tensor) -> list[FeatureSet]:
        photos = batch if isinstance(batch, Tensor) else self.collate(batch)
        if self.trainable_layers == "all":
            return list(photos.float().cpu().flatten(1).unsqueeze(1))
        device = next(self.network.parameters()).device
        photos = photos.to(device, memory_format=torch.channels_last)
        return list(_vectors(self.network, photos, self.pooling).float().cpu())

    def tail(self) -> "TimmTail":
        """The whole network, with weights of its own; layers behind a grid, on which nothing depends, stay fixed."""
        network, size = trainable(self.network), self._input["input_size"]
        make_buffers(network, _unused(network, size, self.pooling))
        return TimmTail(network, self.pooling, size, self._output_shape[1])

    def portable(self) -> PortableEncoder:
        is_pixels, network = self.trainable_layers == "all", self.network
        return PortableEncoder(
            pixels_alone() if is_pixels else PhotoSets(network, partial(_vectors, pooling=self.pooling)),
            {"pixels": ("batch", *self._input["input_size"])},
            lambda batch: (torch.stack(batch),),
            {"timm": self._fed_with(), "divide_by": 255},
        )

    def to(self, device: torch.device | str) -> None:
        self.network.to(device)

    def state(self) -> dict[str, Any]:
        return frozen_state(self.network, embed=is_path(self.weights))

    def restore(self, state: dict[str, Any]) -> None:
        network = self._obtain(state.get("weights"))
        check_probe(network, state, self.model)
        self._set(network)

    def _fed_with(self) -> dict[str, Any]:
        """timm's data configuration of the model; JSON-able."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in sorted(self._input.items())}

    @property
    def _output_shape(self) -> tuple[int, int]:
        """Vectors of one photo, and their width."""
        _ = self.network  # says what to do where there is none yet
        return self._shape

    def _set(self, network: nn.Module) -> None:
        freeze(network).to(memory_format=torch.channels_last)
        self._shape = _shape_of(network, self.model, self._input["input_size"], self.pooling)
        self._prepared = network

    def _obtain(self, kept: StateDict | None) -> nn.Module:
        """The network with the weights that a checkpoint ``kept``, or those that the parameters name."""
        if kept is None and self.weights == PRETRAINED:
            return _pretrained(self.model)
        with seeded(self.seed):
            network = timm.create_model(self.model, pretrained=False, num_classes=0)
        if kept is None and self.weights is None:
            log.info(f"{self.model} uses random weights (seed {self.seed}), because {_KEY}.weights=null.")
            return network
        state = kept if kept is not None else read_state_dict(Path(str(self.weights)).expanduser(), _KEY)
        load_strictly(network, _without_classifier(state, self.model), f"{_KEY}.weights={self.weights}")
        return network


class TimmTail(nn.Module):
    """A whole model of timm: sets of one vector of pixel values → the sets that the encoder would give.

    Args:
        network: timm's model without classifier.
        pooling: ``pooled`` or ``grid``.
        shape: (3, H, W) of a photo.
        output_dim: width F of the vectors.
    """

    def __init__(self, network: nn.Module, pooling: str, shape: tuple[int, ...], output_dim: int) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling
        self.shape = shape
        self.output_dim = output_dim

    def forward(
        self, x: Float[Tensor, "B 1 P"], mask: Bool[Tensor, "B 1"]
    ) -> tuple[Float[Tensor, "B M F"], Bool[Tensor, "B M"]]:
        photos = x.reshape(x.shape[0], *self.shape).contiguous(memory_format=torch.channels_last)
        vectors = _vectors(self.network, photos, self.pooling)
        return vectors, mask.expand(-1, vectors.shape[1])


def _vectors(network: Any, photos: Float[Tensor, "B C H W"], pooling: str) -> Float[Tensor, "B M F"]:
    """What one vector is made of at the end of the network, or that vector."""
    if pooling == "pooled":
        return network(photos).unsqueeze(1)
    found = network.forward_features(photos)
    if found.ndim == 3:
        return found[:, getattr(network, "num_prefix_tokens", 0) :]
    is_channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    return found.flatten(1, 2) if is_channels_last else found.flatten(2).transpose(1, 2)


@torch.enable_grad()
def _unused(network: nn.Module, size: tuple[int, ...], pooling: str) -> list[nn.Parameter]:
    """Parameters that the vectors don't depend on: they would never have a gradient, which plain DDP waits for."""
    parameters = list(network.parameters())
    vectors = _vectors(network, torch.zeros(1, *size), pooling)
    gradients = torch.autograd.grad(vectors.sum(), parameters, allow_unused=True)
    return [parameter for parameter, found in zip(parameters, gradients, strict=True) if found is None]


@torch.inference_mode()
def _shape_of(network: Any, model: str, size: tuple[int, ...], pooling: str) -> tuple[int, int]:
    """(n, F) of one photo's set: some models make another width than the one they are known by, so it is tried.

    Raises:
        ConfigError: what comes out are no vectors.
    """
    found = network(torch.zeros(1, *size)) if pooling == "pooled" else network.forward_features(torch.zeros(1, *size))
    is_usable = isinstance(found, Tensor) and found.ndim in ((2,) if pooling == "pooled" else (3, 4))
    if not is_usable:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = "one vector, (1, F)" if pooling == "pooled" else "a grid of them, (1, n, F) or (1, F, H, W)"
        raise ConfigError(f"{_KEY}.pooling={pooling}: {model} gives {shape} for a photo; expected {expected}.")
    n, width = _vectors(network, torch.zeros(1, *size), pooling).shape[1:]
    return n, width


def _unknown_model(model: str) -> list[str]:
    """A sentence where timm has no such model, or not with such a tag."""
    known = [*timm.list_models(), *timm.list_models(pretrained=True)]
    if model in known:
        return []
    architecture = model.partition(".")[0]
    tagged = [name for name in known if name.startswith(f"{architecture}.")]
    if tagged:
        return [f"{_KEY}.model={model}: timm has {architecture} with the weights {', '.join(tagged)}."]
    hint = did_you_mean(model, known)
    return [
        f"{_KEY}.model={model}: timm {timm.__version__} has no such model.{hint} Names: timm.list_models('*resnet*')."
    ]


def _out_of_range(pooling: str, trainable_layers: TrainableLayers, batch_size: int) -> list[str]:
    faults = []
    if pooling not in CHOICES["pooling"]:
        faults.append(f"{_KEY}.pooling must be one of {', '.join(CHOICES['pooling'])}, found {pooling}.")
    if trainable_layers not in (0, "all"):
        faults.append(f"{_KEY}.trainable_layers must be 0 or all for this encoder, found {trainable_layers}.")
    if batch_size < 1:
        faults.append(f"{_KEY}.batch_size must be positive, found {batch_size}.")
    return faults


def _published(model: str) -> dict[str, Any]:
    """What timm knows of the weights that it publishes for a model: where they are, and what they are fed with."""
    found = timm.get_pretrained_cfg(model)
    return found.to_dict() if found is not None else {}


def _without_classifier(state: StateDict, model: str) -> StateDict:
    named = _published(model).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)} if prefixes else state


def _pretrained(model: str) -> nn.Module:
    """The model as timm publishes it, from the cache of the Hub (or of torch), else downloaded into it.

    Raises:
        WeightsError: not in the cache, and no network; or none were published.
    """
    source = _published(model)
    repository, url = source.get("hf_hub_id"), str(source.get("url") or "")
    if not repository and not url:
        raise WeightsError(
            f"{_KEY}.weights=pretrained: timm publishes no weights of {model}. Choose another model, a path, or null."
        )
    place = constants.HF_HUB_CACHE if repository else f"{torch.hub.get_dir()}/checkpoints"
    file = hub_file(repository, WEIGHT_FILES) if repository else _in_torch_cache(url)
    fault = None if file else _no_network(constants.ENDPOINT if repository else url, bool(repository))
    try:
        if fault is None:
            # a file that is here is named, or the Hub would be asked whether it has a newer one
            named = {"file": str(file), "custom_load": False} if file else {}
            return timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=named)
    except UNREADABLE as error:
        fault = first_line(error)
    moved_by = "HF_HOME" if repository else "TORCH_HOME"
    network = f"start once with a network; the files stay in {place} ({moved_by} moves this folder)"
    what = f"timm's weights {repository or Path(urlparse(url).path).name} ({_KEY}.weights=pretrained)"
    raise three_ways_on(what, f"not in {place}, and {fault}", network, f"/path/to/{model}.safetensors", _KEY)


def _in_torch_cache(url: str) -> Path | None:
    file = torch_file(url)
    return file if file.exists() else None


def _no_network(url: str, is_of_hub: bool) -> str | None:
    return "HF_HUB_OFFLINE is set" if is_of_hub and constants.HF_HUB_OFFLINE else unreachable(url)
