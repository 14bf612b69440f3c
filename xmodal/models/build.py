"""From a configuration to a model, the same way for a new run and for a saved one."""

from collections.abc import Callable, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.schedule import KEYS, Schedule

_SETTINGS = (
    "similarity",
    "monitor",
    "tail_lr_factor",
    "unfreeze_epoch",
    "embedding_chunk",
    "gather",
    "relevance",
    "cross_batch_memory",
    "matryoshka",
    "seed",
)


def with_feature_widths(cfg: DictConfig, image_dim: int, text_dim: int) -> DictConfig:
    """A copy of the configuration with the widths of the features, which only they can tell, filled in.

    The aggregator gets vectors of the features' width, or of that which a vector projection gives.
    """
    filled = cfg.copy()
    OmegaConf.set_readonly(filled, False)
    for side, width in (("image", image_dim), ("text", text_dim)):
        tower = filled.model[f"{side}_tower"]
        tower.feature_dim = width
        projected = tower.get("vector_projection")
        OmegaConf.update(filled, f"{side}_aggregator.feature_dim", projected.output_dim if projected else width)
    return filled


def optimizer_of(model: DictConfig) -> Callable[..., Optimizer]:
    """What makes the optimizer when given parameters; the model itself sees to the learning rate of the tails."""
    own = {key: value for key, value in model.optimizer.items() if key != "tail_lr_factor"}
    return instantiate(OmegaConf.create(own))


def schedule_of(model: DictConfig) -> Schedule:
    """How the learning rate changes; raises ConfigError for values out of range."""
    node = model.get("scheduler") or {}
    settings = {key: node[key] for key in KEYS if key in node}
    if not node.get("_target_"):
        return Schedule(None, **settings)
    own = {str(key): node[key] for key in node if key not in KEYS and not OmegaConf.is_missing(node, key)}
    return Schedule(instantiate(OmegaConf.create(own)), **settings)


def build_model(cfg: DictConfig | Mapping[str, Any]) -> DualEncoder:
    """The model that a configuration with filled-in widths describes, with freshly initialised parameters.

    Raises:
        ConfigError: a parameter out of its range.
    """
    node = cfg.model if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg["model"]))
    parts = {name: instantiate(node[name]) for name in ("image_tower", "text_tower", "loss")}
    parts["optimizer"] = optimizer_of(node)
    settings = {name: node[name] for name in _SETTINGS if name in node}
    return instantiate({"_target_": node["_target_"], **settings}, **parts, scheduler=schedule_of(node))
