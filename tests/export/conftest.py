"""Checkpoints of small models that no one trained: random parameters and statistics, real encoders."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from xmodal.cli import main
from xmodal.config.command_line import compose
from xmodal.config.values import resolved
from xmodal.experiment.parts import build_parts, query_encoder_config
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models.build import build_model, with_feature_widths
from xmodal.models.dual_encoder import CHECKPOINT_KEY, DualEncoder
from xmodal.models.query_encoders import QueryEncoders
from xmodal.models.tails import attach, tails_of
from xmodal.models.tower import Tower

CAPTIONS = ["two dogs run over the green grass", "a red circle is left of a square", "nobody is there to see it"]
SMALL = [
    "embedding_dim=8",
    "model.image_tower.projection.hidden_dim=12",
    "model.text_tower.projection.hidden_dim=12",
    "logger=none",
]
SMALL_BERT = [
    "text_encoder=bert",
    *(f"text_encoder.{size}" for size in ("hidden_size=16", "num_layers=2", "num_heads=2", "vocab_size=150")),
]
WIDTH = 6

Save = Callable[..., Path]


def randomize(model: nn.Module) -> nn.Module:
    """Parameters and statistics as after some training, where some start from zero or one."""
    torch.manual_seed(1)
    for tower in (part for part in model.modules() if isinstance(part, Tower)):
        if tower.standardizer is not None:
            tower.standardizer.mean.normal_()
            tower.standardizer.deviation.uniform_(0.5, 2.0)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm1d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def small_model(*overrides: str) -> DualEncoder:
    """Two towers on features of width 6."""
    model = build_model(with_feature_widths(compose([*SMALL, *overrides]), WIDTH, WIDTH))
    randomize(model)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., DualEncoder]:
    return small_model


def saved(folder: Path, overrides: Sequence[str]) -> Path:
    """A checkpoint as training leaves one; image features are a file's, unless an encoder is named."""
    folder.mkdir(parents=True, exist_ok=True)
    features = folder / "features.npy"
    np.save(features, np.zeros((3, WIDTH), dtype=np.float32))
    fixed = [*SMALL, f"paths.cache_dir={folder / 'cache'}", f"paths.output_dir={folder}"]
    if not any(line.startswith("image_encoder=") for line in overrides):
        fixed += ["image_encoder=precomputed", f"image_encoder.path={features}"]
    cfg = compose([*fixed, *overrides])
    parts = build_parts(cfg)
    encoders = {"image": parts.image_encoder, "text": parts.text_encoder}
    prepared = {side: e for side, e in encoders.items() if not isinstance(e, PrecomputedFeatures)}
    for encoder in prepared.values():
        encoder.prepare(CAPTIONS, folder / "cache")
    tails: dict[str, Any] = tails_of(prepared)
    widths = {side: prepared[side].feature_dim if side in prepared else WIDTH for side in encoders}
    widths |= {side: tail.output_dim for side, tail in tails.items()}
    cfg = with_feature_widths(cfg, widths["image"], widths["text"])
    model = randomize(build_model(cfg))
    attach(model, tails)
    config = resolved(cfg)
    config["query_encoders"] = {side: query_encoder_config(cfg, side) for side in encoders}
    content = {"state_dict": model.state_dict(), CHECKPOINT_KEY: QueryEncoders(config, prepared).checkpoint()}
    torch.save(content, folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Make a checkpoint of a model with these settings; each once."""
    made: dict[tuple[str, ...], Path] = {}

    def save(*overrides: str) -> Path:
        torch.set_num_threads(1)
        if overrides not in made:
            made[overrides] = saved(tmp_path_factory.mktemp("model"), overrides)
        return made[overrides]

    return save


@pytest.fixture(scope="session")
def bert_checkpoint(save_checkpoint: Save) -> Path:
    """Image features of a file that no one made, and a small random BERT."""
    return save_checkpoint(*SMALL_BERT)


@dataclass
class Folders:
    """Both exports of a checkpoint, and what the command printed."""

    onnx: Path
    safetensors: Path
    printed: str


@pytest.fixture(scope="session")
def bert_folders(bert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder, printed = tmp_path_factory.mktemp("exports"), io.StringIO()
    words = ["--onnx", str(folder / "onnx"), "--safetensors", str(folder / "safetensors")]
    with contextlib.redirect_stdout(printed):
        assert main(["export", str(bert_checkpoint), *words]) == 0
    return Folders(folder / "onnx", folder / "safetensors", printed.getvalue())
