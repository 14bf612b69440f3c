"""The parts of a run by name: ``image_encoder: vgg``, ``loss: triplet``."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from xmodal.config.values import value_of

GROUPS = (
    "data",
    "image_encoder",
    "text_encoder",
    "image_aggregator",
    "text_aggregator",
    "loss",
    "optimizer",
    "scheduler",
    "index",
    "experiment",
)
TAGGED = GROUPS[:6]


def choices_of(cfg: DictConfig) -> dict[str, str]:
    """The option chosen in each group; outside a program of Hydra's, the module that the part comes from.

    An experiment that nobody chose is left out.
    """
    if HydraConfig.initialized():
        chosen: Mapping[str, Any] = HydraConfig.get().runtime.choices
        return {group: str(chosen[group]) for group in GROUPS if chosen.get(group) not in (None, "null")}
    targets = {group: value_of(cfg, f"{group}._target_") for group in GROUPS}
    return {group: str(target).split(".")[-2] for group, target in targets.items() if target and "." in target}
