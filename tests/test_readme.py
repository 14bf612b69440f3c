"""Every command and Python block of the README is run; lines that need data not at hand are composed and checked."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.config.check import check
from xmodal.config.command_line import compose
from xmodal.data.karpathy import KarpathyData
from xmodal.data.table import TableData
from xmodal.experiment.opened_run import constructed

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = os.environ.get("XMODAL_DATA", "/absent")
LINES = [
    line.replace("$XMODAL_DATA", DATA)
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, flags=re.M | re.S)
    for line in block.splitlines()
    if line and not line.startswith("#")
]
SET_UP, COMMANDS = LINES[:2], LINES[2:]
TRAINING = [line for line in COMMANDS if line.startswith("python train.py") and "--help" not in line]
EXTRACTION = [line for line in COMMANDS if line.startswith(("xmodal extract ", "torchrun "))]
FEATURES = [line for line in COMMANDS if line.startswith("xmodal features ")]
ZERO_SHOT = [line for line in COMMANDS if line.startswith("xmodal evaluate --zero-shot ")]
OF_RUNS = [line for line in COMMANDS if line.startswith(("xmodal evaluate ", "xmodal compare "))]
EVALUATION = [line for line in OF_RUNS if line not in ZERO_SHOT]
REPORTS = [line for line in COMMANDS if line.startswith("xmodal report ")]
DASHBOARDS = [line for line in COMMANDS if line.startswith("xmodal dashboard ")]
SYNCING = [line for line in COMMANDS if line.startswith("wandb sync ")]
DOCTOR = [line for line in COMMANDS if line.startswith("xmodal doctor")]
SEARCHING = [line for line in COMMANDS if line.startswith(("xmodal index ", "xmodal search "))]
DEMOS = [line for line in COMMANDS if line.startswith("xmodal demo ")]
EXPORTS = [line for line in COMMANDS if line.startswith("xmodal export ")]
KNOWN = (
    TRAINING + EXTRACTION + FEATURES + OF_RUNS + REPORTS + DASHBOARDS + SYNCING + DOCTOR + SEARCHING + EXPORTS + DEMOS
)
OTHERS = [line for line in COMMANDS if line not in KNOWN]
LIGHT = ["image_encoder=timm", "image_encoder.model=resnet10t"]  # VGG takes seconds, beside what most lines are about
FEW_SCENES = ["data.train_size=6", "data.val_size=2", "data.test_size=2"]


def needs_absent_data(line: str) -> bool:
    at_hand = f"{DATA}/" in line and (Path(DATA) / "flickr8k" / "image_feats.mat").exists()
    return not at_hand and bool(re.search(r"\bdata=(?!scenes)|experiment=", line))


@pytest.fixture(scope="module")
def run(start):
    def finish(words: list[str], folder: Path) -> subprocess.CompletedProcess:
        data = os.environ.get("XMODAL_DATA", str(folder / "data"))
        return start(words, ROOT, XMODAL_DATA=data, WANDB_MODE="offline", OMP_NUM_THREADS="1").finish(600)

    return finish


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_set_up_lines_come_first_and_are_what_ci_runs():
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install") for line in SET_UP)
    assert SET_UP[0].endswith("train.py")
    assert SET_UP[1].endswith("pytest")
    assert "head -n 2" in (ROOT / ".ci" / "run").read_text()


def test_every_command_is_of_a_known_kind():
    assert OTHERS == ["python train.py --help"]
    assert len(TRAINING) >= 10
    assert len(EXTRACTION) == 5
    assert len(FEATURES) == 4
    assert len(EVALUATION) >= 10
    assert len(ZERO_SHOT) == 3
    assert len(REPORTS) >= 2
    assert len(DASHBOARDS) == 2
    assert len(SYNCING) == 2
    assert len(SEARCHING) >= 7
    assert len(EXPORTS) == 2
    assert len(DEMOS) == 2
    assert len(DOCTOR) == 3


def shortened(line: str) -> tuple[str, ...]:
    words = [word for word in shlex.split(line)[1:] if word != "debug=fast"]
    short = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"] if "debug=overfit" in line else ["debug=fast"]
    few = ["embedding_dim=256,512", "text_aggregator=sum"] if "sweep=embedding_dim" in line else []
    words = [word for word in words if not (few and word.startswith("text_aggregator="))]
    scenes = [] if "data=" in line else FEW_SCENES
    return *words, *short, *few, *scenes, *(LIGHT if "encoder" not in line and line != TRAINING[0] else [])


@pytest.mark.slow
@pytest.mark.parametrize("words", dict.fromkeys(shortened(line) for line in TRAINING if not needs_absent_data(line)))
def test_training_line_runs_end_to_end(run, words, outputs):
    done = run([*words, f"paths.output_dir={outputs}"], outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image → text" in done.stdout
    if "debug=fast" in words:
        assert "Extracting" not in done.stdout + done.stderr, "debug=fast writes nothing into the feature store"


def first_of_sweep(word: str) -> str:
    """The first of the values that a multirun goes through; a list in brackets is one value, and so are bounds."""
    key, value = word.split("=", 1)
    if found := re.search(r"interval\(([^,]*),", value):
        return f"{key}={found.group(1)}"
    return word if value.startswith("[") else f"{key}={value.split(',')[0]}"


@pytest.mark.parametrize("line", [line for line in TRAINING + EXTRACTION + ZERO_SHOT if needs_absent_data(line)])
def test_line_with_absent_data_composes(line):
    overrides = [word for word in shlex.split(line)[2:] if "=" in word]
    absent = ("no such", "is absent", "does not exist", "doesn't exist", "there is no file", "there is no folder")
    cfg = compose([first_of_sweep(word) for word in overrides] if "-m" in shlex.split(line) else overrides)
    assert [fault for fault in check(cfg) if not any(words in fault for words in absent)] == []
    for side in ("image_encoder", "text_encoder"):
        constructed(cfg[side])  # which knows the names of timm's models, say


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in EXTRACTION if not needs_absent_data(line)])
def test_extraction_line_fills_the_store(run, line, outputs):
    words = ["-m", "xmodal.cli", *shlex.split(line)[1:]]
    done = run([*words, *FEW_SCENES, f"paths.output_dir={outputs}"], outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name.split("-")[0] for path in (outputs / "features" / "scenes").glob("*.h5")} == {"image", "text"}


def test_help_explains_every_group_and_option_of_the_readme(run, outputs):
    done = run(["train.py", "--help"], outputs)
    assert done.returncode == 0
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`.*) \|$", TEXT, flags=re.M)
    table = [word for row in rows for cell in row for word in re.findall(r"`(\w+)`", cell)]
    assert len(table) > 30
    assert [word for word in table if word not in done.stdout] == []


@pytest.mark.parametrize("line", DOCTOR)
def test_doctor_line_runs(line, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    is_at_hand = "data=flickr8k" not in line or (Path(DATA) / "flickr8k" / "dataset.json").exists()
    code = main(shlex.split(line)[1:])
    told = capsys.readouterr().out + "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert code == (0 if is_at_hand else 1), told
    assert "torch with torchvision" in told


def test_figures_are_filled_in():
    assert "@@" not in TEXT


def test_scripts_that_are_named_exist():
    named = set(re.findall(r"\bbenchmarks/[\w/.-]*\.py\b", TEXT))
    assert "benchmarks/training.py" in named
    assert [script for script in sorted(named) if not (ROOT / script).is_file()] == []


def test_table_of_groups_lists_the_options_of_conf():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (`.*) \|$", TEXT, flags=re.M)
    names = re.compile(r"`(\w+)`")
    listed = {group: set(names.findall(options)) for groups, options in rows for group in names.findall(groups)}
    for group, options in listed.items():
        assert options == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


@dataclass
class Made:
    """A folder with what the README speaks of: a trained run, a second one, and embeddings under their names."""

    folder: Path
    run: Path
    other: Path
    scenes: Path
    given: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Trained once, in this process, for all commands and Python blocks that need a run."""
    from xmodal.experiment.run import Experiment

    folder = tmp_path_factory.mktemp("made")
    scenes = ["data.train_size=6", "data.val_size=4", "data.test_size=10", "data.image_size=64"]
    encoder = ["image_encoder=frcnn", "image_encoder.min_size=64", "image_encoder.max_size=64"]
    short = ["trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none"]
    experiment = Experiment.build(compose([*scenes, *encoder, *short, f"paths.output_dir={folder}"]))
    experiment.fit()
    experiment.test()
    experiment.finish()
    rng = np.random.default_rng(0)
    given = {
        "image_embeddings": rng.normal(size=(4, 8)).astype(np.float32),
        "text_embeddings": rng.normal(size=(8, 8)).astype(np.float32),
        "image_ids": np.arange(4),
        "text_image_ids": np.arange(8) % 4,
    }
    other = shutil.copytree(experiment.folder, folder / "other")
    return Made(folder, experiment.folder, other, folder / "scenes", given)


