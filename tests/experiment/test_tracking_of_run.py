"""What a run leaves with its tracker: an offline W&B folder and TensorBoard's event file, read back."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCK, _HEAD = 32768, 7  # LevelDB's log: blocks of 32 KiB, each fragment after 4 bytes CRC, 2 length, 1 kind


def fragments(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = _HEAD  # ":W&B", magic number, version
    while place + _HEAD <= len(content):
        if _BLOCK - place % _BLOCK < _HEAD:
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        yield kind, content[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length


def records(file: Path) -> Iterator[Record]:
    """Records of a .wandb file; kind 1 is a whole one, 2 to 4 are its first, middle and last part."""
    parts = b""
    for kind, data in fragments(file.read_bytes()):
        parts = data if kind in (1, 2) else parts + data
        if kind in (1, 4):
            yield Record.FromString(parts)


@dataclass
class OfflineRun:
    group: str
    config: dict[str, object]
    history: list[dict[str, object]]
    summary: dict[str, object]
    exit_codes: list[int]


def name_of(item) -> str:
    return item.key or ".".join(item.nested_key)


def offline_run(folder: Path) -> OfflineRun:
    """One offline run folder, read record by record."""
    found = OfflineRun("", {}, [], {}, [])
    (file,) = folder.glob("run-*.wandb")
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.group = record.run.run_group
            found.config |= {name_of(item): json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            found.config |= {name_of(item): json.loads(item.value_json) for item in record.config.update}
        elif kind == "history":
            found.history.append({name_of(item): json.loads(item.value_json) for item in record.history.item})
        elif kind == "summary":
            found.summary |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "exit":
            found.exit_codes.append(record.exit.exit_code)
    return found


def finished_run(folder: Path, seconds: float = 120.0) -> OfflineRun:
    """The same, once W&B's own process, which writes after the run has ended, has come to its end; or as it is then."""
    deadline = time.monotonic() + seconds
    while not (found := offline_run(folder)).exit_codes and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def offline_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*"))


@pytest.fixture(scope="module")
def tracked(workshop):
    run = workshop.run("wandb", "logger=wandb", "logger.mode=offline", "trainer.log_every_n_steps=1")
    (folder,) = offline_folders(run.folder)
    return run, finished_run(folder), folder


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


def test_wandb_is_told_of_a_failure(workshop):
    experiment = workshop.build("broken", "logger=wandb", "logger.mode=offline")

    def fail(*arguments: object) -> None:
        raise RuntimeError("no more")

    experiment.trainer.callbacks[0].on_train_batch_end = fail
    with pytest.raises(RuntimeError, match="no more"):
        experiment.fit()
    folder = offline_folders(experiment.folder)[0]
    codes = finished_run(folder).exit_codes
    assert codes == [1]


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
    assert names == files | {"checkpoints"}
    assert run.experiment.metrics == tracked[0].experiment.metrics
