"""Run folders as training leaves them, made up: every file is a real one."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from xmodal.retrieval.metrics import Queries, Relevant, named_figures
from xmodal.retrieval.record import EvaluationRecord, write_record
from xmodal.retrieval.uncertainty import bootstrap_intervals


def one_way(rng, images: int, per_image: int, skill: float, gallery: int) -> Queries:
    """Queries with a single match each, at geometrically distributed ranks: the greater the skill, the nearer to 1."""
    ranks = np.minimum(rng.geometric(skill, size=images * per_image), gallery)
    found = Relevant.from_pairs(np.arange(len(ranks)), ranks - 1)
    return Queries.from_relevant(found, np.repeat(np.arange(images), per_image))


def made_up_evaluation(seed: int, skill: float = 0.1, images: int = 40, captions: int = 5, data="made-up", name="test"):
    rng = np.random.default_rng(seed)
    queries = {
        "i2t": one_way(rng, images, 1, skill, images * captions),
        "t2i": one_way(rng, images, captions, skill, images),
    }
    return EvaluationRecord(name, data, "cosine", queries)


@dataclass
class RunMaker:
    """Makes folders of runs below ``root``."""

    root: Path

    def __call__(
        self,
        name: str,
        settings: dict | None = None,
        skill: float = 0.1,
        seed: int = 0,
        draw: int | None = None,
        split: str = "test",
        data: str = "made-up",
        images: int = 40,
        keep_queries: bool = True,
        provenance: dict | None = None,
        content: str | None = None,
    ) -> Path:
        """A finished run; ``settings`` are dotted keys of its configuration, ``draw`` the seed of its ranks."""
        folder = self.root / name
        folder.mkdir(parents=True)
        record = made_up_evaluation(len(name) if draw is None else draw, skill, images, data=data, name=split)
        record = replace(record, content=content)
        losses = {"train/loss": 1 / (1 + skill), "val/loss": 1.5 / (1 + skill)}
        self._write_config(folder, {"seed": seed, "data.name": data, **(settings or {})})
        self._write_metrics(folder, split, record, losses)
        self._write_history(folder, losses)
        if keep_queries:
            write_record(folder / f"evaluation_{split}.npz", record)
        if provenance is not None:
            (folder / "provenance.json").write_text(json.dumps({"format": 1, "status": "finished", **provenance}))
        return folder

    def failed(self, name: str, error: str) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True)
        said = {"format": 1, "status": "failed", "error": error, "command": "python train.py embedding_dim=4096"}
        (folder / "provenance.json").write_text(json.dumps(said))
        return folder

    @staticmethod
    def _write_config(folder: Path, settings: dict) -> None:
        nested: dict = {}
        for key, value in settings.items():
            *parents, last = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(nested))

    @staticmethod
    def _write_metrics(folder: Path, split: str, record: EvaluationRecord, losses: dict) -> None:
        figures = {f"{split}/{name}": value for name, value in named_figures(record.queries).items()}
        for name, (low, high) in bootstrap_intervals(record.queries, 50).items():
            figures |= {f"{split}/{name}_low": low, f"{split}/{name}_high": high}
        (folder / "metrics.json").write_text(json.dumps({**losses, "best_epoch": 1, **figures}))

    @staticmethod
    def _write_history(folder: Path, losses: dict) -> None:
        rows = [{"epoch": i, "seconds": 10 * (i + 1), **{k: v * (3 - i) for k, v in losses.items()}} for i in range(3)]
        rows[0]["val/loss"] = ""  # not validated
        with (folder / "history.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def make_run(tmp_path):
    return RunMaker(tmp_path / "runs")


@pytest.fixture(scope="session")
def run_maker():
    """For folders that several tests share: ``run_maker(root)`` makes runs as ``make_run`` does."""
    return RunMaker


@pytest.fixture
def evaluation():
    """Makes evaluations up: ``evaluation(seed, skill)``."""
    return made_up_evaluation