@pytest.mark.slow
def test_lines_about_stored_features_run_in_their_order(made, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    shutil.copytree(made.folder / "features", tmp_path / "outputs" / "features")
    monkeypatch.chdir(tmp_path)
    image, text = sorted(path.stem for path in (tmp_path / "outputs").rglob("*.h5"))
    printed = []
    for line in FEATURES:
        assert main(shlex.split(line.replace("<key>", image.rpartition("-")[2]))[1:]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert all(stem.rpartition("-")[2] in printed[0] for stem in (image, text))
    assert printed[1].count("sound") == 2
    assert printed[2].startswith("Removed 1 of 1")
    assert printed[3].startswith("Nothing to remove")
    assert [path.stem for path in (tmp_path / "outputs").rglob("*.h5")] == [text]


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.mark.slow
def test_python_block_encodes_with_a_trained_model(made):
    [block] = [block for block in python_blocks() if "checkpoint import load" in block]
    photo = next(made.scenes.rglob("*.jpg"))
    block = re.sub(r'"outputs/[^"]*best.ckpt"', repr(str(made.run / "checkpoints" / "best.ckpt")), block)
    names: dict = {}
    exec(block.replace('"photo.jpg"', repr(str(photo))), names)
    assert (names["images"] @ names["texts"].T).shape == (1, 2)


@pytest.mark.slow
def test_python_block_evaluates_embeddings(made):
    [block] = [block for block in python_blocks() if "import evaluate_retrieval" in block]
    names = dict(made.given)
    exec(block, names)
    assert names["result"].ranks["t2i"].shape == (8,)
    assert len(python_blocks()) == 5


@pytest.mark.slow
@pytest.mark.parametrize("line", EVALUATION)
def test_evaluation_line_runs(line, made, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(made.folder)
    [block] = [block for block in python_blocks() if '"mine.npz"' in block]
    exec(block, dict(made.given))
    places = {"<run>": made.run, "<other>": made.other}
    for placeholder, place in places.items():
        line = line.replace(f"outputs/runs/scenes/{placeholder}", str(place))
    words = shlex.split(line.replace("/where/it/is/now", str(made.scenes)))
    assert main(words[1:]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert ("i2t_R1" if words[1] == "compare" else "image → text") in printed
    assert "--json" not in words or json.loads(Path(words[words.index("--json") + 1]).read_text())


@pytest.mark.slow
def test_lines_about_pages_open_them(made, start, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    for name in (made.run.name, "other"):
        assert main(["index", str(made.run), "--output", f"outputs/indexes/{name}-all"]) == 0, capsys.readouterr().err
    for line in DEMOS:
        words = shlex.split(line.replace("<run>", made.run.name).replace("<other>", "other"))
        program = start(["-m", "xmodal.cli", *words[1:], "--port=0"], tmp_path, OMP_NUM_THREADS="1")
        deadline = time.monotonic() + 120
        while not (said := re.search(r"http://127\.0\.0\.1:\d+/", "".join(program.printed()))):
            assert program.poll() is None, program.printed()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with urllib.request.urlopen(said[0]) as page:
            assert page.status == 200
        program.send_signal(signal.SIGINT)
        assert program.finish(60).returncode == 130


@pytest.mark.slow
def test_lines_about_indexes_and_the_python_block_run_in_their_order(made, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.run, tmp_path / "outputs" / "runs" / "scenes" / made.run.name)
    photo = next(made.scenes.rglob("*.jpg"))
    for place in ("photos/001.jpg", "more_photos/002.jpg", "photo.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / place)
    Path("sentences.txt").write_text("a red star\n\ntwo circles\na blue ring\na cross\n", encoding="utf-8")
    printed = []
    for line in SEARCHING:
        words = shlex.split(line.replace("<run>", made.run.name).replace("outputs/scenes/<scene>.jpg", str(photo)))
        assert main(words[1:]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert json.loads(printed[2])["results"][0]["hits"][0]["caption"]
    [block] = [block for block in python_blocks() if "import SearchEngine" in block]
    exec(block.replace("<run>", made.run.name), {})
    told = capsys.readouterr().out
    assert ".jpg" in told.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("line", EXPORTS)
def test_export_line_runs(line, made, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("outputs/runs/scenes/<run>", str(made.run)))
    assert main(words[1:]) == 0, capsys.readouterr().err
    assert f"Export: {words[-1]}" in capsys.readouterr().out
    assert len(list((tmp_path / words[-1]).iterdir())) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("line", REPORTS)
def test_report_line_runs(line, made, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    places = {"runs/scenes/<run>": made.run, "runs/scenes/<other>": made.other, "multirun/<sweep>": made.run.parent}
    for placeholder, place in places.items():
        line = line.replace(f"outputs/{placeholder}", str(place))
    assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert "with figures" in capsys.readouterr().out
    assert list(tmp_path.rglob("tables/*image-to-text_all.tex"))


@pytest.mark.parametrize("line", DASHBOARDS)
def test_dashboard_line_runs_as_far_as_it_needs_no_network(line, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if "--json" in line:
        assert main(shlex.split(line)[1:]) == 0
        assert json.loads((tmp_path / "dashboard.json").read_text(encoding="utf-8"))["project"] == "my-project"
    else:
        assert main(shlex.split(line)[1:]) == 2
        assert "W&B has no key" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in ZERO_SHOT if not needs_absent_data(line)])
def test_zero_shot_line_runs(line, tmp_path, monkeypatch, capsys):
    from xmodal.cli import main

    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line)[1:], *FEW_SCENES, "data.image_size=64", f"paths.output_dir={tmp_path}"]) == 0
    assert "zero-shot" in capsys.readouterr().out
    assert "rsum" in Path("figures.json").read_text()
    assert [path.name for path in tmp_path.glob("*.npz")] == ["zero_shot.scenes.evaluation_test_gallery_all.npz"]


def block_of(kind: str) -> str:
    """The only block of the README that is marked as of this kind."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", TEXT, flags=re.M | re.S)
    return found


def test_files_of_captions_are_read_as_they_stand(tmp_path: Path):
    (tmp_path / "pairs.csv").write_text(block_of("csv"), encoding="utf-8")
    (tmp_path / "dataset.json").write_text(block_of("json"), encoding="utf-8")
    for photo in ("photos/001.jpg", "photos/002.jpg", "images/001.jpg", "images/002.jpg"):
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / photo)
    table = TableData("mine", file=str(tmp_path / "pairs.csv")).load()
    assert [(len(table.image_rows(split)), len(table.caption_rows(split))) for split in ("train", "val")] == [
        (1, 2),
        (1, 1),
    ]
    entries = KarpathyData("mine", root=tmp_path).load()
    assert [caption.text for caption in entries.captions] == [table.captions[0].text, table.captions[2].text]


@pytest.mark.slow
def test_parts_of_one_s_own_are_trained(tmp_path: Path):
    [line] = [line for line in TEXT.splitlines() if line.startswith("PYTHONPATH=. python train.py")]
    [parts] = [block for block in python_blocks() if block.startswith("# my_parts.py")]
    (tmp_path / "my_parts.py").write_text(parts, encoding="utf-8")
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.M | re.S):
        path = tmp_path / block.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True)
        path.write_text(block, encoding="utf-8")
    words = shlex.split(line)[2:]
    words[0] = str(ROOT / words[0])
    few = [*FEW_SCENES, "data.image_size=64", "image_encoder=timm", "image_encoder.model=resnet10t", "logger=none"]
    given = [sys.executable, *words, *few, "trainer.max_epochs=1", f"paths.output_dir={tmp_path}"]
    done = subprocess.run(given, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [config] = (tmp_path / "runs").glob("*/*/config.yaml")
    assert "_target_: my_parts.LiftedLoss\n  scale: 8" in config.read_text()
    assert "_target_: my_parts.MedianAggregator" in config.read_text()


def test_tables_of_reports_are_copied_to_the_letter():
    copied = re.findall(r"^<!-- (results/\S+\.md) -->\n((?:\|.+\n)+)", TEXT, flags=re.M)
    assert len(copied) == TEXT.count("<!-- results/") >= 2
    for path, block in copied:
        written = (ROOT / path).read_text(encoding="utf-8")
        assert block == "".join(re.findall(r"^\|.*\n", written, flags=re.M)), path
