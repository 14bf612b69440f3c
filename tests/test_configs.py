"""Every file of conf/ composes, and states exactly the parameters of what it selects, with their defaults."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from xmodal.config.annotations import signature
from xmodal.config.check import NOT_PARAMETERS, type_faults
from xmodal.config.command_line import check_overrides, compose
from xmodal.config.sources import CONF_DIR, ConfigSource
from xmodal.config.values import parts, resolved
from xmodal.models.build import optimizer_of

SOURCE = ConfigSource()
CHOICES = [f"{group}={option}" for group, options in SOURCE.groups().items() for option in options]
EXPERIMENTS = [choice for choice in CHOICES if choice.startswith("experiment=")]
CONTEXT = {"image_aggregator/pooling": ["image_aggregator=gru"], "text_aggregator/pooling": ["text_aggregator=gru"]}
ANY = object()  # stands for a default that is not compared


def target_files() -> list[Path]:
    files = [file for file in sorted(CONF_DIR.rglob("*.yaml")) if "hydra" not in file.relative_to(CONF_DIR).parts]
    return [file for file in files if "_target_" in file.read_text(encoding="utf-8")]


def nodes_of(file: Path) -> list[tuple[str, DictConfig]]:
    """Every mapping with a target in one file: its dotted place below the group, and what the file says."""
    content = OmegaConf.load(file)
    assert isinstance(content, DictConfig)
    own = [("", content)] if content.get("_target_") else []
    return [*own, *parts(content)]


def taken_from_other_files(node: DictConfig) -> set[str]:
    """Keys below which the defaults list of a file puts another one: ``/loss@losses.text: triplet`` → losses."""
    entries = [next(iter(entry)) for entry in node.get("defaults", ()) if not isinstance(entry, str)]
    return {str(entry).partition("@")[2].partition(".")[0] for entry in entries if "@" in str(entry)}


def keys_of(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if not str(key).startswith("_")}


def parameters_of(target: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(get_object(target)).parameters)


ALL_NODES = [
    pytest.param(file, place, node, id=f"{file.parent.name}/{file.stem}{'.' if place else ''}{place}")
    for file in target_files()
    for place, node in nodes_of(file)
]
OURS = [p for p in ALL_NODES if str(p.values[2]._target_).startswith("xmodal.")]
OTHERS = [p for p in ALL_NODES if not str(p.values[2]._target_).startswith("xmodal.")]


def test_there_are_files_for_every_default() -> None:
    cfg = compose([])
    for group in SOURCE.groups():
        assert group.split("/")[0] in cfg or group in ("experiment", "debug", "sweep"), group
    assert len(CHOICES) > 20
    assert len(OURS) > 10


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_without_a_wrong_type(choice: str) -> None:
    cfg = SOURCE.load([*CONTEXT.get(choice.partition("=")[0], []), choice])
    assert type_faults(cfg) == {}
    assert resolved(cfg)["embedding_dim"] == (cfg.embedding_dim if choice in EXPERIMENTS else 512)


@pytest.mark.parametrize(("file", "place", "node"), OURS)
def test_a_file_states_every_parameter_of_its_target(file: Path, place: str, node: DictConfig) -> None:
    extra = NOT_PARAMETERS.get(file.parent.name, set()) if not place else set()
    stated = (set(keys_of(node)) - extra - {"defaults"}) | taken_from_other_files(node)
    parameters = parameters_of(node._target_)
    assert stated == set(parameters), f"{file}: {node._target_}"
    if extra and "defaults" not in OmegaConf.load(file):
        assert extra <= set(keys_of(node)), f"{file} lacks keys that every data set has"


@pytest.mark.parametrize(("file", "place", "node"), OURS)
def test_a_file_states_the_defaults_of_its_target(file: Path, place: str, node: DictConfig) -> None:
    if place and file.parent.name == "model":
        pytest.skip("both towers are of one class, each with its own number of layers")
    for name, parameter in parameters_of(node._target_).items():
        stated = keys_of(node).get(name, ANY)
        chosen = name in ("modality", "name", "group", "job_type", "seed") or isinstance(stated, dict)
        is_literal = not (isinstance(stated, str) and (stated == "???" or "${" in stated))
        if parameter.default is not inspect.Parameter.empty and is_literal and not chosen:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert stated == default, f"{file}: {name}"


@pytest.mark.parametrize(("file", "place", "node"), OTHERS)
def test_a_file_states_only_parameters_of_a_foreign_target(file: Path, place: str, node: DictConfig) -> None:
    extra = {"defaults", *(NOT_PARAMETERS.get(file.parent.name, ()) if not place else ())}
    assert set(keys_of(node)) - extra <= set(parameters_of(node._target_)), f"{file}: {node._target_}"


@pytest.mark.parametrize(("image", "text"), [("vgg", "bert"), ("frcnn", "fasttext")])
@pytest.mark.parametrize("layers", ["1", "all"])
def test_encoders_with_trainable_layers_compose(image: str, text: str, layers: str) -> None:
    sides = [f"image_encoder={image}", f"text_encoder={text}"]
    assert check_overrides([*sides, *(f"{side}_encoder.trainable_layers={layers}" for side in ("image", "text"))]) == []


@pytest.mark.parametrize("option", SOURCE.groups()["optimizer"])
def test_every_optimizer_has_a_rate_for_trainable_layers(option: str) -> None:
    cfg = compose([f"optimizer={option}"])
    assert cfg.model.tail_lr_factor == cfg.optimizer.tail_lr_factor == 0.1
    optimizer = optimizer_of(cfg.model)([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] == cfg.optimizer.lr


@pytest.mark.parametrize(("file", "place", "node"), OURS)
def test_signatures_read_from_source_are_those_of_python(file: Path, place: str, node: DictConfig) -> None:
    found = signature(node._target_)
    assert found is not None
    parameters = parameters_of(node._target_)
    assert list(found.parameters) == list(parameters)
    for name, parameter in parameters.items():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if default is not inspect.Parameter.empty:
            assert found.parameters[name].admits(default), f"{node._target_}({name}={default!r})"


@pytest.mark.parametrize("choice", EXPERIMENTS)
def test_an_experiment_names_its_source_command_and_result(choice: str) -> None:
    reference = resolved(compose([choice]))["reference"]
    assert set(reference) == {"source", "command", "expected"}
    words = reference["command"].split()
    assert words[:2] == ["python", "train.py"]
    assert choice in words
    assert check_overrides(words[2:]) == []
    expected = reference["expected"]
    if expected is not None:
        assert set(expected) == {"origin", "setting", "figures"}
        published = compose([choice]).data.name in ("flickr30k", "coco")  # whose figures can't be measured here
        assert (expected["origin"] == "published") == published


def test_the_course_is_stated_as_the_course_states_it() -> None:
    cfg = compose(["experiment=course"])
    assert (cfg.data.name, cfg.loss.anchor, cfg.optimizer.lr, cfg.trainer.max_epochs) == (
        "flickr30k",
        "image",
        1e-3,
        50,
    )
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert cfg.scheduler._target_ == "torch.optim.lr_scheduler.StepLR"
    assert compose(["experiment=course", "loss.anchor=text"]).loss.anchor == "text"


def test_debug_has_the_last_word_over_an_experiment() -> None:
    cfg = compose(["experiment=course", "debug=fast"])
    assert (cfg.trainer.max_epochs, cfg.trainer.limit_train_batches, cfg.data.limit) == (1, 1, 8)
    assert cfg.features.store is False
    overfit = compose(["debug=overfit", "data=flickr30k"])
    assert overfit.data.splits == {"train": ["train"], "val": ["train"], "test": ["train"]}
    assert overfit.data.limit == 16
