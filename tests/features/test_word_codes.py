import gzip
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal.encoders.word_vectors import read_vectors
from xmodal.errors import FeatureError
from xmodal.features.store import FeatureStore
from xmodal.features.word_codes import extract_words
from xmodal.tokens import tokenize


class Words:
    """A table of words as an encoder: those in ``table``, each with its vector."""

    modality: ClassVar[str] = "text"
    batch_size = 1

    def __init__(self, table: dict[str, np.ndarray], width: int, needs_float32: bool = False) -> None:
        self.table, self.feature_dim, self.needs_float32 = table, width, needs_float32
        self.asked = 0

    def check(self) -> list[str]:
        return []

    def prepare(self, captions: Sequence[str], cache_dir: Path) -> None:
        return None

    def fingerprint(self) -> dict[str, Any]:
        return {"encoder": "Words", "weights": ",".join(self.table)}

    def preprocess(self, item: str) -> list[str]:
        return tokenize(item)

    def encode(self, batch: list[list[str]]) -> list[torch.Tensor]:
        sets = [[self.table[word] for word in words if word in self.table] for words in batch]
        return [torch.from_numpy(np.array(some, np.float32).reshape(-1, self.feature_dim)) for some in sets]

    def to(self, device: torch.device | str) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        return None

    def words(self, item: str) -> list[str]:
        return self.preprocess(item)

    def known(self, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
        self.asked += 1
        found = [word for word in words if word in self.table]
        vectors = [self.table[word] for word in found]
        return found, np.array(vectors, np.float32).reshape(-1, self.feature_dim)


def _seeded(words: Sequence[str], width: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0).standard_normal((len(words), width)).astype(np.float32)
    return dict(zip(words, random, strict=True))


def _extract(encoder: Words, captions: Sequence[str], root: Path, dtype: str = "float16") -> Path:
    return extract_words(
        encoder, captions, list(range(len(captions))), store=FeatureStore(root), data_name="toy", encoder_name="words",
        data_fingerprint=json.dumps(list(captions)[:100]), dtype=dtype,
    )  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=st.lists(st.lists(st.sampled_from("abcdexyz")).map(" ".join), max_size=8),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_coded_sets_equal_the_encoders_own(captions: list[str], dtype: str, tmp_path: Path) -> None:
    encoder = Words(_seeded("abcde", 3), 3)
    path = _extract(encoder, captions, tmp_path, dtype)
    found = FeatureStore(tmp_path).read(path)
    expected = encoder.encode([encoder.preprocess(caption) for caption in captions])
    assert len(found) == len(captions)
    for row, wanted in enumerate(expected):
        assert found[row].dtype == dtype
        assert np.array_equal(found[row], wanted.numpy().astype(dtype))
    distinct = list(dict.fromkeys(w for caption in captions for w in tokenize(caption) if w in encoder.table))
    assert np.array_equal(found.values, encoder.known(distinct)[1].astype(dtype))


@pytest.mark.parametrize(("count", "kind"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_537, "uint32")])
def test_codes_take_the_smallest_type(count: int, kind: str, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(count)]
    path = _extract(Words(_seeded(words, 1), 1), [" ".join(words)], tmp_path)
    with h5py.File(path) as file:
        assert file["codes"].dtype == kind
        assert file["codes"][-1] == count - 1
        assert [file[name].fletcher32 for name in ("values", "codes", "offsets", "ids")] == [True] * 4


def test_a_second_call_takes_the_file(tmp_path: Path) -> None:
    encoder = Words(_seeded("ab", 2), 2)
    path = _extract(encoder, ["a b", "", "x"], tmp_path)
    before = path.stat().st_mtime_ns
    assert _extract(encoder, ["a b", "", "x"], tmp_path) == path
    assert (path.stat().st_mtime_ns, encoder.asked) == (before, 1)
    assert FeatureStore(tmp_path).read(path).lengths.tolist() == [2, 0, 0]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, f"{path.name}.lock"])


