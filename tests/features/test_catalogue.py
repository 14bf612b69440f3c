"""Files that extraction made, then damaged byte by byte, left half finished or held by another; found and removed."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.errors import ConfigError
from xmodal.features.catalogue import Entry, entries, find
from xmodal.features.extract import extract
from xmodal.features.lock import only_one
from xmodal.features.store import FeatureOrigin, FeatureStore, finish_file
from xmodal.features.word_codes import extract_words

TEXTS = [f"a dog and {'cat' * number}" for number in range(12)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def letters(letter_encoder, root: Path):
    """``letters(name, **options of the encoder)``: the letters of twelve texts in the store, in chunks of four."""

    def make(data_name: str = "toy", **options: object) -> Path:
        place = {"store": FeatureStore(root), "data_name": data_name, "encoder_name": "text-letters"}
        ids = list(range(len(TEXTS)))
        return extract(letter_encoder(**options), TEXTS, ids, **place, data_fingerprint=data_name, chunk_size=4)

    return make


@pytest.fixture
def begun(letters, root: Path) -> Entry:
    """An extraction interrupted after two of its three chunks."""
    with pytest.raises(KeyboardInterrupt):
        letters(stop_after=8)
    [entry] = entries(root)
    return entry


@pytest.fixture
def words(root: Path) -> Path:
    """A file of codes."""
    encoder = FastTextEncoder(vector_size=8, epochs=1)
    encoder.prepare(TEXTS, root.parent / "cache")
    place = {"store": FeatureStore(root), "data_name": "toy", "encoder_name": "text-words"}
    return extract_words(encoder, TEXTS, list(range(len(TEXTS))), **place, data_fingerprint="d")


def written(path: Path, ids: list[int], values: np.ndarray, codes: np.ndarray | None = None) -> Entry:
    """A file as an older version made it: without checksums of its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("values", data=values)
        if codes is not None:
            file.create_dataset("codes", data=codes)
        finish_file(file, FeatureOrigin({"encoder": "old"}, "d", "float32"), ids, np.arange(len(ids) + 1))
    return Entry(path)


