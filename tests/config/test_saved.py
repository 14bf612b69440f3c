"""Settings typed for a saved configuration."""

import pytest

from xmodal.config.command_line import compose
from xmodal.config.saved import with_overrides
from xmodal.errors import ConfigError

SAVED = {
    "paths": {
        "data_dir": "/old",
        "output_dir": "/made",
        "features_dir": "/made/features",
        "cache_dir": "/made/cache",
    },
    "data": {"_target_": "xmodal.data.wikipedia.WikipediaData", "root": "/old/wiki", "name": "old", "limit": None},
    "image_encoder": {"path": "/old/wiki/raw.mat", "key": ["a", "b"]},
    "text_encoder": {"path": "/older/raw.mat", "vectors": "???", "trainable_layers": 1},
    "features": {"dtype": "float16", "chunk_size": 64},
    "embedding_dim": 8,
    "callbacks": {"record": {"folder": "/made/runs"}},
}


def test_values_are_replaced_and_the_saved_ones_stay():
    cfg = with_overrides(SAVED, ["data.limit=3", "features.dtype=float32", "image_encoder.key=[c]"])
    assert (cfg.data.limit, cfg.features.dtype, cfg.image_encoder.key) == (3, "float32", ["c"])
    assert SAVED["data"]["limit"] is None
    unchanged = with_overrides(SAVED, [])
    grown = ("features", "data")
    assert {key: unchanged[key] for key in SAVED if key not in grown} == {
        key: SAVED[key] for key in SAVED if key not in grown
    }
    assert {key: unchanged.data[key] for key in SAVED["data"]} == SAVED["data"]


def test_settings_of_features_that_an_older_run_did_not_have_are_the_defaults_and_can_be_typed():
    cfg = with_overrides(SAVED, ["features.memory_gb=0.5"])
    assert (cfg.features.dtype, cfg.features.chunk_size, cfg.features.memory_gb) == ("float16", 64, 0.5)
    assert set(cfg.features) == {*compose([]).features, "chunk_size"}
    assert with_overrides(SAVED, []).features.memory_gb == compose([]).features.memory_gb


def test_an_older_run_had_all_items_and_photos_can_be_left_out_now():
    cfg = with_overrides(SAVED, ["data.exclude=[17,x.jpg]"])
    assert (cfg.data.on_error, cfg.data.exclude) == ("error", [17, "x.jpg"])
    assert with_overrides(SAVED, ["data.on_error=skip"]).data.exclude == []
    newer = {**SAVED, "data": {**SAVED["data"], "on_error": "error", "exclude": [3]}}
    assert with_overrides(newer, []).data.exclude == [3]
    with pytest.raises(ConfigError, match=r"data\.on_error=ignore: expected one of error, skip"):
        with_overrides(SAVED, ["data.on_error=ignore"])


def test_files_below_a_moved_folder_move_along():
    cfg = with_overrides(SAVED, ["paths.data_dir=/new"])
    assert (cfg.data.root, cfg.image_encoder.path) == ("/new/wiki", "/new/wiki/raw.mat")
    assert cfg.text_encoder.path == "/older/raw.mat"  # begins alike, lies elsewhere
    assert cfg.data.name == "old"
    cfg = with_overrides(SAVED, ["paths.output_dir=/there"])
    assert (cfg.paths.features_dir, cfg.paths.cache_dir) == ("/there/features", "/there/cache")
    assert cfg.callbacks.record.folder == "/made/runs"


def test_the_innermost_folder_decides_and_what_is_typed_wins():
    cfg = with_overrides(SAVED, ["paths.data_dir=/new", "data.root=/wiki"])
    assert (cfg.data.root, cfg.image_encoder.path) == ("/wiki", "/wiki/raw.mat")
    cfg = with_overrides(SAVED, ["data.root=/wiki", "image_encoder.path=/mine.mat"])
    assert cfg.image_encoder.path == "/mine.mat"


def test_paths_are_seen_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_overrides(SAVED, ["data.root=here"]).data.root == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("data.limt=3", r"no key 'data\.limt'\. Did you mean 'data\.limit'"),
        ("text_encoder.trainable_layers=0", r"belongs to the trained model, and can't be changed"),
        ("data.limit=x", "expected a whole number of at least 1 or null, found 'x'"),
        ("data.limit=0", "of at least 1 or null, found 0"),
        ("data.limit=1,2", "one value for a key"),
        ("~data.limit", "one value for a key"),
        ("++data.limit=1", "one value for a key"),
        ("data.limit", "expected key=value"),
        ("data=flickr8k", "keeps its choice of data"),
        ("embedding_dim=9", "embedding_dim belongs to the trained model"),
        ("callbacks.record.folder=x", "callbacks belongs to the trained model"),
    ],
)
def test_faults_are_explained(line, fault):
    with pytest.raises(ConfigError, match=fault):
        with_overrides(SAVED, [line])


def test_all_faults_come_at_once():
    with pytest.raises(ConfigError) as found:
        with_overrides(SAVED, ["embedding_dim=9", "data.limt=3", "data.limit=4", "nonsense"])
    assert len(found.value.faults) == 3
