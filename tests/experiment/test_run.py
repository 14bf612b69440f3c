"""A run from configuration to metrics.json: what it leaves behind, and whether its figures are true."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping

from xmodal.errors import DataError, XmodalError
from xmodal.experiment.run import Experiment
from xmodal.models import checkpoint
from xmodal.retrieval.metrics import named_figures
from xmodal.retrieval.record import read_record
from xmodal.types import FeatureBatch

FIGURES = ("R1", "R5", "R10", "medR", "meanR", "mAP")


def history(folder):
    with (folder / "history.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def csv_columns(folder):
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        return next(csv.reader(file))


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def embeddings(model, datamodule, role):
    """One item at a time, without padding: no batch, no loader."""
    images, captions = [], []
    for features, rows, tower, found in (
        (datamodule.image_features, datamodule.image_rows(role), model.image_tower, images),
        (datamodule.text_features, datamodule.caption_rows(role), model.text_tower, captions),
    ):
        for row in rows:
            vectors = torch.tensor(np.asarray(features[int(row)], dtype=np.float32))[None]
            with torch.no_grad():
                found.append(tower(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool))[0].double())
    return images, captions


def naive_metrics(model, datamodule, role):
    """Sorted lists: best rank and average precision of each query."""
    images, captions = embeddings(model, datamodule, role)
    of_image, of_caption = datamodule.image_rows(role), datamodule.items.caption_images[datamodule.caption_rows(role)]
    found = {}
    for way, queries, query_ids, gallery, gallery_ids in (
        ("i2t", images, of_image, captions, of_caption),
        ("t2i", captions, of_caption, images, of_image),
    ):
        ranks, precisions = [], []
        for query, own in zip(queries, query_ids, strict=True):
            scores = [float(query @ other) for other in gallery]
            order = sorted(range(len(gallery)), key=lambda i: (-scores[i], gallery_ids[i] == own))
            hits = [place + 1 for place, i in enumerate(order) if gallery_ids[i] == own]
            ranks.append(hits[0])
            precisions.append(sum((n + 1) / place for n, place in enumerate(hits)) / len(hits))
        for k in (1, 5, 10):
            found[f"{way}_R{k}"] = 100 * sum(rank <= k for rank in ranks) / len(ranks)
        found[f"{way}_medR"] = float(np.median(ranks))
        found[f"{way}_meanR"] = sum(ranks) / len(ranks)
        found[f"{way}_mAP"] = 100 * sum(precisions) / len(precisions)
    found["rsum"] = sum(found[f"{way}_R{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    return found


def test_run_folder_is_complete(plain_run):
    names = {path.relative_to(plain_run.folder).as_posix() for path in plain_run.folder.rglob("*") if path.is_file()}
    wanted = {"metrics.json", "history.csv", "config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert wanted | {"gallery_test.png", "evaluation_test.npz", "csv/metrics.csv"} <= names
    assert not [name for name in names if name.startswith(".")]


def test_metrics_json_is_flat_and_has_every_name(plain_run):
    found = metrics(plain_run.folder)
    wanted = {f"{split}/{way}_{name}" for split in ("val", "test") for way in ("i2t", "t2i") for name in FIGURES}
    wanted |= {"val/rsum", "test/rsum", "train/loss", "val/loss", "test/loss", "best_epoch"}
    assert wanted <= found.keys()
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in found.values())
    assert plain_run.score == found["val/rsum"]


def test_every_figure_of_the_test_has_an_interval(plain_run):
    found = metrics(plain_run.folder)
    ends = {name.removesuffix("_low") for name in found if name.endswith("_low")}
    assert ends == {name.removesuffix("_high") for name in found if name.endswith("_high")}
    figures = {name for name in found if name.startswith("test/") and not name.endswith(("_low", "_high"))}
    assert ends == figures - {"test/loss"}
    assert all(found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] for name in ends)
    assert found["test/rsum_low"] < found["test/rsum"] < found["test/rsum_high"]


def test_intervals_are_of_the_final_evaluation_alone(plain_run):
    names = [*history(plain_run.folder)[0], *csv_columns(plain_run.folder)]
    assert "test/i2t_R1" in names
    assert not [name for name in names if name.endswith(("_low", "_high"))]


def test_record_of_queries_gives_the_figures_again(plain_run):
    record = read_record(plain_run.folder / "evaluation_test.npz")
    items, found = plain_run.experiment.datamodule.items, metrics(plain_run.folder)
    assert (record.name, record.data_name, record.similarity) == ("test", "scenes", "cosine")
    ids = [items.images[row].image_id for row in items.image_rows("test")]
    assert record.queries["i2t"].groups.tolist() == ids
    assert record.queries["t2i"].groups.tolist() == [image for image in ids for _ in range(5)]
    named = {f"test/{name}": value for name, value in named_figures(record.queries).items()}
    assert named == pytest.approx({name: found[name] for name in named}, abs=1e-5)


def test_interrupted_resampling_leaves_figures_and_queries(workshop, monkeypatch):
    experiment = workshop.build("resampling", "trainer.max_epochs=1")
    experiment.fit()

    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xmodal.experiment.run.bootstrap_intervals", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        experiment.test()
    found = metrics(experiment.folder)
    assert {"val/rsum", "test/rsum", "test/t2i_nDCG@10"} <= found.keys()
    record = read_record(experiment.folder / "evaluation_test.npz")
    assert record.queries["t2i"].metrics()["R1"] == pytest.approx(found["test/t2i_R1"], abs=1e-5)


def test_any_figure_of_validation_can_choose_the_best_epoch(workshop):
    settings = ("monitor=val/t2i_mAP", "scheduler=plateau", "callbacks=early_stopping", "bootstrap=0")
    run = workshop.run("monitored", *settings, "trainer.max_epochs=4")
    rows, found = history(run.folder), metrics(run.folder)
    best = max(rows, key=lambda row: row["val/t2i_mAP"])
    assert found["best_epoch"] == best["epoch"]
    assert run.score == found["val/t2i_mAP"] == best["val/t2i_mAP"]
    assert f"t2i_mAP {best['val/t2i_mAP']:.1f}  (" in run.output
    stopping = next(c for c in run.experiment.trainer.callbacks if isinstance(c, EarlyStopping))
    assert float(stopping.best_score) == pytest.approx(best["val/t2i_mAP"], abs=1e-4)
    plateau = run.experiment.trainer.lr_scheduler_configs[0].scheduler
    assert float(plateau.best) == pytest.approx(best["val/t2i_mAP"], abs=1e-4)
    assert not [name for name in found if name.endswith("_low")]
    assert "interval" not in run.output


def test_history_has_one_row_per_epoch(plain_run):
    rows = history(plain_run.folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["step"] for row in rows] == [4, 8, 12]  # 200 pairs in batches of 64
    assert all({"train/loss", "val/loss", "val/rsum", "val/i2t_R1"} <= row.keys() for row in rows)


def test_history_has_the_learning_rate_that_each_epoch_was_trained_with(plain_run):
    expected = [0.005 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in range(3)]
    assert [row["lr"] for row in history(plain_run.folder)] == pytest.approx(expected)


@pytest.mark.parametrize("role", ["val", "test"])
def test_figures_are_those_of_a_naive_loop_over_the_best_model(plain_run, role, data_of):
    model = checkpoint.load(plain_run.folder / "checkpoints" / "best.ckpt")
    expected = naive_metrics(model, data_of(plain_run.experiment), role)
    found = metrics(plain_run.folder)
    assert {name: found[f"{role}/{name}"] for name in expected} == pytest.approx(
        expected, abs=0.02
    )  # float32 there, float64 here


def test_best_epoch_is_that_of_the_highest_rsum(plain_run):
    rows, found = history(plain_run.folder), metrics(plain_run.folder)
    best = max(rows, key=lambda row: row["val/rsum"])
    content = checkpoint.read(plain_run.folder / "checkpoints" / "best.ckpt")
    assert found["best_epoch"] == best["epoch"] == content["epoch"]
    assert {name: found[name] for name in best if "/" in name} == {n: v for n, v in best.items() if "/" in n}


def test_training_learns_something(plain_run):
    rows = history(plain_run.folder)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_gallery_is_a_picture_with_hits_and_misses(plain_run):
    picture = np.asarray(Image.open(plain_run.folder / "gallery_test.png").convert("RGB")).astype(int)
    assert picture.shape[0] > 800
    assert picture.std() > 20
    green = (abs(picture - [0x1A, 0x7F, 0x37]).sum(axis=2) < 20).sum()
    red = (abs(picture - [0xC6, 0x28, 0x28]).sum(axis=2) < 20).sum()
    assert green > 100
    assert red > 100


def test_summary_names_figures_and_files(plain_run):
    found = metrics(plain_run.folder)
    files = ("evaluation_test.npz", "gallery_test.png", "checkpoints/best.ckpt")
    for text in ("image → text", "text → image", str(plain_run.folder), *files):
        assert text in plain_run.output
    assert f"{found['test/rsum']:.1f}" in plain_run.output
    assert f"{found['test/rsum_low']:.0f}–{found['test/rsum_high']:.0f}" in plain_run.output


def test_config_yaml_builds_the_same_experiment_again(plain_run, workshop):
    cfg = OmegaConf.load(plain_run.folder / "config.yaml")
    assert cfg.model.image_tower.feature_dim == 108
    cfg.paths.output_dir = str(workshop.root / "again")
    again = Experiment.build(cfg)
    assert again.folder != plain_run.folder
    again.fit()
    best = max(again.record.history, key=lambda row: row["val/rsum"])
    assert best["val/rsum"] == plain_run.score


def test_extracting_features_does_not_change_the_initial_model(workshop):
    extracted = workshop.build("cold", f"paths.features_dir={workshop.root / 'cold-features'}", "seed=3")
    stored = workshop.build("warm", f"paths.features_dir={workshop.root / 'cold-features'}", "seed=3")
    for name, value in extracted.model.state_dict().items():
        torch.testing.assert_close(stored.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_without_a_test_split_only_val_is_reported(workshop):
    run = workshop.run("no-test", "data.splits.test=[absent]", "trainer.max_epochs=1")
    found = metrics(run.folder)
    assert not [name for name in found if name.startswith("test/")]
    assert "scenes has no test split" in run.output
    assert found["val/rsum"] == run.score
    assert found["val/rsum_low"] < found["val/rsum"] < found["val/rsum_high"]
    assert read_record(run.folder / "evaluation_val.npz").name == "val"
    assert (run.folder / "gallery_val.png").exists()
    assert list((run.folder).glob("gallery_test.png")) == []


def test_validation_can_be_rarer_than_epochs(workshop, data_of):
    run = workshop.run("rare", "trainer.max_epochs=5", "trainer.check_val_every_n_epoch=2", "scheduler=plateau")
    rows, found = history(run.folder), metrics(run.folder)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    assert ["val/rsum" in row for row in rows] == [False, True, False, True, False]
    assert found["best_epoch"] in (1, 3)
    model = checkpoint.load(run.folder / "checkpoints" / "best.ckpt")
    assert found["val/rsum"] == pytest.approx(naive_metrics(model, data_of(run.experiment), "val")["rsum"], abs=1e-4)
    last = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 4


def test_run_that_ends_before_the_first_validation_keeps_its_model(workshop, data_of):
    run = workshop.run("steps", "trainer.max_steps=2")
    found = metrics(run.folder)
    model = checkpoint.load(run.folder / "checkpoints" / "best.ckpt")
    expected = naive_metrics(model, data_of(run.experiment), "test")
    assert {name: found[f"test/{name}"] for name in expected} == pytest.approx(
        expected, abs=0.02
    )  # float32 there, float64 here
    assert "val/rsum" in found


def test_absent_val_split_is_an_error_before_training(workshop):
    with pytest.raises(DataError, match=r"no images for: val \(data.splits.val=\['nowhere'\]\).*'train' \(40 images\)"):
        workshop.build("no-val", "data.splits.val=[nowhere]")


def test_last_checkpoint_is_of_the_last_epoch_though_an_earlier_one_was_best(workshop):
    run = workshop.run("flat", "optimizer.lr=1e-12", "test=false")  # nothing is learned: epoch 0 stays the best
    epochs = {name: checkpoint.read(run.folder / "checkpoints" / name)["epoch"] for name in ("best.ckpt", "last.ckpt")}
    assert epochs == {"best.ckpt": 0, "last.ckpt": 2}
    assert "test=false" in run.output


def test_callbacks_that_a_run_needs_cannot_be_left_out(workshop):
    with pytest.raises(XmodalError, match=r"callbacks\.record can't be left out"):
        workshop.build("no-record", "callbacks.record=null")


def test_images_and_captions_fit_the_batches(plain_run):
    datamodule = plain_run.experiment.datamodule
    batch = next(iter(datamodule.train_dataloader()))
    assert isinstance(batch.image, FeatureBatch)
    assert batch.image.x.shape == (64, 1, 108)