def test_what_is_to_be_done_is_told_before_it_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(Words):
        def known(self, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
            raise KeyboardInterrupt

    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        _extract(Interrupted(_seeded("ab", 2), 2), ["a b a", "x"], tmp_path)
    assert "words-" in caplog.text
    assert ": 2 captions" in caplog.text
    assert "4 running words, 3 of them distinct: at most 40 bytes on disk" in caplog.text  # 3 x 4 + 4 + 3 x 8


def test_what_a_killed_process_left_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Words(_seeded("ab", 2), 2)
    path = _extract(encoder, ["a b"], tmp_path)
    path.unlink()
    left = path.with_name(f"{path.name}.parts") / f"{path.stem}.99999.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half of a file")
    usage, seen = shutil.disk_usage, []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: (seen.append(left.exists()), usage(folder))[1])
    assert _extract(encoder, ["a b"], tmp_path) == path
    assert seen
    assert not any(seen)
    assert not left.parent.exists()


def test_a_damaged_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Words(_seeded("ab", 2), 2)
    path = _extract(encoder, ["a b"], tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        _extract(encoder, ["a b"], tmp_path)
    assert "Making it again" in caplog.text
    assert FeatureStore(tmp_path).read(path).lengths.tolist() == [2]


def test_whole_numbers_stay_float32(tmp_path: Path) -> None:
    encoder = Words({"a": np.array([2049.0])}, 1, needs_float32=True)
    assert FeatureStore(tmp_path).read(_extract(encoder, ["a"], tmp_path))[0].tolist() == [[2049.0]]


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1.0, np.nan], r"NaN or infinite vectors for 1 of 2 words, the first being 'bad'"),
        ([1.0, -7e4], r"the value 70000 in the vector of 'bad'; float16 ends at 65504. Set features.dtype=float32"),
    ],
)
def test_values_that_cannot_be_stored(vector: list[float], message: str, tmp_path: Path) -> None:
    encoder = Words({"good": np.ones(2), "bad": np.array(vector)}, 2)
    with pytest.raises(FeatureError, match=message):
        _extract(encoder, ["good bad"], tmp_path)
    assert not list(tmp_path.rglob("*.h5"))


def test_ids_and_shapes(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    place: dict[str, Any] = {"store": store, "data_name": "d", "encoder_name": "e", "data_fingerprint": "f"}
    with pytest.raises(FeatureError, match="2 captions were given with 1 ids"):
        extract_words(Words({}, 2), ["a", "b"], [1], **place)
    wrong = Words({"a": np.ones(2)}, 2)
    wrong.known = lambda words: (["a"], np.ones((1, 2), np.float32))
    wrong.feature_dim = 3
    with pytest.raises(FeatureError, match=r"vectors of shape \(1, 2\) for its known words; expected \(1, 3\)"):
        extract_words(wrong, ["a"], [1], **place)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on file sizes is what a process can set for itself; HDF5 meets it as a full disk."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    words = [f"w{number}" for number in range(2000)]
    encoder = Words(_seeded(words, 100), 100)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(FeatureError, match=r"No space left for features: .*could not be written"):
            _extract(encoder, words, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.suffix for p in (tmp_path / "toy").iterdir()] == [".lock"]


def test_real_captions_take_less_than_a_fiftieth(real_data: Path, tmp_path: Path) -> None:
    file = real_data / "flickr30k_captions" / "dataset.json.gz"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    with gzip.open(file, "rt") as stream:
        captions = [sentence["raw"] for image in json.load(stream)["images"] for sentence in image["sentences"]]
    sentences = [tokenize(caption) for caption in captions]
    encoder = Words(_seeded(list(dict.fromkeys(word for words in sentences for word in words)), 300), 300)
    path = _extract(encoder, captions, tmp_path)
    running = sum(map(len, sentences))
    assert path.stat().st_size * 50 < running * 300 * 4
    found = FeatureStore(tmp_path).read(path)
    for row in np.random.default_rng(0).choice(len(captions), 50).tolist():
        [expected] = encoder.encode([sentences[row]])
        assert np.array_equal(found[row], expected.numpy().astype(np.float16))


def test_real_vectors(real_data: Path, tmp_path: Path) -> None:
    captions = [
        sentence["raw"]
        for image in json.loads((real_data / "flickr8k" / "dataset.json").read_text())["images"][:300]
        for sentence in image["sentences"]
    ]
    table = read_vectors(real_data / "vectors" / "glove-50d.vec.gz")
    encoder = Words(dict(zip(table.words, table.vectors, strict=True)), 50)
    found = FeatureStore(tmp_path).read(_extract(encoder, captions, tmp_path, "float32"))
    values, lengths = table.lookup([tokenize(caption) for caption in captions])
    assert np.array_equal(found.vectors(), values)
    assert np.array_equal(found.lengths, lengths)
