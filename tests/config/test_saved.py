"""Settings typed for a saved configuration."""

import pytest

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
    "text_encoder": {"path": "/older/raw.mat", "vectors": "???"},
    "features": {"dtype": "float16"},
    "embedding_dim": 8,
    "callbacks": {"record": {"folder": "/made/runs"}},
}


def test_values_are_replaced_and_the_saved_ones_stay():
    cfg = with_overrides(SAVED, ["data.limit=3", "features.dtype=float32", "image_encoder.key=[c]"])
    assert (cfg.data.limit, cfg.features.dtype, cfg.image_encoder.key) == (3, "float32", ["c"])
    assert SAVED["data"]["limit"] is None
    assert with_overrides(SAVED, []) == SAVED


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
