"""Where a run comes from: provenance.json at its start, at its end, and after what went wrong."""

import json
import platform
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch

from xmodal.config.identity import identity
from xmodal.config.values import resolved
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.provenance import one_line

REPOSITORY = Path(__file__).resolve().parents[2]


def provenance(folder):
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def git(*words):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this checkout is no git repository")
    done = subprocess.run(["git", "-C", REPOSITORY, *words], capture_output=True, text=True)
    if "dubious ownership" in done.stderr:
        pytest.skip("git does not read a checkout of another user's")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def items():
    images = tuple(ImageItem(f"i{n}", "train" if n < 3 else "val", label=n % 2) for n in range(5))
    return Items("five", images, tuple(Caption(n, n // 2, f"words {n}") for n in range(10)))


def test_finished_run(plain_run):
    said = provenance(plain_run.folder)
    assert (said["format"], said["status"], said["error"], said["sweep"]) == (1, "finished", None, None)
    assert datetime.fromisoformat(said["started"]).utcoffset().total_seconds() == 0
    assert said["seconds"] > max(row["seconds"] for row in plain_run.experiment.record.history)
    assert said["versions"]["python"] == platform.python_version()
    assert {"xmodal", "torch", "pytorch-lightning", "hydra-core", "transformers", "faiss", "numpy"} <= set(
        said["versions"]
    )
    assert said["machine"]["cores"] >= 1
    assert said["machine"]["threads"] == torch.get_num_threads()
    assert shlex.split(said["command"]) == ["python", *sys.argv]


def test_commit_is_that_of_the_code(plain_run):
    commits = git("rev-list", "-n", "20", "HEAD").split()
    said = provenance(plain_run.folder)["git"]
    assert said["commit"] in commits, "the head, or what it was when the run began"
    assert isinstance(said["dirty"], bool)


def test_data_of_a_run(plain_run):
    said, items = provenance(plain_run.folder)["data"], plain_run.experiment.datamodule.items
    assert said["name"] == "scenes"
    assert said["fingerprint"] == items.fingerprint()
    assert said["splits"] == {"train": [40, 200], "val": [12, 60], "test": [14, 70]}
    assert (said["images"], said["captions"]) == (66, 330)


def test_identity_is_that_of_the_settings(plain_run, workshop):
    same = resolved(workshop.compose("elsewhere", "logger=none", "name=other"))
    assert provenance(plain_run.folder)["identity"] == identity(same)
    assert identity(resolved(workshop.compose("elsewhere", "embedding_dim=8"))) != identity(same)


def test_run_that_can_not_be_built(workshop):
    with pytest.raises(DataError, match="no images for: val"):
        workshop.build("unbuilt", "data.splits.val=[nowhere]")
    said = provenance(workshop.root / "unbuilt" / "runs" / "manual")
    assert said["status"] == "failed"
    assert "nowhere" in said["error"]
    assert "\n" not in said["error"]
    assert said["data"] is None
    assert said["seconds"] >= 0


def test_run_that_fails_in_training(workshop):
    experiment = workshop.build("broken_off")
    assert provenance(experiment.folder)["status"] == "running"

    def fail(*arguments: object) -> None:
        raise RuntimeError("no\n more")

    experiment.trainer.callbacks[0].on_train_batch_end = fail
    with pytest.raises(RuntimeError, match="no"):
        experiment.fit()
    said = provenance(experiment.folder)
    assert (said["status"], said["error"]) == ("failed", "RuntimeError: no more")
    assert said["data"]["images"] == 66


def test_interrupted_run_and_the_one_that_goes_on(workshop, stop_after):
    stopped, leaving, _ = workshop.interrupted("stopped", stop_after(epoch=0))
    assert leaving.code == 130
    before = provenance(stopped.folder)
    assert (before["status"], before["error"]) == ("interrupted", None)
    last = stopped.folder / "checkpoints" / "last.ckpt"
    after = provenance(workshop.run("gone_on", f"ckpt_path={last}").folder)
    assert after["status"] == "finished"
    assert after["identity"] == before["identity"]


def test_unwritable_provenance_loses_nothing_else(workshop):
    folder = workshop.root / "in_the_way" / "runs" / "manual"
    (folder / "provenance.json" / "x").mkdir(parents=True)  # a folder can't be replaced by a file
    (folder / "retrieved_test.json" / "x").mkdir(parents=True)
    run = workshop.run("in_the_way")
    assert "provenance.json can't be written" in run.output
    assert "What was retrieved can't be written" in run.output
    assert run.score == json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["val/rsum"]
    assert [path for path in folder.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError(["one fault", "another"]), "one fault another"),
        (ValueError("a\n\nb"), "ValueError: a b"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 600), "ValueError: " + "x" * 487 + "…"),
    ],
)
def test_error_in_one_line(error, said):
    assert one_line(error) == said


def test_fingerprint_knows_every_change(items):
    images, captions = list(items.images), list(items.captions)
    moved = replace(items, images=(replace(images[0], split="val"), *images[1:]))
    relabelled = replace(items, images=(replace(images[0], label=7), *images[1:]))
    reworded = replace(items, captions=(replace(captions[0], text="other"), *captions[1:]))
    regiven = replace(items, captions=(replace(captions[0], image=1), *captions[1:]))
    other_roles = items.with_splits({"train": ["val"], "val": ["train"]})
    shorter = replace(items, captions=items.captions[:-1])
    changed = [items, moved, relabelled, reworded, regiven, other_roles, shorter, items.limited(1)]
    assert len({one.fingerprint() for one in changed}) == len(changed)
    assert items.fingerprint() == replace(items, name="other").fingerprint()


def test_fingerprint_goes_by_no_file(items, tmp_path):
    here = replace(items, images=tuple(replace(image, path=tmp_path / "absent.jpg") for image in items.images))
    assert here.fingerprint() == items.fingerprint()
