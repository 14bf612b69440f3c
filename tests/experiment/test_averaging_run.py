"""Training aids together in whole runs: averaged weights, warm-up, clipping, early stopping; also after a stop."""

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping

from xmodal.callbacks.averaging import KEPT, AveragedWeights
from xmodal.models import checkpoint
from xmodal.retrieval.evaluate import evaluate_retrieval

AIDS = (
    "callbacks/averaging=ema",
    "callbacks.averaging.decay=0.9",
    "callbacks=early_stopping",
    "scheduler=warmup_cosine",
    "scheduler.warmup_steps=0.3",
    "trainer.gradient_clip_val=0.5",
    "trainer.max_epochs=4",
    "model.image_tower.feature_dropout=0.0",
    "bootstrap=0",
)


def last_of(experiment):
    return experiment.folder / "checkpoints" / "last.ckpt"


def best_of(experiment):
    return experiment.folder / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def averaged(workshop):
    return workshop.run("averaged", *AIDS)


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, msg=name)


def test_figures_of_the_run_are_those_of_the_loaded_average(averaged, data_of):
    """Of the best epoch's checkpoint as users load it: not those of the weights in training beside it."""
    content = checkpoint.read(best_of(averaged.experiment))
    data, found = data_of(averaged.experiment), []
    for kept in (content["state_dict"], content["state_dict"] | content[KEPT]["in_training"]):
        model = checkpoint.load(best_of(averaged.experiment))
        model.load_state_dict(kept)
        with torch.no_grad():
            sides = zip((model.embed_images, model.embed_texts), data.test_dataloader(), strict=True)
            embedded = [torch.cat([embed(batch) for batch in loader]) for embed, loader in sides]
        rows, captions = data.image_rows("test"), data.caption_rows("test")
        owners = torch.from_numpy(data.items.caption_images[captions])
        found.append(evaluate_retrieval(*embedded, torch.from_numpy(rows), owners, similarity=model.similarity).metrics)
    for name in ("i2t_mAP", "t2i_mAP", "rsum"):
        assert averaged.experiment.metrics[f"test/{name}"] == pytest.approx(found[0][name], abs=1e-3)
    assert found[0]["t2i_mAP"] != pytest.approx(found[1]["t2i_mAP"], abs=1e-3)


def test_figures_of_each_epoch_are_those_of_the_average(averaged):
    epoch = averaged.experiment.metrics["best_epoch"]
    row = averaged.experiment.record.row_of(epoch)
    assert row["val/rsum"] == max(r["val/rsum"] for r in averaged.experiment.record.history)
    experiment = averaged.experiment
    experiment.trainer.validate(
        experiment.model, experiment.datamodule, ckpt_path=str(best_of(experiment)), verbose=False, weights_only=True
    )
    figures = experiment.trainer.callback_metrics
    for name in ("val/rsum", "val/t2i_mAP", "val/loss"):
        assert float(figures[name]) == pytest.approx(row[name], abs=1e-4)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(workshop, stop_after, averaged):
    stopped, _, _ = workshop.interrupted("averaged-stopped", stop_after(epoch=1), *AIDS)
    resumed = workshop.run("averaged-resumed", *AIDS, f"ckpt_path={last_of(stopped)}")
    ends = [checkpoint.read(last_of(run.experiment)) for run in (resumed, averaged)]
    assert_same(ends[0]["state_dict"], ends[1]["state_dict"])
    assert_same(ends[0][KEPT]["in_training"], ends[1][KEPT]["in_training"])
    assert ends[0][KEPT]["count"] == ends[1][KEPT]["count"] == ends[1]["global_step"]
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    assert resumed.experiment.metrics == averaged.experiment.metrics
    differing = [
        name
        for name, value in ends[0][KEPT]["in_training"].items()
        if not torch.equal(value, ends[0]["state_dict"][name])
    ]
    assert len(differing) > 3


def test_averaging_goes_with_every_choice_of_callbacks(workshop, averaged):
    callbacks = averaged.experiment.trainer.callbacks
    assert any(isinstance(c, AveragedWeights) for c in callbacks)
    assert any(isinstance(c, EarlyStopping) for c in callbacks)
    made = workshop.build("equally", "callbacks/averaging=swa")
    assert any(isinstance(c, AveragedWeights) for c in made.trainer.callbacks)


def test_rates_rise_and_fall(averaged):
    rates = [row["lr"] for row in averaged.experiment.record.history]
    assert rates[0] == rates[1] == 0.005  # the scheduler's; the warm-up is a part of it
    assert np.all(np.diff(rates[1:]) < 0)
