"""`xmodal evaluate` in this process: a small trained run, files of embeddings, and what can be wrong with them."""

import csv
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.cli import main
from xmodal.config.command_line import compose
from xmodal.config.evaluation import RERANKINGS, SIMILARITIES, EvaluationOptions
from xmodal.errors import DataError
from xmodal.experiment import evaluation
from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import build_parts
from xmodal.experiment.run import Experiment, build_datamodule
from xmodal.experiment.summary import print_summary
from xmodal.models import checkpoint
from xmodal.retrieval import hubness
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.index import IVFPQIndex
from xmodal.retrieval.record import read_record

COLOURS = ("red", "green", "blue", "black")
SPLITS = ("train",) * 12 + ("val",) * 6 + ("test",) * 8
QUICK = ("--bootstrap", "0")


@dataclass
class Trained:
    """A finished run and where its data lies."""

    folder: Path
    data: Path
    experiment: Experiment

    @property
    def metrics(self) -> dict[str, float]:
        return json.loads((self.folder / "metrics.json").read_text())

    def copy(self, target: Path) -> Path:
        """The run's folder somewhere else."""
        return shutil.copytree(self.folder, target)


def write_table(folder: Path) -> None:
    """26 images with one to three captions each, a colour as their class, and features that tell the colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = rng.permutation(len(SPLITS)) % len(COLOURS)
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "split", "label"])
        for i, (split, colour) in enumerate(zip(SPLITS, colours, strict=True)):
            for j in range(1 + i % 3):
                rows.writerow(
                    [f"photo{i}.jpg", f"a {COLOURS[colour]} thing number {i} seen {j}", split, COLOURS[colour]]
                )
    features = rng.normal(size=(len(SPLITS), 12)) + 3 * np.eye(12)[colours]
    np.save(folder / "images.npy", features.astype(np.float32))


def train(root: Path, *overrides: str) -> Trained:
    write_table(root / "data")
    fixed = [
        "data=table",
        f"data.file={root / 'data' / 'pairs.csv'}",
        "image_encoder=precomputed",
        f"image_encoder.path={root / 'data' / 'images.npy'}",
        *("text_encoder.vector_size=8", "text_encoder.epochs=1", "text_encoder.bucket=50"),
        *("embedding_dim=8", "model.image_tower.projection.hidden_dim=16", "model.text_tower.projection.hidden_dim=16"),
        *("trainer=cpu", "trainer.max_epochs=2", "trainer.enable_progress_bar=false", "logger=none"),
        *("data.batch_size=7", f"paths.output_dir={root / 'out'}", "callbacks.retrieval.ks=[2]"),
    ]
    experiment = Experiment.build(compose([*fixed, *overrides]))
    experiment.fit()
    experiment.test()
    experiment.finish()
    return Trained(experiment.folder, root / "data", experiment)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of a file of embeddings are kept in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copied(run: Trained, tmp_path: Path) -> Path:
    """A run folder of its own for tests that look at what is written into it."""
    return run.copy(tmp_path / "copied")


def evaluated(tmp_path: Path, *words: object) -> dict[str, float]:
    """Figures that `xmodal evaluate` writes into its JSON file."""
    target = tmp_path / "figures.json"
    assert main(["evaluate", *map(str, words), "--json", str(target)]) == 0
    return json.loads(target.read_text())


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What is said of a command line that is refused."""
    capsys.readouterr()
    assert main(["evaluate", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def embedded(run: Trained) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images and captions, one by one, with the image row of each caption."""
    model = checkpoint.load(run.folder / "checkpoints" / "best.ckpt")
    cfg = run.experiment.cfg  # read anew, because the run's own data module holds pooled captions by now
    parts = build_parts(cfg)
    data = build_datamodule(cfg, parts, load_dataset(cfg, parts))

    def one_by_one(features, embed):
        batches = (features.pad(np.array([row]), np.array([row])) for row in range(len(features)))
        with torch.no_grad():
            return np.concatenate([embed(batch).double().numpy() for batch in batches])

    images = one_by_one(data.image_features, model.embed_images)
    return images, one_by_one(data.text_features, model.embed_texts), data.items.caption_images


def naive_ranks(queries: np.ndarray, gallery: np.ndarray, is_match) -> list[int]:
    """1 + number of non-matching items that score at least as high as the best match; 0 without a match."""
    ranks = []
    for q, query in enumerate(queries):
        scores = [float(query @ item) for item in gallery]
        matches = [score for g, score in enumerate(scores) if is_match(q, g)]
        others = [score for g, score in enumerate(scores) if not is_match(q, g)]
        ranks.append(1 + sum(score >= max(matches) for score in others) if matches else 0)
    return ranks


def rows_of(split: str) -> np.ndarray:
    return np.flatnonzero(np.array(SPLITS) == split)


# --- a run -------------------------------------------------------------------------------------------------------


def test_figures_and_intervals_are_those_of_the_run(run, copied, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    found = evaluated(tmp_path, copied)
    own = {name: value for name, value in run.metrics.items() if name.startswith("test/") and name != "test/loss"}
    assert {
        "test/i2t_R1",
        "test/i2t_R2",
        "test/i2t_R1_low",
        "test/t2i_fractional_R5_high",
        "test/rsum_low",
    } <= own.keys()
    assert found == pytest.approx(own, abs=1e-5)
    printed = capsys.readouterr().out
    assert "test of table, 8 images, 15 captions, cosine similarity" in printed
    assert f"{found['test/t2i_mAP']:.1f}" in printed
    assert "Evaluating test, which table has" in caplog.text


def test_record_of_every_query_is_in_the_run_folder_under_the_ids_of_the_data(run, copied, tmp_path):
    (copied / "evaluation_test.npz").unlink()
    found = evaluated(tmp_path, copied, *QUICK)
    record = read_record(copied / "evaluation_test.npz")
    assert (record.name, record.data_name, record.similarity) == ("test", "table", "cosine")
    assert record.queries["i2t"].groups.tolist() == [f"photo{i}.jpg" for i in rows_of("test")]
    assert record.queries["i2t"].metrics()["R1"] == pytest.approx(found["test/i2t_R1"])
    own = read_record(run.folder / "evaluation_test.npz")
    assert record.queries["t2i"].ranks.tolist() == own.queries["t2i"].ranks.tolist()


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits_have_the_figures_of_a_naive_loop(run, copied, tmp_path, split):
    images, texts, image_of = embedded(run)
    rows, captions = rows_of(split), np.flatnonzero(np.isin(image_of, rows_of(split)))
    expected = naive_ranks(images[rows], texts[captions], lambda q, g: rows[q] == image_of[captions[g]])
    found = evaluated(tmp_path, copied, "--split", split, *QUICK)
    assert read_record(copied / f"evaluation_{split}.npz").queries["i2t"].ranks.tolist() == expected
    assert found[f"{split}/i2t_R1"] == pytest.approx(100 * np.mean(np.array(expected) == 1))


def test_gallery_train_is_the_split_train(copied, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert evaluated(tmp_path, copied, "--gallery", "train", *QUICK) == evaluated(
        tmp_path, copied, "--split=train", *QUICK
    )
    assert "the same as --split train" in caplog.text


def test_gallery_all_searches_every_split_for_the_queries_of_one(run, copied, tmp_path, capsys):
    images, texts, image_of = embedded(run)
    rows, captions = rows_of("test"), np.flatnonzero(np.isin(image_of, rows_of("test")))
    i2t = naive_ranks(images[rows], texts, lambda q, g: rows[q] == image_of[g])
    t2i = naive_ranks(texts[captions], images, lambda q, g: image_of[captions[q]] == g)
    found = evaluated(tmp_path, copied, "--gallery", "all", *QUICK)
    queries = read_record(copied / "evaluation_test_gallery_all.npz").queries
    assert queries["i2t"].ranks[queries["i2t"].matched].tolist() == i2t
    assert queries["t2i"].ranks[queries["t2i"].matched].tolist() == t2i
    assert found["test_gallery_all/t2i_meanR"] == pytest.approx(np.mean(t2i))
    assert not [name for name in found if name.startswith("test/")]
    assert "8 images, 15 captions; gallery: all splits, 26 images, 51 captions" in capsys.readouterr().out


def test_folds_are_the_mean_of_their_parts(run, copied, tmp_path):
    images, texts, image_of = embedded(run)
    parts = []
    for rows in np.split(rows_of("test"), 4):
        captions = np.flatnonzero(np.isin(image_of, rows))
        parts.append(
            naive_ranks(texts[captions], images[rows], lambda q, g, r=rows, c=captions: image_of[c[q]] == r[g])
        )
    found = evaluated(tmp_path, copied, "--protocol", "folds", "--folds", 4, *QUICK)
    expected = np.mean([100 * np.mean(np.array(ranks) == 1) for ranks in parts])
    assert found["test_folds4/t2i_R1"] == pytest.approx(expected)
    assert read_record(copied / "evaluation_test_folds4.npz").name == "test_folds4"


@pytest.mark.parametrize("method", RERANKINGS)
def test_correction_is_reported_beside_the_plain_figures(run, copied, tmp_path, method, capsys):
    plain = evaluated(tmp_path, copied, *QUICK)
    found = evaluated(tmp_path, copied, "--rerank", method, "--inverse-temperature", 5, *QUICK)
    assert {name: value for name, value in found.items() if name.startswith("test/")} == plain
    corrected = {name.partition("/")[2]: value for name, value in found.items() if name.startswith(f"test_{method}/")}
    images, texts, image_of = (torch.from_numpy(one) for one in embedded(run))
    train, test = rows_of("train"), rows_of("test")
    of_train, of_test = np.isin(image_of, train), np.isin(image_of, test)
    bank = hubness.QueryBank(images[train].float(), texts[of_train].float(), method, 5.0)
    expected = evaluate_retrieval(
        images[test].float(), texts[of_test].float(), test, image_of[of_test], bank=bank
    ).reranked
    assert {name: corrected[name] for name in expected.metrics} == pytest.approx(expected.metrics, abs=1e-4)
    assert corrected != {name.partition("/")[2]: value for name, value in plain.items()}
    assert f"test_{method}" in capsys.readouterr().out
    assert read_record(copied / f"evaluation_test_{method}.npz").name == f"test_{method}"


def test_bank_can_be_limited_and_is_drawn_by_seed(copied, tmp_path):
    def corrected(*words: object) -> float:
        words = ("--rerank", "inverted_softmax", "--inverse-temperature", 50, *words)
        return evaluated(tmp_path, copied, *words, *QUICK)["test_inverted_softmax/t2i_mAP"]

    drawn = [corrected("--bank-size", 2, "--seed", seed) for seed in range(4)]
    assert len(set(drawn)) > 1
    assert corrected("--bank-size", 2, "--seed", 3) == drawn[3]
    assert corrected("--bank-size", 999) == corrected()


def top(queries: np.ndarray, gallery: np.ndarray, k: int) -> list[set[int]]:
    """The k best items of each query, by sorting."""
    return [set(sorted(range(len(gallery)), key=lambda g: -(query @ gallery[g]))[:k]) for query in queries]


def test_index_recall_is_the_share_of_the_exact_top_that_it_finds(run, copied, tmp_path, capsys):
    images, texts, image_of = embedded(run)
    of_test, rows = np.isin(image_of, rows_of("test")), rows_of("test")
    found = evaluated(tmp_path, copied, "--gallery", "all", "--index", "flat", *QUICK)
    assert found["test_gallery_all/i2t_index_recall@10"] == found["test_gallery_all/t2i_index_recall@10"] == 100
    found = evaluated(tmp_path, copied, "--gallery", "all", "--index", "ivf_pq lists=1 bits=1 codes=1", *QUICK)
    index = IVFPQIndex(lists=1, bits=1, codes=1)
    sides = {"i2t": (images[rows], texts), "t2i": (texts[of_test], images)}
    for way, (queries, gallery) in sides.items():
        built = index.build(gallery.astype(np.float32), "cosine")
        _, returned = built.search(queries.astype(np.float32), 10)
        shares = [len(set(r) & best) / 10 for r, best in zip(returned.tolist(), top(queries, gallery, 10), strict=True)]
        assert found[f"test_gallery_all/{way}_index_recall@10"] == pytest.approx(100 * np.mean(shares))
        assert np.mean(shares) < 1
    assert "index=ivf_pq lists=1 bits=1 codes=1 finds of the exact top 10" in capsys.readouterr().out


def test_class_relevance_takes_the_labels_and_has_a_name_of_its_own(run, copied, tmp_path):
    images, texts, image_of = embedded(run)
    labels = run.experiment.datamodule.items.labels
    rows, captions = rows_of("test"), np.flatnonzero(np.isin(image_of, rows_of("test")))
    of_captions = labels[image_of[captions]]
    expected = naive_ranks(images[rows], texts[captions], lambda q, g: labels[rows[q]] == of_captions[g])
    found = evaluated(tmp_path, copied, "--relevance", "class", *QUICK)
    assert read_record(copied / "evaluation_test_class.npz").queries["i2t"].ranks.tolist() == expected
    assert "test_class/i2i_mAP" in found
    assert (
        evaluated(tmp_path, copied, "--relevance", "instance", *QUICK).keys()
        == evaluated(tmp_path, copied, *QUICK).keys()
    )


def test_data_may_have_moved(run, copied, tmp_path):
    expected = evaluated(tmp_path, copied, *QUICK)
    moved = shutil.copytree(run.data, tmp_path / "moved" / "data")
    run.data.rename(run.data.with_name("gone"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(moved)
            overrides = ("data.file=pairs.csv", "image_encoder.path=images.npy")
            files = [f"{key}={moved / value}" for key, _, value in (line.partition("=") for line in overrides)]
            assert evaluated(tmp_path, copied, *QUICK, *files) == expected
            assert evaluated(tmp_path, copied, *QUICK, *overrides) == expected
        assert main(["evaluate", str(copied)]) == 2
    finally:
        run.data.with_name("gone").rename(run.data)


def test_a_limited_data_set_keeps_the_encoder_and_does_not_replace_the_record(run, copied, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = (copied / "evaluation_test.npz").read_bytes()
    images, texts, image_of = embedded(run)
    rows = rows_of("test")[:4]
    captions = np.flatnonzero(np.isin(image_of, rows))
    expected = naive_ranks(texts[captions], images[rows], lambda q, g: image_of[captions[q]] == rows[g])
    record = tmp_path / "limited.npz"
    evaluated(tmp_path, copied, "data.limit=4", "--record", record, *QUICK)
    assert read_record(record).queries["t2i"].ranks.tolist() == expected
    evaluated(tmp_path, copied, "data.limit=4", *QUICK)
    assert "--record FILE" in caplog.text
    assert (copied / "evaluation_test.npz").read_bytes() == before


def test_without_a_test_split_val_is_evaluated_and_it_says_so(copied, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = evaluated(tmp_path, copied, "data.splits.test=[]", *QUICK)
    assert {name.partition("/")[0] for name in found} == {"val"}
    assert "Evaluating val: table has no test split." in caplog.text


def test_a_single_checkpoint_keeps_its_record_beside_it(run, tmp_path):
    lone = shutil.copy(run.folder / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    found = evaluated(tmp_path, lone, *QUICK)
    assert found["test/rsum"] == run.metrics["test/rsum"]
    assert read_record(tmp_path / "model.evaluation_test.npz").name == "test"


def test_figures_are_printed_though_nothing_can_be_written(copied, tmp_path, capsys, caplog):
    (copied / "evaluation_test.npz").unlink()
    (copied / "evaluation_test.npz").mkdir()  # root may write into read-only folders
    assert main(["evaluate", str(copied), *QUICK]) == 0
    assert "image → text" in capsys.readouterr().out
    assert re.search(r"evaluation_test\.npz can't be written \(Is a directory\).*--record FILE", caplog.text)
    taken = tmp_path / "taken.npz"
    (tmp_path / "taken_querybank.npz").mkdir()
    assert "taken_querybank.npz is a folder" in refused(capsys, copied, "--rerank", "querybank", "--record", taken)
    options = EvaluationOptions(rerank="querybank", bootstrap=0)
    with pytest.raises(DataError, match=r"taken_querybank\.npz can't be written"):  # as if it came up meanwhile
        evaluation.evaluate_and_report("run", copied, options, [], evaluation.Targets(record=taken))
    assert "test_querybank" in capsys.readouterr().out
    assert read_record(taken).name == "test"


def test_ctrl_c_leaves_with_130_and_nothing_written(copied, tmp_path, capsys, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "save", interrupted)
    assert main(["evaluate", str(copied), *QUICK, "--json", str(tmp_path / "x.json")]) == 130
    said = capsys.readouterr()
    assert "image → text" in said.out
    assert said.err.startswith("Interrupted.")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("data.limt=4",), "no key 'data.limt'. Did you mean 'data.limit'?"),
        (("embedding_dim=4",), "embedding_dim belongs to the trained model"),
        (("data=flickr8k",), "keeps its choice of data; single settings"),
        (("data.limit=x",), "expected a whole number of at least 1 or null, found 'x'"),
        (("+data.more=1",), "one value for a key that it has"),
        (("folder",), "expected key=value"),
        (("--split", "tset"), "--split must be one of train, val, test, found tset"),
        (("--splt", "test"), "Did you mean '--split'?"),
        (("--folds", "3"), r"--folds 3 does not cut 8 images.*Possible: --folds 2 or 4\."),
        (("--protocol", "folds", "--split", "val"), r"--folds 5 does not cut 6 images.*Possible: --folds 2 or 3\."),
        (("--folds", "1"), "--folds must be at least 2, found 1"),
        (("--folds", "2", "--protocol", "full"), "--folds 2 belongs to --protocol folds"),
        (("--folds", "2", "--gallery", "all"), "choose one of them"),
        (("--folds", "2", "--index", "flat"), "choose one of them"),
        (("--gallery", "train", "--split", "val"), "leaves nothing of --split val"),
        (("--rerank", "querybank", "--split", "train"), "where the queries would find themselves"),
        (
            ("--rerank", "querybank", "--gallery", "all"),
            "bank from train, whose items --gallery all puts into the gallery",
        ),
        (("--bank-size", "4"), "add --rerank querybank or inverted_softmax"),
        (("--rerank", "querybank", "--inverse-temperature", "nan"), "must be a positive number, found nan"),
        (("--bootstrap", "-1"), "at least 40 for a 95 % interval, or 0 for none; found -1"),
        (("--bootstrap", "39"), "at least 40.*found 39"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--similarity", "dot"), "a run compares as it was trained"),
        (("--index", "hnws"), "Did you mean 'hnsw'?"),
        (("--index", "hnsw ef_search=0"), "index.ef_search must be at least 1, found 0"),
        (("--json", "/nowhere/figures.json"), "there is no folder /nowhere"),
        (("--embeddings", "x.npz"), "--embeddings takes a file alone"),
    ],
)
def test_a_wrong_request_is_explained(run, words, fault, capsys):
    assert re.search(fault.replace("?", r"\?").replace("+", r"\+"), refused(capsys, run.folder, *words))


def test_links_pipes_and_folders_are_never_replaced(run, tmp_path, capsys):
    """As /dev/stdout would be, which is a link and, where output is redirected, leads to a plain file."""
    (tmp_path / "target.json").write_text("kept")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    os.mkfifo(tmp_path / "pipe.json")
    for flag in ("--json", "--record"):
        for name in ("link.json", "pipe.json"):
            assert f"{name} is a link, a pipe or a device" in refused(capsys, run.folder, flag, tmp_path / name)
        assert "is a folder; name a file in it" in refused(capsys, run.folder, flag, tmp_path)
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "pipe.json").is_fifo()
    assert (tmp_path / "target.json").read_text() == "kept"


def test_what_is_read_and_what_is_written_never_take_one_anothers_place(run, copied, tmp_path, capsys):
    best, metrics = copied / "checkpoints" / "best.ckpt", copied / "metrics.json"
    images = shutil.copy(run.data / "images.npy", tmp_path / "images.npy")
    kept = {path: path.read_bytes() for path in (best, metrics, Path(images))}
    assert f"--json {metrics} would replace a file of the run" in refused(capsys, copied, "--json", metrics)
    assert "would replace a file of the run" in refused(capsys, copied, "--record", best)
    assert "would replace the file that is read" in refused(capsys, best, "--json", best)
    words = (f"image_encoder.path={images}", "--json", Path("..") / tmp_path.name / "images.npy")
    assert "would replace the file of image_encoder.path" in refused(capsys, copied, *words)
    assert "--record one would replace the file of --json" in refused(
        capsys, copied, "--json", "one", "--record", "one"
    )
    words = ("--rerank", "querybank", "--record", "one.npz", "--json", "one_querybank.npz")
    assert "--rerank querybank: one_querybank.npz would replace the file of --json" in refused(capsys, copied, *words)
    said = refused(capsys, copied, "--json", copied / "evaluation_test.npz")
    assert "would replace the queries of this very evaluation" in said
    assert {path: path.read_bytes() for path in kept} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "images.npy"]


def test_brackets_in_paths_are_no_markup(run, tmp_path, capsys):
    folder = run.copy(tmp_path / "out[a=1]" / "m[" / "b]")
    assert main(["evaluate", str(folder), *QUICK]) == 0
    assert f"{folder}/checkpoints/best.ckpt: test of table" in capsys.readouterr().out
    print_summary(run.metrics, folder)
    assert f"Run folder: {folder}\n" in capsys.readouterr().out


def test_a_correction_of_other_scores_than_cosines_needs_its_temperature(run, tmp_path, capsys):
    content = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    content["xmodal"]["config"]["model"]["similarity"] = "euclidean"
    torch.save(content, tmp_path / "far.ckpt")
    words = ("--rerank", "querybank", *QUICK)
    said = refused(capsys, tmp_path / "far.ckpt", *words)
    assert "--rerank querybank needs --inverse-temperature BETA under euclidean similarity" in said
    assert "test_querybank/rsum" in evaluated(tmp_path, tmp_path / "far.ckpt", *words, "--inverse-temperature", 0.5)


@pytest.mark.parametrize("content", [b"hi", b"", b"hello world", b"PK", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_checkpoint_is_refused_in_own_words(tmp_path, capsys, content):
    (tmp_path / "bad.ckpt").write_bytes(content)
    said = refused(capsys, tmp_path / "bad.ckpt")
    assert "bad.ckpt can't be read as a checkpoint: it is damaged, or" in said
    assert "weights_only" not in said


def test_a_checkpoint_with_objects_is_not_loaded(tmp_path, capsys):
    torch.save({"xmodal": Path("x")}, tmp_path / "objects.ckpt")
    said = refused(capsys, tmp_path / "objects.ckpt")
    assert "holds Python objects" in said
    assert "weights_only" not in said


def test_classes_that_are_not_there_are_missed(run, tmp_path, capsys):
    rows = list(csv.DictReader((run.data / "pairs.csv").open(encoding="utf-8")))
    with (tmp_path / "plain.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["image", "caption", "split"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    said = refused(capsys, run.folder, f"data.file={tmp_path / 'plain.csv'}", "--relevance", "class")
    assert "Relevance by class needs a label for every image, but 26 of the 26 images" in said
    assert "--relevance instance" in said


def test_all_faults_come_at_once(run, capsys):
    said = refused(capsys, run.folder, "--folds", "1", "--bootstrap", "3", "--similarity", "dot")
    assert said.startswith("3 faults in the command line:")


def test_what_is_no_run_is_said_with_what_is_there(run, tmp_path, capsys):
    assert "Say what to evaluate" in refused(capsys)
    assert "the run comes first" in refused(capsys, "data.limit=3")
    assert f"There is no file or folder {tmp_path / 'absent'}." in refused(capsys, tmp_path / "absent")
    runs = tmp_path / "runs"
    shutil.copytree(run.folder, runs / "one")
    assert f"Did you mean {runs / 'one'}?" in refused(capsys, runs)
    (tmp_path / "file.npz").touch()
    assert "--embeddings" in refused(capsys, tmp_path / "file.npz")


def test_features_of_another_width_are_refused(run, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.zeros((len(SPLITS), 13), dtype=np.float32))
    said = refused(capsys, run.folder, f"image_encoder.path={tmp_path / 'wide.npy'}")
    assert "13 wide, but the model was trained on width 12" in said


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "test"),
        ({"folds": 4}, "test_folds4"),
        ({"protocol": "folds"}, "test_folds5"),
        ({"gallery": "all", "relevance": "class"}, "test_gallery_all_class"),
        ({"relevance": "instance"}, "test"),
    ],
)
def test_names_tell_other_figures_from_the_plain_ones(options, name):
    assert EvaluationOptions(**options).name("test", "instance") == name


# --- a file of embeddings ----------------------------------------------------------------------------------------


def arrays(images: int = 6, per_image: int = 2, width: int = 5, **others: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "image_embeddings": rng.normal(size=(images, width)).astype(np.float32),
        "text_embeddings": rng.normal(size=(images * per_image, width)).astype(np.float32),
        "image_ids": np.arange(images),
        "text_image_ids": np.repeat(np.arange(images), per_image),
        **others,
    }


def saved(tmp_path: Path, **found: np.ndarray) -> Path:
    path = tmp_path / "mine.npz"
    np.savez(path, **found)
    return path


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_file_has_the_figures_of_evaluate_retrieval(tmp_path, similarity):
    given = arrays()
    found = evaluated(tmp_path, "--embeddings", saved(tmp_path, **given), "--similarity", similarity, "--bootstrap", 50)
    expected = evaluate_retrieval(**given, similarity=similarity, bootstrap=50)
    assert {name: found[f"test/{name}"] for name in expected.metrics} == pytest.approx(expected.metrics, abs=1e-5)
    low, high = expected.intervals["t2i_mAP"]
    assert (found["test/t2i_mAP_low"], found["test/t2i_mAP_high"]) == pytest.approx((low, high), abs=1e-5)


def test_file_leaves_its_record_in_the_current_folder_or_where_it_is_told(tmp_path, monkeypatch):
    path = saved(tmp_path, **arrays(image_ids=np.array(list("abcdef")), text_image_ids=np.repeat(list("abcdef"), 2)))
    found = evaluated(tmp_path, "--embeddings", path, "--split", "dev", *QUICK)
    assert {name.partition("/")[0] for name in found} == {"dev"}
    record = read_record(tmp_path / "mine.evaluation_dev.npz")
    assert (record.name, record.queries["t2i"].groups.tolist()) == ("dev", [*np.repeat(list("abcdef"), 2)])
    evaluated(tmp_path, "--embeddings", path, "--record", tmp_path / "here.npz", *QUICK)
    assert read_record(tmp_path / "here.npz").name == "test"
    assert not (tmp_path / "mine.evaluation_test.npz").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = set(tmp_path.iterdir())
    assert main(["evaluate", "--embeddings", "../mine.npz", *QUICK]) == 0
    assert [record.name for record in Path().iterdir()] == [f"{tmp_path.name}.mine.evaluation_test.npz"]
    assert set(tmp_path.iterdir()) == before


def test_file_with_classes_goes_by_them_unless_told_otherwise(tmp_path):
    given = arrays(image_labels=np.array(list("xyzxyz")))
    path = saved(tmp_path, **given)
    found = evaluated(tmp_path, "--embeddings", path, *QUICK)
    assert found["test/i2i_mAP"] == pytest.approx(evaluate_retrieval(**given).metrics["i2i_mAP"], abs=1e-5)
    found = evaluated(tmp_path, "--embeddings", path, "--relevance", "instance", *QUICK)
    assert found["test_instance/i2t_R1"] == pytest.approx(evaluate_retrieval(**arrays()).metrics["i2t_R1"], abs=1e-5)


def test_file_in_folds_and_corrected(tmp_path):
    rng = np.random.default_rng(2)
    path = saved(tmp_path, **arrays(bank_images=rng.normal(size=(9, 5)), bank_texts=rng.normal(size=(9, 5))))
    found = evaluated(tmp_path, "--embeddings", path, "--folds", 3, "--rerank", "inverted_softmax", *QUICK)
    assert {name.partition("/")[0] for name in found} == {"test_folds3", "test_folds3_inverted_softmax"}
    assert found["test_folds3/rsum"] != found["test_folds3_inverted_softmax/rsum"]


def test_corrected_figures_by_class_are_those_across_the_sides(tmp_path, capsys):
    rng = np.random.default_rng(2)
    banks = {"bank_images": rng.normal(size=(9, 5)), "bank_texts": rng.normal(size=(9, 5))}
    path = saved(tmp_path, **arrays(image_labels=np.array(list("xyzxyz")), **banks))
    found = evaluated(tmp_path, "--embeddings", path, "--rerank", "querybank", "--bootstrap", 50)
    assert {name for name in found if name.endswith("_R1")} == {
        *(
            f"test/{way}_R1"
            for way in ("i2t", "t2i", "i2i", "t2t", "i2t_fractional", "t2i_fractional", "i2i_fractional")
        ),
        "test/t2t_fractional_R1",
        *(f"test_querybank/{way}_R1" for way in ("i2t", "t2i", "i2t_fractional", "t2i_fractional")),
    }
    assert set(read_record(tmp_path / "mine.evaluation_test_querybank.npz").queries) == {"i2t", "t2i"}
    assert len([line for line in capsys.readouterr().out.splitlines() if "→" in line]) == 6


def test_what_took_no_part_is_counted(tmp_path, capsys):
    given = arrays(image_ids=np.array([0, 1, 2, 3, 4, 77]))
    given["image_embeddings"][0] = 0
    evaluated(tmp_path, "--embeddings", saved(tmp_path, **given), *QUICK)
    printed = capsys.readouterr().out
    assert "1 image has no match among the captions: in the text → image gallery" in printed
    assert "2 captions have no match among the images: in the image → text gallery" in printed
    assert "1 image embedding is the zero vector" in printed


def test_a_single_query_image_has_figures_and_no_intervals(tmp_path, capsys):
    given = arrays(images=1, per_image=3)
    found = evaluated(tmp_path, "--embeddings", saved(tmp_path, **given), "--bootstrap", 50)
    assert found["test/rsum"] == 600
    assert not [name for name in found if name.endswith(("_low", "_high"))]
    printed = capsys.readouterr().out
    assert "1 image, 3 captions, 5 wide" in printed
    assert "No intervals" in printed


def test_arrays_of_no_use_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = saved(tmp_path, **arrays(names=np.arange(6), image_paths=np.arange(6)))
    evaluated(tmp_path, "--embeddings", path, *QUICK)
    assert f"{path} also holds names, image_paths, of which no use is made." in caplog.text


def test_nothing_replaces_the_file_that_is_evaluated(tmp_path, capsys):
    path = saved(tmp_path, **arrays())
    link = tmp_path / "folder"
    link.symlink_to(tmp_path)
    before = path.read_bytes()
    for flag in ("--json", "--record"):
        for target in (path, "mine.npz", link / "mine.npz"):
            said = refused(capsys, "--embeddings", path, flag, target)
            assert f"{flag} {target} would replace the file that is read" in said
    assert path.read_bytes() == before
    words = ("--json", tmp_path / "mine.evaluation_test.npz")
    assert "queries of this very evaluation" in refused(capsys, "--embeddings", path, *words)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in arrays().items() if key != name}


@pytest.mark.parametrize(
    ("given", "words", "fault"),
    [
        (without("text_image_ids"), (), r"mine\.npz lacks text_image_ids; it holds image_embeddings, text_embeddings"),
        (without("image_ids") | {"image_id": np.arange(6)}, (), "lacks image_ids.*Did you mean 'image_id'"),
        (arrays(image_ids=np.arange(5)), (), r"image_ids must be .*shape \(6,\); found int64 \(5,\)"),
        (arrays(image_ids=np.arange(6) / 2), (), "image_ids must be integers or strings.*found float64"),
        (
            arrays(text_embeddings=np.ones(12)),
            (),
            r"text_embeddings must be numbers of shape \(count, width\).*\(12,\)",
        ),
        (arrays(text_embeddings=np.full((12, 5), "a")), (), "text_embeddings must be numbers.*<U1"),
        (arrays(text_embeddings=np.ones((12, 4))), (), r"the same width, found .*\(6, 5\), text_embeddings \(12, 4\)"),
        (arrays(text_embeddings=np.full((12, 5), np.nan)), (), "12 of 12 rows hold NaN or infinity: rows 0, 1"),
        (arrays(image_ids=np.array(["a", 1, 2, 3, 4, 5], dtype=object)), (), "image_ids can't be read.*dtype=str"),
        (arrays(), ("--rerank", "querybank"), "bank of training queries, but .* lacks bank_images and bank_texts"),
        (arrays(), ("--relevance", "class"), "goes by classes, but .* lacks image_labels"),
        (arrays(image_label=np.arange(6)), (), "no use for an array 'image_label'. Did you mean 'image_labels'"),
        (arrays(img_labels=np.arange(6)), (), "no use for an array 'img_labels'. Did you mean 'image_labels'"),
        (arrays(text_labels=np.arange(12)), (), "text_labels are classes, which both sides need, but .* image_labels"),
        (arrays(), ("--folds", "4"), r"--folds 4 does not cut 6 images.*Possible: --folds 2 or 3\."),
        (arrays(images=7), ("--folds", "7"), "--folds 7 does not cut 7 images.*evaluate the full split"),
        (arrays(), ("--rerank", "querybank", "--similarity", "dot"), "needs --inverse-temperature BETA under dot"),
        (arrays(), ("--gallery", "all"), "an embeddings file is one gallery"),
        (arrays(), ("--split", "a/b"), "can't name figures and files"),
        (arrays(), ("data.limit=3",), "--embeddings takes a file alone"),
    ],
)
def test_wrong_file_is_explained(given, words, fault, tmp_path, capsys):
    path = saved(tmp_path, **given)
    assert re.search(fault, refused(capsys, "--embeddings", path, *words))
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_npz_is_refused_and_nothing_in_it_runs(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    assert "There is no file" in refused(capsys, "--embeddings", tmp_path / "absent.npz")
    trap = tmp_path / "trap.npz"
    np.savez(trap, **(arrays() | {"image_ids": np.array([Trap()] * 6, dtype=object)}))
    assert "image_ids can't be read" in refused(capsys, "--embeddings", trap)
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    said = refused(capsys, "--embeddings", text)
    assert "can't be read as an .npz: it is another kind of file" in said
    assert "allow_pickle" not in said
    assert f"{tmp_path} is a folder" in refused(capsys, "--embeddings", tmp_path)
    np.save(tmp_path / "one.npy", np.ones(3))
    assert "a single array" in refused(capsys, "--embeddings", tmp_path / "one.npy")
    assert not (tmp_path / "sprung").exists()


def test_json_is_whole_or_not_there(tmp_path):
    (tmp_path / "figures.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        evaluation.write_json(tmp_path / "figures.json", {"test/rsum": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    (tmp_path / "x.txt").touch()
    with pytest.raises(DataError, match="neither a run folder nor a checkpoint"):
        evaluation.embed_run(tmp_path / "x.txt", EvaluationOptions(), [], torch.device("cpu"))
