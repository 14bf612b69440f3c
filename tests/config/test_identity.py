"""Which settings make another run, and which don't."""

import json
from functools import cache
from pathlib import Path

import pytest

from xmodal.config.command_line import compose
from xmodal.config.identity import identity
from xmodal.config.values import resolved

FLICKR = ["data=flickr8k", "image_encoder=precomputed", "image_encoder.path=${data.root}/image_feats.mat"]


def computed(*overrides: str) -> str:
    return identity(resolved(compose(overrides)))


of = cache(computed)  # most tests compare with the same one


def test_it_is_short_and_stays_the_same():
    first = of()
    assert first == computed()
    assert len(first) == 16
    assert int(first, 16) >= 0


@pytest.mark.parametrize(
    "override",
    [
        "paths.output_dir=/elsewhere",
        "logger=none",
        "name=one",
        "tags=[a]",
        "data.num_workers=2",
        "trainer.enable_progress_bar=false",
        "optimized_metric=val/i2t_R1",
        "resume=true",
        "sweep=embedding_dim",
    ],
)
def test_what_does_not_change_the_outcome_does_not_count(override: str):
    assert of(override) == of()


@pytest.mark.parametrize(
    "override",
    ["embedding_dim=64", "text_aggregator=sum", "seed=1", "monitor=val/i2t_R1", "data.limit=7", "test=false"],
)
def test_what_changes_the_outcome_counts(override: str):
    assert of(override) != of()


def test_files_below_the_folders_move_along_and_others_count_by_their_place():
    here, there = (of(*FLICKR, f"paths.data_dir={folder}") for folder in ("/here", "/there"))
    assert here == there
    assert of(*FLICKR, "paths.data_dir=/here", "data.root=/special/flickr8k") != here
    one, other = (of(*FLICKR[:2], f"image_encoder.path=/{folder}/features.mat") for folder in ("a", "b"))
    assert one != other


def checkpoint_of(folder: Path, named: str | None) -> str:
    (folder / "checkpoints").mkdir(parents=True)
    if named is not None:
        (folder / "provenance.json").write_text(json.dumps({"identity": named}))
    return f"ckpt_path={folder}/checkpoints/last.ckpt"


def test_going_on_with_a_run_of_the_same_settings_is_the_same_run(tmp_path: Path):
    assert of(checkpoint_of(tmp_path / "own", of())) == of()
    others = [checkpoint_of(tmp_path / "other", of("seed=1")), checkpoint_of(tmp_path / "unknown", None)]
    assert len({of(), *(of(other) for other in others)}) == 3
