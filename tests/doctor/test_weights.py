"""Which weights are in the caches; the caches are real folders, their files hold nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from xmodal.config.command_line import compose
from xmodal.doctor.finding import Finding
from xmodal.doctor.report import summary
from xmodal.doctor.weights import encoder, hub_cache, options, torch_cache

Cached = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """Put files of a model into the Hub's cache, which lies below ``tmp_path``."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))  # HF_HOME is read at import

    def put(name: str, **files: str) -> Path:
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text("0123abc")
        for file, content in files.items():
            (snapshot / file).write_text(content)
        return snapshot

    return put


def line(side: str, option: str, *overrides: str) -> Finding:
    (found,) = encoder(compose(overrides), side, option)
    return found


def test_every_encoder_with_published_weights_is_listed() -> None:
    assert options("image_encoder") == ["clip", "frcnn", "timm", "vgg"]
    assert options("text_encoder") == ["bert", "clip"]


def test_torch_files_are_found_where_torch_home_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    absent = line("image_encoder", "vgg")
    assert absent.mark == "optional"
    assert absent.found == f"vgg16-397923af.pth is not in {tmp_path}/hub/checkpoints"
    assert "TORCH_HOME" in absent.advice
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth").write_text("12345")
    assert line("image_encoder", "vgg").mark == "ok"
    assert line("image_encoder", "vgg", "image_encoder.depth=19").mark == "optional"
    assert line("image_encoder", "frcnn").mark == "optional"
    (cache,) = torch_cache()
    assert (cache.mark, cache.values["size"]) == ("ok", 5)


def test_models_of_the_hub_are_found_once_all_that_they_need_is_there(hub: Cached) -> None:
    name = "bert-base-uncased"
    assert line("text_encoder", "bert").mark == "optional"
    hub(name, **{"config.json": "{}", "model.safetensors": ""})
    assert line("text_encoder", "bert").mark == "optional"
    hub(name, **{"tokenizer.json": "{}"})
    assert line("text_encoder", "bert").found == f"{name} is in the cache (HF_HOME)"
    hub("timm/resnet50.a1_in1k", **{"model.safetensors": ""})
    assert line("image_encoder", "timm").mark == "ok"
    (cache, *_) = hub_cache()
    assert cache.values["exists"]


def test_weights_in_parts_are_there_when_all_parts_are(hub: Cached) -> None:
    chosen = ("text_encoder=bert", "text_encoder.weights=some/model")
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    hub("some/model", **{"config.json": "{}", "vocab.txt": "", "model.safetensors.index.json": index})
    hub("some/model", **{"model-1.safetensors": ""})
    assert line("text_encoder", "bert", *chosen).mark == "optional"
    hub("some/model", **{"model-2.safetensors": ""})
    assert line("text_encoder", "bert", *chosen).mark == "ok"


def test_both_towers_of_clip_need_what_prepares_their_inputs(hub: Cached) -> None:
    name = "openai/clip-vit-base-patch32"
    hub(name, **{"config.json": "{}", "pytorch_model.bin": "", "preprocessor_config.json": "{}"})
    assert (line("image_encoder", "clip").mark, line("text_encoder", "clip").mark) == ("ok", "optional")


def test_without_the_hub_the_first_thing_to_do_is_to_let_it_be_asked(
    hub: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert line("text_encoder", "bert").advice.startswith("unset HF_HUB_OFFLINE and start once with a network")


def test_a_path_that_is_not_there_is_missing(tmp_path: Path) -> None:
    weights = tmp_path / "vgg.pth"
    overrides = ("image_encoder=vgg", f"image_encoder.weights={weights}")
    found = line("image_encoder", "vgg", *overrides)
    assert found.mark == "missing"
    assert str(weights) in found.found
    weights.touch()
    assert line("image_encoder", "vgg", *overrides).found == f"weights={weights}"


@pytest.mark.usefixtures("hub")
def test_weights_of_a_run_that_was_described_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = compose(["data=flickr8k", "image_encoder=clip", "text_encoder=clip"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    (fetched,) = encoder(cfg, "image_encoder", "clip", is_run_meant=True)
    assert (fetched.mark, fetched.values["needed"]) == ("warning", True)
    assert summary({"weights": [fetched]}) == (
        "Nothing is at fault, but weights have to be fetched before a run: image_encoder=clip. 1 warning."
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (missing,) = encoder(cfg, "text_encoder", "clip", is_run_meant=True)
    assert missing.mark == "missing"
    assert next(iter(encoder(cfg, "text_encoder", "bert", is_run_meant=True))).mark == "optional"  # another is named
    random = compose(["data=flickr8k", "text_encoder=bert", "text_encoder.weights=null"])
    assert next(iter(encoder(random, "text_encoder", "bert", is_run_meant=True))).mark == "optional"
