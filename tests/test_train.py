"""The program as a user meets it: `python train.py …` in a process of its own, judged by what it prints and leaves."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from xmodal.models import checkpoint
from xmodal.retrieval.evaluate import evaluate_retrieval

ROOT = Path(__file__).resolve().parents[1]
TINY_SCENES = ["data.train_size=8", "data.val_size=4", "data.test_size=4", "data.image_size=64"]
RANDOM_WEIGHTS = "data.default_weights=null"
SMALL_DETECTOR = ["image_encoder=frcnn", "image_encoder.min_size=64", "image_encoder.max_size=64"]
INTERRUPTED = 130
NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "https_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "no_proxy": "",
    "NO_PROXY": "",
}
WORDS = ("red", "blue", "small", "dog", "cat", "runs", "sits", "on", "the", "grass")


@dataclass(frozen=True)
class Run:
    """What one command left behind: exit code, everything printed, and the folder it wrote to."""

    code: int
    text: str
    outputs: Path

    @property
    def folders(self) -> list[Path]:
        """Run folders, the oldest first."""
        return sorted((path.parent for path in self.outputs.rglob("history.csv")), key=lambda p: p.stat().st_mtime)

    @property
    def metrics(self) -> dict[str, float]:
        return json.loads((self.folders[-1] / "metrics.json").read_text())

    @property
    def features(self) -> set[Path]:
        return set((self.outputs / "features").rglob("*.h5"))


def words(outputs: Path, overrides: Sequence[str]) -> list[str]:
    return [str(ROOT / "train.py"), *overrides, f"paths.output_dir={outputs}", "trainer.enable_progress_bar=false"]


def environment(changes: dict[str, str]) -> dict[str, str]:
    return {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | changes


def in_an_interpreter_of_its_own(outputs: Path, *overrides: str, **changes: str) -> Run:
    """What `started` can't do: see tests/conftest.py."""
    command, variables = [sys.executable, *words(outputs, overrides)], os.environ | environment(changes)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    return Run(done.returncode, done.stdout + done.stderr, outputs)


@pytest.fixture
def started(start) -> Callable[..., Any]:
    """Start the program; ``changes`` are environment variables."""
    return lambda outputs, *overrides, **changes: start(words(outputs, overrides), ROOT, **environment(changes))


@pytest.fixture
def completed(started) -> Callable[..., Run]:
    """Run the program to its end."""

    def run(outputs: Path, *overrides: str, **changes: str) -> Run:
        done = started(outputs, *overrides, **changes).finish()
        assert done.returncode == 0, done.stdout + done.stderr
        return Run(done.returncode, done.stdout + done.stderr, outputs)

    return run


@pytest.fixture
def refused(started) -> Callable[..., str]:
    """Run the program into a fault; everything that it said."""

    def run(outputs: Path, *overrides: str, **changes: str) -> str:
        done = started(outputs, *overrides, **changes).finish()
        return said_in_refusal(Run(done.returncode, done.stdout + done.stderr, outputs))

    return run


def said_in_refusal(run: Run) -> str:
    """Everything that the program said before it stopped as it does on a fault that the user can put right."""
    assert run.code == 2, run.text
    assert "Traceback" not in run.text
    assert not (run.outputs / "features").exists(), "an encoder was started in spite of the fault"
    return run.text


