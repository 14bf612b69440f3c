"""What a run leaves with its tracker: an offline W&B folder and TensorBoard's event file, read back."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image

from xmodal.retrieval.record import read_record
from xmodal.tracking.dashboard import spec_of, standard_dashboard

OFFLINE = ("logger=wandb", "logger.mode=offline")


def offline_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*"))


@pytest.fixture(scope="module")
def tracked(workshop, wandb_record):
    run = workshop.run("wandb", *OFFLINE, "trainer.log_every_n_steps=1", "tags=[first]")
    (folder,) = offline_folders(run.folder)
    return run, wandb_record(folder), folder


def test_wandb_has_the_flat_configuration(tracked):
    config = tracked[1].config
    assert config["loss.margin"] == 0.2
    assert config["optimizer.lr"] == 0.005
    assert config["data.train_size"] == 40
    assert config["image_aggregator._target_"] == "xmodal.aggregators.mean.MeanAggregator"
    assert config["model.image_tower.feature_dim"] == 108


def test_wandb_has_every_epoch(tracked):
    run, found, _ = tracked
    rsums = [row["val/rsum"] for row in found.history if "val/rsum" in row]
    expected = [row["val/rsum"] for row in run.experiment.record.history]
    assert rsums[: len(expected)] == pytest.approx(expected, abs=1e-4)
    assert len([row for row in found.history if "train/loss" in row]) == 3
    rates = [value for row in found.history for name, value in row.items() if name.startswith("lr-")]
    assert rates[0] == 0.005
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


def test_wandb_summary_has_the_best_epoch_and_the_test(tracked):
    run, found, _ = tracked
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert {name: found.summary[name] for name in metrics} == pytest.approx(metrics)
    assert "test/rsum_low" in metrics
    assert not [name for row in found.history for name in row if name.endswith(("_low", "_high"))]


def test_wandb_has_the_gallery(tracked):
    run, found, folder = tracked
    (names,) = [row["test/gallery.filenames"] for row in found.history if "test/gallery.filenames" in row]
    (path,) = [folder / "files" / name for name in names]
    assert path.read_bytes() == (run.folder / "gallery_test.png").read_bytes()


def test_wandb_run_is_finished(tracked):
    assert tracked[1].exit_codes == [0]


def test_wandb_is_told_of_a_failure_and_keeps_the_best_epoch(workshop, wandb_record):
    experiment = workshop.build("broken", *OFFLINE, "trainer.max_epochs=5", "monitor=val/t2i_R1")

    def fail(trainer: object, *arguments: object) -> None:
        if trainer.current_epoch == 4:
            raise RuntimeError("no more")

    experiment.trainer.callbacks[0].on_train_batch_end = fail
    with pytest.raises(RuntimeError, match="no more"):
        experiment.fit()
    found = wandb_record(offline_folders(experiment.folder)[0])
    assert found.exit_codes == [1]
    history = experiment.record.history
    best = next(row for row in history if row["val/t2i_R1"] == max(row["val/t2i_R1"] for row in history))
    figures = {name: value for name, value in best.items() if "/" in name}
    assert {name: found.summary[name] for name in figures} == pytest.approx(figures)
    assert found.summary["best_epoch"] == best["epoch"]
    assert [name for name in found.summary if name.startswith(("i2t/val", "t2i/val"))] == []


def test_wandb_groups_and_tags(tracked):
    message = tracked[1].run
    assert message.job_type == "train"
    assert message.run_group == "", "no sweep"
    assert list(message.tags) == ["first", "scenes", "precomputed", "fasttext", "mean", "triplet"]


def test_wandb_has_columns_for_a_table_of_runs(tracked):
    run, found, _ = tracked
    names = {"image_encoder": "precomputed", "text_encoder": "fasttext", "text_aggregator": "mean", "loss": "triplet"}
    assert {name: found.config[name] for name in names} == names
    provenance = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))
    assert found.config["identity"] == provenance["identity"]
    assert found.config["data_fingerprint"] == provenance["data"]["fingerprint"]
    assert found.config["run_folder"] == str(run.folder)


def test_wandb_is_told_what_to_show_figures_over(tracked):
    metrics = tracked[1].metrics
    assert metrics["val/*"].step_metric == metrics["i2t/val_*"].step_metric == "epoch"
    assert metrics["train/*"].step_metric == "trainer/global_step"
    assert metrics["epoch"].options.hidden
    ours = [metric for name, metric in metrics.items() if name.startswith(("val/", "train/", "i2t/", "t2i/"))]
    assert all(metric.summary.none for metric in ours), "the summary has one epoch's figures, not the last ones"


def test_wandb_has_a_section_for_each_direction(tracked):
    run, found, _ = tracked
    for way in ("i2t", "t2i"):
        for figure in ("R1", "R5", "R10", "medR", "mAP"):
            expected = [row[f"val/{way}_{figure}"] for row in run.experiment.record.history]
            assert found.column(f"{way}/val_{figure}") == pytest.approx(expected, abs=1e-4)
    logged = [row for row in found.history if "i2t/val_R1" in row]
    assert [row["epoch"] for row in logged] == [0, 1, 2]
    assert [row["trainer/global_step"] for row in logged] == [4, 8, 12]


def test_wandb_has_histograms_of_ranks(tracked):
    run, found, _ = tracked
    queries = read_record(run.folder / "evaluation_test.npz").queries
    for way, count in (("i2t", 12), ("t2i", 60)):
        epochs = found.column(f"{way}/val_log10_rank.values")
        assert [sum(values) for values in epochs] == [count] * 3
        (values,), (edges,) = (found.column(f"{way}/test_log10_rank.{part}") for part in ("values", "bins"))
        ranks = queries[way].ranks
        for place, counted in enumerate(values):
            low, high, is_last = edges[place], edges[place + 1], place == len(values) - 1
            inside = [low <= math.log10(rank) and (math.log10(rank) < high or is_last) for rank in ranks]
            assert counted == sum(inside)


def test_throughput_is_in_history_and_wandb(tracked):
    run, found, _ = tracked
    pace = [row["pairs_per_second"] for row in run.experiment.record.history]
    assert found.column("train/pairs_per_second") == pytest.approx(pace, abs=0.06)
    seconds = np.diff([0.0, *(row["seconds"] for row in run.experiment.record.history)])
    assert all(200 / rate <= whole for rate, whole in zip(pace, seconds, strict=True)), "validation does not count"
    assert "train/pairs_per_second" not in run.experiment.metrics
    header = (run.folder / "history.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "pairs_per_second" in header.split(",")


def test_dashboard_shows_what_a_run_logs(tracked):
    found = tracked[1]
    sent = spec_of(standard_dashboard("team", "retrieval"))["spec"]["section"]
    logged = {name.split(".")[0] for row in found.history for name in row} | set(found.summary) | {"val/gallery"}
    named = set()
    for panel in (panel for section in sent["panelBankConfig"]["sections"] for panel in section["panels"]):
        shown = panel["config"]
        named |= {*shown.get("metrics", ()), *shown.get("mediaKeys", ()), shown.get("xAxis"), shown.get("yAxis")}
        named |= {column["accessor"] for column in shown.get("columns", ())}
    named |= set(sent["runSets"][0]["runFeed"]["columnPinned"])
    of_config = {name for name in named if name and name.startswith("config:")}
    assert {name.removeprefix("config:").removesuffix(".value") for name in of_config} <= set(found.config)
    figures = {name.removeprefix("summary:") for name in named - of_config if name}
    assert figures - logged == {"run:displayName"}
    assert len(figures) > 30
    assert any(name.startswith("lr-") for name in logged)


def table_of(found, name):
    """Content of a logged table, and the place of each of its files by the name it goes by."""
    (artifact,) = [one for one in found.artifacts if name.replace("/", "") in one.name]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    return json.loads(files[f"{name}.table.json"].read_text(encoding="utf-8")), files


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_wandb_has_tables_of_what_was_retrieved(tracked, way):
    run, found, _ = tracked
    table, files = table_of(found, f"{way}/test_retrieved")
    said = json.loads((run.folder / "retrieved_test.json").read_text(encoding="utf-8"))["ways"][way]
    assert table["columns"] == ["kind", "rank", "id", "query", "ground truth", *(f"top {n}" for n in range(1, 6))]
    assert len(table["data"]) == len(said) > 2
    for row, query in zip(table["data"], said, strict=True):
        assert row[:3] == [query["kind"], query["rank"], query["query"]["id"]]
        marks = [f"{'✓' if one['match'] else '✗'} {one['score']:.3f}" for one in query["top"]]
        if way == "i2t":
            assert row[4] == "\n".join(item["text"] for item in query["truth"])
            assert row[5:] == [f"{mark} {one['item']['text']}" for mark, one in zip(marks, query["top"], strict=True)]
            assert looks_like(files[row[3]["path"]], query["query"]["path"])
        else:
            assert row[3] == query["query"]["text"]
            assert looks_like(files[row[4]["path"]], query["truth"][0]["path"])
            assert [cell["caption"] for cell in row[5:]] == [
                f"{mark} {one['item']['id']}" for mark, one in zip(marks, query["top"], strict=True)
            ]
            assert looks_like(files[row[5]["path"]], query["top"][0]["item"]["path"])
    assert found.summary[f"{way}/test_retrieved.nrows"] == len(said), "W&B finds tables by the summary"


def looks_like(copy, photo):
    pictures = [np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (copy, photo)]
    return pictures[0].shape == pictures[1].shape and np.abs(pictures[0] - pictures[1]).mean() < 8


def test_folder_of_an_offline_run_is_complete(tracked):
    _, found, folder = tracked
    staged = [Path(entry.local_path) for one in found.artifacts for entry in one.manifest.contents]
    assert len(staged) > 10
    assert all(path.is_file() and path.is_relative_to(folder) for path in staged)
    assert all((folder / "files" / name).is_file() for name in found.files)


def test_wandb_sync_takes_the_folder_as_it_is(tracked):
    folder = tracked[2]
    words = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would sync 1 run" in done.stdout + done.stderr
    assert next(folder.glob("run-*.wandb")).name in done.stdout + done.stderr


def test_offline_no_artifact_is_kept_unless_told(tracked):
    assert Counter(one.type for one in tracked[1].artifacts) == {"run_table": 2}
    assert not (tracked[0].folder / "index").exists()


def test_checkpoint_and_indexes_as_artifacts(workshop, wandb_record):
    run = workshop.run("kept", *OFFLINE, "logger.log_model=true", "trainer.max_epochs=1")
    found = wandb_record(offline_folders(run.folder)[0])
    kept = {one.type: one for one in found.artifacts if one.type != "run_table"}
    files = {kind: {e.path: Path(e.local_path) for e in one.manifest.contents} for kind, one in kept.items()}
    assert files["model"] == {"best.ckpt": run.folder / "checkpoints" / "best.ckpt"}
    assert set(files["index"]) == {"images.faiss", "captions.faiss", "ids.json"}
    assert all("best" in one.aliases for one in kept.values())
    metadata = json.loads(kept["model"].metadata)
    assert metadata["figures"] == run.experiment.metrics
    assert (metadata["similarity"], metadata["embedding_dim"]) == ("cosine", 16)
    ids = json.loads(files["index"]["ids.json"].read_text(encoding="utf-8"))
    with np.load(run.folder / "embeddings_test.npz") as sample:
        text = sample["text"] / np.linalg.norm(sample["text"], axis=1, keepdims=True)
        _, rows = faiss.read_index(str(files["index"]["images.faiss"])).search(text.astype(np.float32), 1)
        image = sample["image"] / np.linalg.norm(sample["image"], axis=1, keepdims=True)
        assert [ids["images"][row] for row in rows[:, 0]] == sample["image_ids"][(text @ image.T).argmax(1)].tolist()
    assert len(ids["captions"]) == 70


def test_tensorboard_has_figures_and_the_gallery(workshop):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = workshop.run("tensorboard", "logger=tensorboard", "trainer.max_epochs=2")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    expected = [row["val/rsum"] for row in run.experiment.record.history]
    assert [event.value for event in events.Scalars("val/rsum")][:2] == pytest.approx(expected, abs=1e-3)
    assert [event.value for event in events.Scalars("test/rsum")] == pytest.approx(
        [run.experiment.metrics["test/rsum"]]
    )
    assert events.Tags()["images"] == ["test/gallery"]


def test_without_logger_the_record_is_the_same(workshop, tracked):
    run = workshop.run("none")
    names = {path.name for path in run.folder.iterdir()}
    files = {"metrics.json", "history.csv", "config.yaml", "evaluation_test.npz", "gallery_test.png"}
    for_reports = {"provenance.json", "retrieved_test.json", "embeddings_test.npz"}
    assert names == files | for_reports | {"checkpoints"}
    assert run.experiment.metrics == tracked[0].experiment.metrics