def flip(path: Path, dataset: str) -> None:
    """Change one byte of what is stored of a dataset."""
    with h5py.File(path, "r") as file:
        first = file[dataset].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[first.byte_offset + first.size // 2] ^= 0x10
    path.write_bytes(content)


def test_a_complete_file_tells_what_it_holds(letters, root: Path) -> None:
    path = letters()
    [entry] = entries(root)
    assert entry.path == path
    assert (entry.data_name, entry.encoder, entry.state) == ("toy", "text-letters", "complete")
    assert path.name == f"text-letters-{entry.key}.h5"
    assert entry.form == (12, sum(c.isalpha() for text in TEXTS for c in text), 6, "float16")
    assert entry.size >= path.stat().st_size
    assert abs(entry.made.timestamp() - path.stat().st_mtime) < 60
    assert entry.verify().faults == entry.verify().notes == ()


def test_nothing_is_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert entries(tmp_path / "absent") == []


def test_an_unfinished_extraction_tells_how_far_it_came(begun: Entry, letters) -> None:
    assert begun.state == "unfinished, 2 of 3 chunks"
    assert begun.form is None
    assert begun.verify().faults == ()
    assert "goes on from its chunks" in begun.verify().notes[0]
    assert letters() == begun.path
    assert Entry(begun.path).state == "complete"


def test_a_damaged_chunk_is_named(begun: Entry) -> None:
    chunk = begun.parts / "chunk-000001.h5"
    flip(chunk, "values")
    [fault] = begun.verify().faults
    assert fault.startswith(f"{chunk}: values: unreadable")


def test_offsets_of_a_chunk_that_fall_are_a_fault(begun: Entry) -> None:
    chunk = begun.parts / "chunk-000001.h5"
    with h5py.File(chunk, "a") as file:
        file["offsets"][1] = file["offsets"][2] + 1
    [fault] = begun.verify().faults
    assert f"{chunk}: offsets: they don't rise from 0 to the " in fault


def test_what_another_process_writes_is_neither_read_nor_removed(begun: Entry) -> None:
    with only_one(begun.path):
        held = Entry(begun.path)
        assert held.state == "being written by another process"
        assert "not looked at" in held.verify().notes[0]
        assert held.remove() is None
        assert len(list(begun.parts.iterdir())) == 2
    assert Entry(begun.path).state == "unfinished, 2 of 3 chunks"


@pytest.mark.parametrize("dataset", ["values", "offsets", "ids"])
def test_one_changed_byte_is_found(letters, dataset: str) -> None:
    path = letters()
    flip(path, dataset)
    [fault] = Entry(path).verify().faults
    assert dataset in fault


@pytest.mark.parametrize("dataset", ["values", "codes"])
def test_one_changed_byte_of_a_file_of_codes_is_found(words: Path, dataset: str) -> None:
    assert Entry(words).verify().faults == ()
    assert Entry(words).form[0] == len(TEXTS)
    flip(words, dataset)
    assert Entry(words).verify().faults == (
        f"{dataset}: unreadable, or not what their checksums say: rows {rows(words, dataset)}",
    )


def rows(path: Path, dataset: str) -> str:
    with h5py.File(path, "r") as file:
        return f"0 to {len(file[dataset]) - 1}"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_cut_short_is_damaged(letters, share: float) -> None:
    path = letters()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert Entry(path).state == "damaged"
    assert str(path) in Entry(path).verify().faults[0]
    assert Entry(path).form is None


def test_numbers_are_looked_at_where_there_are_no_checksums(root: Path) -> None:
    values = np.ones((5, 3), dtype=np.float32)
    sound = written(root / "toy" / "a.h5", [1, 2, 3, 4, 5], values)
    assert sound.verify().faults == ()
    assert "no checksums" in sound.verify().notes[0]
    values[[1, 3], 2] = np.nan, -np.inf
    wrong = written(root / "toy" / "b.h5", [1, 2, 3, 4, 5], values)
    assert wrong.verify().faults == ("values: NaN or infinity in 2 of 5 vectors",)


def test_codes_beyond_the_table_and_repeated_ids_are_found(root: Path) -> None:
    codes = np.array([0, 1, 2, 9], dtype=np.uint8)
    entry = written(root / "toy" / "a.h5", [7, 8, 7, 7], np.ones((3, 2), dtype=np.float32), codes)
    assert entry.verify().faults == (
        "codes: 1 of 4 lie beyond the 3 rows of the table",
        "ids: more than once 1 found: 7",
    )


def test_a_name_is_a_key_a_file_name_or_a_path(
    letters, words: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = letters()
    entry = Entry(path)
    monkeypatch.chdir(path.parent)
    for name in (entry.key, entry.key[:8], path.name, path.stem, str(path), path.name, f"toy/{path.name}"):
        assert find(root, [name]) == [entry]
    assert find(root, [entry.key, path.name]) == [entry]


def test_unknown_and_unclear_names_are_explained_together(letters, root: Path) -> None:
    path = letters()
    shutil.copytree(path.parent, root / "other")
    with pytest.raises(ConfigError) as caught:
        find(root, ["text-leters-0123456789abcdef.h5", Entry(path).key])
    unknown, unclear = caught.value.faults
    assert f"Did you mean '{path.name}'?" in unknown
    assert "stands for 2 files" in unclear
    assert str(root / "other" / path.name) in unclear
    with pytest.raises(ConfigError, match="there are no features in"):
        find(root / "absent", ["abc"])


def test_removing_frees_what_was_there(begun: Entry, letters, root: Path) -> None:
    other = letters("other")
    assert begun.lock.exists() or begun.parts.exists()
    size = sum(file.stat().st_size for file in begun.path.parent.rglob("*") if file.is_file())
    assert begun.remove() == size > 0
    assert not begun.path.parent.exists()
    assert entries(root) == [Entry(other)]
    assert Entry(other).remove() > 0
    assert list(root.iterdir()) == []