def wait_for(there: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.finish()
        assert time.monotonic() < end, f"not there after {seconds} s"
        time.sleep(0.02)


def karpathy_json(folder: Path, count: int = 24) -> Path:
    """A data set in Karpathy's form without photos: two thirds train, the rest val and test."""
    random = np.random.default_rng(0)
    images = []
    for i in range(count):
        tokens = [list(random.choice(WORDS, 3 + j)) for j in range(5)]
        sentences = [{"tokens": t, "raw": " ".join(t), "imgid": i, "sentid": 5 * i + j} for j, t in enumerate(tokens)]
        split = "train" if i < count * 2 // 3 else ("val", "test")[i % 2]
        images.append(
            {
                "filename": f"{i}.jpg",
                "imgid": i,
                "split": split,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    path = folder / "dataset.json"
    path.write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    return path


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> list[str]:
    """The course's three files at a small width, as settings: JSON, vgg_feats.mat (D × N), fasttext_feats.npy."""
    folder = tmp_path_factory.mktemp("course")
    images = json.loads(karpathy_json(folder).read_text())["images"]
    random = np.random.default_rng(1)
    scipy.io.savemat(folder / "vgg_feats.mat", {"feats": random.random((32, len(images)), dtype=np.float32)})
    sets = np.empty((len(images), 5), dtype=object)
    for i, image in enumerate(images):
        for j, sentence in enumerate(image["sentences"]):
            sets[i, j] = random.random((len(sentence["tokens"]), 20), dtype=np.float32)
    np.save(folder / "fasttext_feats.npy", sets, allow_pickle=True)
    return [
        "data=flickr30k",
        f"data.root={folder}",
        "image_encoder=precomputed",
        f"image_encoder.path={folder}/vgg_feats.mat",
        "text_encoder=precomputed",
        f"text_encoder.path={folder}/fasttext_feats.npy",
    ]


def root_of(settings: Sequence[str]) -> Path:
    return Path(next(setting for setting in settings if setting.startswith("data.root=")).partition("=")[2])


class TestWholeRuns:
    @pytest.mark.slow
    def test_debug_overfit_learns_its_items_by_heart(self, completed, course, tmp_path):
        small = [f"model.{side}_tower.projection.hidden_dim=256" for side in ("image", "text")]
        run = completed(tmp_path, *course, "debug=overfit", "embedding_dim=256", *small, "logger=none")
        assert run.metrics["val/i2t_R1"] >= 95
        assert run.metrics["val/t2i_R1"] >= 95

    def test_course_files_train_end_to_end_and_match_an_evaluation_of_the_checkpoint(self, completed, course, tmp_path):
        run = completed(tmp_path, *course, "trainer.max_epochs=2", "text_aggregator=lstm", "data.num_workers=1")
        model = checkpoint.load(run.folders[-1] / "checkpoints" / "best.ckpt")
        result = evaluated(model, root_of(course), "test")
        assert run.metrics["test/rsum"] == pytest.approx(result["rsum"], abs=1e-3)
        assert run.metrics["test/i2t_mAP"] == pytest.approx(result["i2t_mAP"], abs=1e-3)

    def test_features_whose_maker_is_named_train_and_encode_new_captions(self, completed, course, tmp_path):
        """``made_by`` composes a second configuration inside the running job."""
        random = np.random.default_rng(0)
        lines = [f"{word} {' '.join(f'{x:.3f}' for x in random.random(20))}" for word in WORDS]
        vectors = tmp_path / "words.vec"
        vectors.write_text("\n".join([f"{len(WORDS)} 20", *lines]) + "\n")
        maker = f"text_encoder.made_by='fasttext vectors={vectors}'"
        run = completed(tmp_path, *course, maker, "trainer.max_epochs=1", "logger=none", "test=false")
        vectors.unlink()  # the checkpoint carries them
        model = checkpoint.load(run.folders[-1] / "checkpoints" / "best.ckpt")
        assert model.encode_texts(["red dog", "blue cat"]).shape == (2, 512)

    def test_every_kind_of_picture_in_a_table_trains(self, completed, tmp_path):
        run = completed(
            tmp_path / "out",
            "data=table",
            f"data.file={picture_table(tmp_path)}",
            RANDOM_WEIGHTS,
            *SMALL_DETECTOR,
            "trainer.max_epochs=1",
            "logger=none",
        )
        assert "test/rsum" in run.metrics

    @pytest.mark.slow
    def test_a_multirun_is_one_folder_and_one_grouped_wandb_run_per_job(self, completed, course, tmp_path):
        run = completed(tmp_path, "-m", *course, "trainer.max_epochs=1", "embedding_dim=1,4096", "data.batch_size=999")
        assert len(run.folders) == 2
        assert all((folder / "metrics.json").is_file() for folder in run.folders)
        models = [checkpoint.load(folder / "checkpoints" / "best.ckpt") for folder in run.folders]
        one = torch.zeros(1, 1, 32), torch.ones(1, 1, dtype=torch.bool)
        widths = [model.image_tower(*one).shape[1] for model in models]
        assert sorted(widths) == [1, 4096]
        records = [list(folder.glob("wandb/offline-run-*/*.wandb")) for folder in run.folders]
        assert [len(found) for found in records] == [1, 1]
        group = run.folders[0].parent.name.encode()
        assert all(group in found[0].read_bytes() for found in records)


def evaluated(model: torch.nn.Module, folder: Path, role: str) -> dict[str, float]:
    """The metrics of a split, from the course's files straight through the towers, one set at a time."""
    images = json.loads((folder / "dataset.json").read_text())["images"]
    columns = scipy.io.loadmat(folder / "vgg_feats.mat")["feats"]
    sets = np.load(folder / "fasttext_feats.npy", allow_pickle=True)
    chosen = [i for i, image in enumerate(images) if image["split"] == role]

    def embed(tower: torch.nn.Module, vectors: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(vectors)[None]
        return tower(x, torch.ones(x.shape[:2], dtype=torch.bool))[0]

    with torch.no_grad():
        image = torch.stack([embed(model.image_tower, columns[:, i][None]) for i in chosen])
        text = torch.stack([embed(model.text_tower, sets[i, j]) for i in chosen for j in range(5)])
    ids = torch.tensor(chosen)
    return evaluate_retrieval(image, text, ids, ids.repeat_interleave(5)).metrics


def picture_table(folder: Path) -> Path:
    """A table of 12 pictures: transparent, CMYK, grey, 16-bit, palette, turned by EXIF, plain."""
    random = np.random.default_rng(3)
    rows = []
    for i in range(12):
        picture = Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        name, options = f"{i}.png", {}
        match i % 6:
            case 0:
                picture = picture.convert("RGBA")
                picture.putalpha(100)
            case 1:
                picture, name = picture.convert("CMYK"), f"{i}.jpg"
            case 2:
                picture, name = picture.convert("L"), f"{i}.jpg"
            case 3:
                picture = Image.fromarray(random.integers(0, 65535, (30, 40), dtype=np.uint16))
            case 4:
                picture, name = picture.convert("P"), f"{i}.gif"
            case 5:
                turned = Image.Exif()
                turned[0x0112] = 6
                name, options = f"{i}.jpg", {"exif": turned}
        picture.save(folder / name, **options)
        split = ("train", "train", "val", "test")[i // 3]
        rows += [{"image": name, "caption": f"Picture {i}, said {j} times", "split": split} for j in range(1 + i % 2)]
    path = folder / "pictures.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "split"])
        writer.writeheader()
        writer.writerows(rows)
    return path


class TestRealData:
    def test_flickr8k_line_with_a_holdout(self, completed, real_data, tmp_path):
        run = completed(
            tmp_path,
            "data=flickr8k",
            "image_encoder=precomputed",
            f"image_encoder.path={real_data}/flickr8k/image_feats.mat",
            "text_encoder=fasttext",
            f"text_encoder.vectors={real_data}/vectors/glove-50d.vec.gz",
            "data.holdout=500",
            "data.limit=60",
            "trainer.max_epochs=1",
            "logger=none",
        )
        assert {"val/rsum", "test/rsum"} <= set(run.metrics)

    @pytest.mark.slow
    def test_flickr8k_photos_through_vgg_and_bert_without_a_test_split(self, completed, real_data, tmp_path):
        settings = ["data=flickr8k", "data.limit=3", "text_encoder=bert", RANDOM_WEIGHTS]
        run = completed(tmp_path, *settings, "trainer.max_epochs=1", "logger=none")
        assert "no test split" in run.text
        assert "val/rsum" in run.metrics
        assert not any(name.startswith("test/") for name in run.metrics)
        assert len(run.features) == 2

    def test_wikipedia_experiment_trains(self, completed, real_data, tmp_path):
        run = completed(tmp_path, "experiment=wikipedia", "trainer.max_epochs=1", "logger=none")
        ways = ("i2t", "t2i", "i2i", "t2t")
        assert {f"{split}/{way}_mAP" for split in ("val", "test") for way in ways} <= set(run.metrics)
        assert 15 < run.metrics["test/i2t_mAP_low"] < run.metrics["test/i2t_mAP"]  # chance is below 12

    def test_wikipedia_has_no_photos_for_an_image_encoder(self, refused, real_data, tmp_path):
        said = refused(tmp_path, "data=wikipedia", RANDOM_WEIGHTS)
        assert re.search("no photos.*experiment=wikipedia.* image_encoder=precomputed", said)
        assert re.search("no texts.*experiment=wikipedia.* text_encoder=precomputed", said)


class TestFaults:
    def test_everything_wrong_with_the_command_line_in_one_message(self, refused, tmp_path):
        said = refused(
            tmp_path,
            "embeding_dim=256",
            "loss.margn=0.3",
            "loss=tripplet",
            "trainer.max_epochs=many",
            "data=table",
            "data.file=/nowhere/pairs.csv",
            "text_encoder.vectors=/nowhere/words.vec",
        )
        for hint in (
            "Did you mean 'embedding_dim'",
            "Did you mean 'loss.margin'",
            "Did you mean 'triplet'",
            "trainer.max_epochs=many",
            "/nowhere/pairs.csv",
            "/nowhere/words.vec",
        ):
            assert hint in said

    @pytest.mark.parametrize(
        ("settings", "network"),
        [(["image_encoder=vgg"], "vgg16"), (["text_encoder=bert"], "bert")],
    )
    def test_weights_that_cannot_be_had_name_three_ways_on(self, refused, settings, network, course, tmp_path):
        modality = settings[0].partition("_")[0]
        (tmp_path / "images").mkdir()
        for i in range(24):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{i}.jpg")
        other = [s for s in course if not s.startswith(f"{modality}_encoder")]
        photos = [f"data.image_folder={tmp_path}/images"] if modality == "image" else []
        homes = {"TORCH_HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
        given = [*other, *settings, *photos]
        if modality == "image":
            said = refused(tmp_path / "out", *given, **homes, **NO_NETWORK)
        else:  # transformers reads HF_HOME while it is imported
            said = said_in_refusal(in_an_interpreter_of_its_own(tmp_path / "out", *given, **homes, **NO_NETWORK))
        assert network in said
        for way in ("1. network", "2. a path", f"{modality}_encoder.weights=null"):
            assert way in said

    def test_bad_photos_are_all_named_before_anything_is_encoded(self, refused, tmp_path):
        table = picture_table(tmp_path)
        (tmp_path / "0.png").unlink()
        whole = (tmp_path / "5.jpg").read_bytes()
        (tmp_path / "5.jpg").write_bytes(whole[: len(whole) // 2])
        said = refused(tmp_path / "out", "data=table", f"data.file={table}", RANDOM_WEIGHTS)
        assert "2 of 12 images" in said
        assert re.search(r"doesn't exist: .*0\.png", said)
        assert re.search(r"can't be decoded.*5\.jpg", said)

    def test_faults_of_a_data_set_come_together(self, refused, course, tmp_path):
        content = json.loads((root_of(course) / "dataset.json").read_text())
        images = content["images"]
        images[3]["sentences"][2].update(tokens=[], raw=" ... ")
        images[5]["imgid"] = images[4]["imgid"]
        images[7].update(sentences=[], sentids=[])
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        said = refused(tmp_path / "out", *course, f"data.root={tmp_path}")
        assert re.search("caption.*17", said)
        assert re.search(r"used more than once.*4", said)
        assert re.search(r"without a caption.*7\.jpg", said)

    def test_captions_without_photos_say_what_to_do(self, refused, course, tmp_path):
        captions = [setting for setting in course if not setting.startswith("image_encoder")]
        said = refused(tmp_path, *captions, "image_encoder=vgg", RANDOM_WEIGHTS)
        assert re.search("flickr30k has no photos.*image_encoder=precomputed image_encoder.path=", said)

    def test_absent_training_split_names_those_there_are(self, refused, course, tmp_path):
        said = refused(tmp_path, *course, "data.splits.train=[trian]")
        assert re.search(r"no images for: train.*'trian'.*'train' \(16 images\)", said)

    def test_nan_in_precomputed_features_names_the_images(self, refused, course, tmp_path):
        columns = scipy.io.loadmat(root_of(course) / "vgg_feats.mat")["feats"]
        columns[3, 11] = np.nan
        columns[0, 20] = np.inf
        scipy.io.savemat(tmp_path / "bad.mat", {"feats": columns})
        said = refused(tmp_path / "out", *course, f"image_encoder.path={tmp_path}/bad.mat")
        assert re.search("NaN or infinite values for 2 of 24 images.*11, 20", said)

    def test_features_of_another_data_set_are_refused_by_count(self, refused, course, tmp_path):
        scipy.io.savemat(tmp_path / "other.mat", {"feats": np.ones((32, 25), np.float32)})
        said = refused(tmp_path / "out", *course, f"image_encoder.path={tmp_path}/other.mat")
        assert re.search(r"\(32, 25\).* 24 ", said)


@pytest.mark.slow
def test_last_layers_of_both_encoders_are_trained_and_encode_raw_photos_and_captions(completed, tmp_path):
    """VGG is slow: nine photos, of which each is encoded once."""
    sizes = ["data.train_size=5", "data.val_size=2", "data.test_size=2", "data.image_size=64"]
    tuned = ["image_encoder=vgg", "image_encoder.trainable_layers=1", "text_encoder=bert", RANDOM_WEIGHTS]
    done = completed(tmp_path, "debug=fast", *sizes, *tuned, "text_encoder.trainable_layers=1", "logger=none")
    assert "image encoder: the last layer will be trained, 16,781,312 parameters (67.1 MB" in done.text
    assert "text encoder: the last layer will be trained" in done.text
    model = checkpoint.load(done.folders[-1] / "checkpoints" / "best.ckpt")
    photos = sorted(tmp_path.rglob("scenes/*/images/*.jpg"))[:2]
    images, texts = model.encode_images(photos), model.encode_texts(["a red circle", "two green squares"])
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert float((images[0] - images[1]).abs().max()) > 1e-3


@pytest.mark.slow
def test_a_killed_extraction_goes_on(started, completed, tmp_path):
    settings = [*TINY_SCENES, "image_encoder.batch_size=2", "features.image_chunk_size=2"]
    quick = [*settings, "trainer.max_epochs=1", "logger=none"]
    process = started(tmp_path, *quick)
    wait_for(lambda: len(list(tmp_path.glob("features/scenes/*.parts/chunk-*.h5"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    assert process.finish().returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("features/scenes/*.h5")), "an unfinished file passes for a finished one"

    resumed = completed(tmp_path, *quick)
    already = re.search(r"\((\d+) of 16 already done\)", resumed.text)
    assert already is not None
    assert int(already[1]) >= 4
    assert len(resumed.features) == 2


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_its_hint_really_resumes(started, completed, course, tmp_path):
    process = started(tmp_path, *course, "trainer.max_epochs=100000")
    wait_for(lambda: any(len(path.read_text().splitlines()) > 3 for path in tmp_path.rglob("history.csv")), process)
    process.send_signal(signal.SIGINT)
    done = process.finish(60)
    said = done.stdout + done.stderr
    assert done.returncode == INTERRUPTED, said
    assert "Traceback" not in said
    hint = re.search(r"ckpt_path=(\S+)", said)
    assert hint is not None
    stopped = torch.load(hint[1], weights_only=True)
    more = [f"ckpt_path={hint[1]}", f"trainer.max_epochs={stopped['epoch'] + 3}", "logger=none"]
    resumed = completed(tmp_path, *course, *more)
    history = list(csv.DictReader((resumed.folders[-1] / "history.csv").open()))
    assert [int(row["epoch"]) for row in history] == list(range(stopped["epoch"] + 3))
    best = max(float(row["val/rsum"]) for row in history)
    assert resumed.metrics["val/rsum"] == pytest.approx(best, abs=1e-3)


@pytest.mark.slow
def test_two_processes_make_one_run_with_the_metrics_of_one(completed, course, tmp_path):
    run = completed(
        tmp_path, *course, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "data.batch_size=8"
    )
    assert len(run.folders) == 1
    assert len(list(tmp_path.rglob("*.wandb"))) == 1
    model = checkpoint.load(run.folders[0] / "checkpoints" / "best.ckpt")
    for role in ("val", "test"):
        result = evaluated(model, root_of(course), role)
        for name in ("rsum", "i2t_mAP", "t2i_meanR"):
            assert run.metrics[f"{role}/{name}"] == pytest.approx(result[name], abs=1e-3)


@pytest.mark.slow
def test_processes_of_torchrun_make_one_run(start, course, tmp_path):
    settings = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none", "bootstrap=0"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words(tmp_path, course)]
    done = start([*command, *settings, "test=false", "data.batch_size=8"], ROOT, **environment({})).finish()
    run = Run(done.returncode, done.stdout + done.stderr, tmp_path)
    assert run.code == 0, run.text
    [log] = tmp_path.rglob("train.log")
    assert run.folders == [log.parent]
    assert {path.name for path in log.parent.parent.iterdir()} == {log.parent.name}
    assert (log.parent / "train_rank_1.log").exists()
    assert run.metrics["best_epoch"] == 0
