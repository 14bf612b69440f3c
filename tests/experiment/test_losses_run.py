"""Losses, embedding sizes and labels in whole runs, and in the evaluation of what they leave behind."""

import json

import pytest
import torch

from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.embedded_run import embed_run
from xmodal.experiment.evaluation import evaluate
from xmodal.experiment.parts import build_parts


def test_figures_of_each_size_are_in_the_metrics_and_in_an_evaluation(workshop):
    settings = ["loss=weighted", "matryoshka=[4,8]", "cross_batch_memory=100", "monitor=val/dim8/rsum"]
    finished = workshop.run("sizes", *settings, "trainer.max_epochs=2", "bootstrap=0")
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    assert {f"{split}/{size}i2t_R1" for split in ("val", "test") for size in ("", "dim4/", "dim8/")} <= set(metrics)
    assert finished.score == pytest.approx(metrics["val/dim8/rsum"])
    assert "test/dim4" in finished.output
    options = EvaluationOptions(bootstrap=0)
    found = evaluate(embed_run(finished.folder, options, [], torch.device("cpu")), options).figures
    assert any("dim4" in name for name in found)
    for name, value in found.items():
        assert value == pytest.approx(metrics[name], abs=1e-4), name


def test_labels_that_training_goes_by_are_asked_for_before_anything_is_encoded(workshop):
    with pytest.raises(DataError, match=r"66 of the 66 images of scenes have none.*relevance=instance in training"):
        workshop.build("labels", "relevance=label")
    assert not list((workshop.root / "labels").rglob("*.ckpt"))


def test_faults_of_losses_within_losses_are_all_found_and_named_by_their_own_keys(workshop):
    values = ["loss.losses.text.loss.margin=-1.0", "loss.losses.cross.temperature=5.0", "loss.weights.text=-2.0"]
    with pytest.raises(ConfigError) as caught:
        build_parts(workshop.compose("faults", "loss=weighted", *values))
    assert set(caught.value.faults) == {
        "loss.losses.text.loss.margin must be positive and finite, found -1.0",
        "loss.losses.cross.temperature, where it is learned, must lie between loss.losses.cross.min_temperature and "
        "loss.losses.cross.max_temperature, both positive; found 5.0, 0.01 and 1.0",
    }
