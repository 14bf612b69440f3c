"""`xmodal index` and `xmodal search` as a user types them."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xmodal.cli import main
from xmodal.search.folder import verified


@pytest.fixture(scope="module")
def index(shelf) -> Path:
    return shelf.index("commands", "--split", "test")


def found(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_json_alone_is_on_standard_output(start, index, tmp_path):
    """In a process of its own, whose logs are those of a user."""
    words = ["-m", "xmodal.cli", "search", str(index), "a red circle", "-k", "2", "--json"]
    done = start(words, tmp_path).finish()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["index"], told["similarity"]) == (str(index), "cosine")
    [answer] = told["results"]
    assert (answer["kind"], answer["query"], answer["target"]) == ("text", "a red circle", "images")
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    assert set(answer["hits"][0]) == {"rank", "score", "id", "file", "caption", "captions", "split"}
    assert "queries in" in done.stderr


def test_many_sentences_from_everywhere(index, tmp_path, capsys, monkeypatch):
    (tmp_path / "queries.txt").write_text("\ufeffa blue square\n\n  a star \n")
    capsys.readouterr()
    assert (
        main(["search", str(index), "one", "-k", "3", "two", "--queries", str(tmp_path / "queries.txt"), "--json"]) == 0
    )
    assert [answer["query"] for answer in found(capsys)["results"]] == ["one", "two", "a blue square", "a star"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red circle\na star\n"))
    assert main(["search", str(index), "--queries", "-", "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == ""
    told = json.loads((tmp_path / "out.json").read_text())
    assert [answer["query"] for answer in told["results"]] == ["a red circle", "a star"]
    assert [len(answer["hits"]) for answer in told["results"]] == [10, 10]


def test_the_table(index, capsys):
    capsys.readouterr()
    assert main(["search", str(index), "a [red] circle", "-k", "2", "--target", "captions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a [red] circle"
    assert lines[1].split() == ["rank", "score", "caption", "of", "photo"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert ".jpg" in lines[2]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "Say what to search for"),
        (["--json", "a dog"], "'a dog' is the file of --json: put sentences before it"),
        (["x", "-k", "0"], "-k must be at least 1, found 0"),
        (["x", "--memory-gb", "inf"], "--memory-gb must be a number above 0, found inf"),
        (["x", "--imgae=y"], "Did you mean '--image'?"),
        (["x", " "], "Sentence 2 is empty"),
        (["--image", "/nowhere.jpg"], "There is no photo /nowhere.jpg"),
        (["x", "--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["x", "--json", "/tmp"], "--json /tmp is a folder"),
        (["x", "--split", "tset"], "no split 'tset', but test"),
        (["--queries", "/nowhere.txt"], "--queries /nowhere.txt can't be read"),
        (["--queries", os.devnull], "expected a sentence in each line, found none"),
        (["x", "--checkpoint", "/nowhere.ckpt"], "There is no file or folder /nowhere.ckpt"),
    ],
)
def test_a_wrong_search_is_explained(index, words, fault, capsys):
    capsys.readouterr()
    assert main(["search", str(index), *words]) == 2
    said = capsys.readouterr()
    assert fault in said.err
    assert said.out == ""


def test_a_run_and_nothing_in_place_of_an_index(shelf, tmp_path, capsys):
    assert main(["search", str(shelf.run), "x"]) == 2
    assert f"is a run, and no index of it yet: xmodal index {shelf.run}" in capsys.readouterr().err
    assert main(["index", str(shelf.run), "--remove", "1"]) == 2
    assert "is a run, and no index of it yet" in capsys.readouterr().err
    assert main(["search", str(tmp_path), "x"]) == 2
    assert "holds no index" in capsys.readouterr().err
    assert main(["index", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_photo_is_searched_with_and_a_damaged_one_named(shelf, own, tmp_path, capsys):
    """In an index of photos alone, added to and searched."""
    broken = tmp_path / "photos" / "broken.jpg"
    shutil.copytree(own / "photos" / "deep", tmp_path / "photos")
    broken.write_bytes((own / "photos" / "a.jpg").read_bytes()[:-300])
    folder = tmp_path / "index"
    words = ["index", str(shelf.tuned), "--output", str(folder), "--images", str(tmp_path / "photos")]
    assert main(words) == 2
    assert "1 of 3 photos can't be used" in (said := capsys.readouterr().err)
    assert "--on-error skip" in said
    assert not folder.exists()
    assert main([*words, "--on-error", "skip"]) == 0
    assert verified(folder).counts == {"images": 2, "captions": 0}
    good = str(tmp_path / "photos" / "turned.jpg")
    capsys.readouterr()
    assert main(["search", str(folder), "--image", good, "--target", "images", "--json"]) == 0
    assert found(capsys)["results"][0]["hits"][0]["id"] == "turned.jpg"
    assert main(["search", str(folder), "--image", str(broken), "--target", "images"]) == 2
    assert f"The image {broken} can't be decoded" in capsys.readouterr().err
    assert main(["search", str(folder), "--image", good]) == 2
    assert f"The index {folder} holds no captions, but images" in capsys.readouterr().err
    (tmp_path / "lines.txt").write_text("a star\n")
    assert main(["index", str(folder), "--add", "--captions", str(tmp_path / "lines.txt")]) == 2
    assert "The index holds images alone: captions can't be added to it" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_found_before_anything_is_encoded(shelf, own, tmp_path, caplog, capsys):
    photos, folder = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(own / "photos" / "deep", photos)
    named = Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.jpg"))
    shutil.copy(photos / "turned.jpg", named)
    words = ["index", str(shelf.tuned), "--output", str(folder), "--images", str(photos)]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "1 of 3 photos can't be used" in said
    assert f"has a name that is not in UTF-8: 1 found: {photos}/caf\\xe9.jpg" in said.replace("\n", " ").replace(
        "  ", " "
    )
    assert not folder.exists()
    assert main([*words, "--on-error", "skip"]) == 0
    assert "Left out, 1 of 3 photos" in caplog.text
    assert verified_ids(folder) == ["er/a.PNG", "turned.jpg"]
    for name in ("er/a.PNG", "turned.jpg"):
        (photos / name).unlink()
    assert main([*words[:-2], "--overwrite", "--on-error", "skip", "--images", str(photos)]) == 2
    assert "None of the 1 photos can be used" in capsys.readouterr().err
    assert verified_ids(folder) == ["er/a.PNG", "turned.jpg"]


def test_other_files_beside_photos_are_no_photos(shelf, own, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(own / "photos" / "deep", photos)
    for name in ("feat.h5", "plot.eps", "film.mpg", "paper.pdf", "array.npy"):
        (photos / name).write_bytes(b"no photo")
    folder = shelf.index("beside", "--images", str(photos), run=shelf.tuned)
    assert verified_ids(folder) == ["er/a.PNG", "turned.jpg"]
    (photos / "empty.webp").write_bytes(b"")  # one that can't be decoded is a fault all the same
    assert main(["index", str(folder), "--add", "--images", str(photos)]) == 2
    assert "is empty: 1 found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a star\n ?!\n", r"Lines without a single word"),
        (b"a star \xff\n", "is not in UTF-8"),
        (b"\n  \n", "is empty: expected a sentence in each line"),
        (None, "can't be read"),
    ],
)
def test_sentences_that_can_not_be_indexed(shelf, tmp_path, content, fault, capsys):
    file = tmp_path / "lines.txt"
    if content is not None:
        file.write_bytes(content)
    assert main(["index", str(shelf.run), "--output", str(tmp_path / "index"), "--captions", str(file)]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_folders_of_photos_that_can_not_be_indexed(shelf, own, tmp_path, capsys):
    output = ["--output", str(tmp_path / "index")]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.jpg").symlink_to(own / "elsewhere" / "secret.jpg")
    (tmp_path / "other").mkdir()
    for folder, fault in (
        ("nowhere", "There is no folder"),
        ("other", "holds no photo"),
        ("links", "holds links alone"),
    ):
        assert main(["index", str(shelf.tuned), *output, "--images", str(tmp_path / folder)]) == 2
        assert fault in capsys.readouterr().err
    assert main(["index", str(shelf.run), *output, "--images", str(own / "photos")]) == 2
    assert "which network made them is not recorded" in capsys.readouterr().err
    (tmp_path / "other" / "file").write_text("")
    assert main(["index", str(shelf.run), "--output", str(tmp_path / "other")]) == 2
    assert "holds something else than an index (file …)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--split", "tset"], "--split must be one of train, val, test, all; found tset"),
        (["--split", "val", "--captions", "x"], "choose one"),
        (["--add"], "--add needs something to add"),
        (["--add", "--captions", "x", "--remove", "1"], "--add and --remove are two commands"),
        (["--add", "--captions", "x", "--query-bank", "5"], "--query-bank is of a new index"),
        (["--remove"], "--remove needs the ids of items"),
        (["--remove", "--", "-1.jpg"], "If it is an id: --remove=-1.jpg"),
        (["--remove", "-1.jpg", "-2.jpg"], "If it is an id: --remove=-2.jpg"),
        (["data.root=x", "--remove", "1"], "data.root=x has no meaning with --remove"),
        (["--remove", "1", "--images", "x"], "--images has no meaning with --remove"),
        (["--remove", "1", "--overwrite"], "--overwrite is of a new index"),
        (["--remove", "1", "--output", "x"], "--output: an index is changed where it is"),
        (["--checkpoint", "x"], "--checkpoint goes with --add"),
        (["--query-bank", "-1"], "--query-bank must be 0 or a number of queries, found -1"),
        (["--inverse-temperature", "3"], "is of --query-bank N"),
        (["--query-bank", "9", "--inverse-temperature", "-3"], "must be a positive number, found -3.0"),
        (["--memory-gb", "nan"], "--memory-gb must be a number above 0, found nan"),
        (["index=hnws"], "Did you mean 'hnsw'"),
        (["index=hnsw", "index.ef_search=0"], "index.ef_search must be at least 1, found 0"),
        (["data.rot=x"], "Did you mean 'data.root'"),
        (["--outptu=x"], "Did you mean '--output'?"),
    ],
)
def test_a_wrong_index_is_explained_before_anything_is_done(shelf, tmp_path, monkeypatch, words, fault, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["index", str(shelf.run), *words]) == 2
    assert fault in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_wrong_changes_leave_the_index(index, capsys):
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    ids = verified_ids(index)
    for words, fault in (
        (["--remove", f"{ids[0]}x"], f"Ids that the index does not have, 1 found: {ids[0]}x. Did you mean '{ids[0]}'?"),
        (["--remove", "nothing-like-it"], "--json shows those of what it finds, and the column id of"),
        (["--remove=-1.jpg", "--remove=-2.jpg"], "2 found: -1.jpg, -2.jpg."),
        (["--remove", *ids], "nothing would be left"),
        (["--images", "ph"], f"is an index, not a run. To put items into it, add --add: xmodal index {index} --add"),
        (["--captions", "x.txt"], f"xmodal index {index} --add --captions x.txt"),
        ([], "A new index needs the run that it is of: xmodal index RUN"),
        (["--add", "--captions", "/nowhere.txt", "index=hnsw"], "an index keeps its kind"),
        (["--add", "--captions", "/nowhere.txt", "--checkpoint", "/nowhere.ckpt"], "There is no file or folder"),
    ):
        assert main(["index", str(index), *words]) == 2
        assert fault in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in index.iterdir()} == before


def verified_ids(folder: Path) -> list[str]:
    from xmodal.search.items_table import IndexedItems

    verified(folder)
    return IndexedItems.read(folder / "items.parquet").ids


def test_clusters_on_disk_are_searched_and_not_changed(shelf, tmp_path, capsys):
    folder = tmp_path / "index"
    words = ["index=ivf_pq", "index.bits=4", "--memory-gb", "0.0000001"]
    assert main(["index", str(shelf.run), "--output", str(folder), "--split", "all", *words]) == 0
    assert {"images.ivfdata", "captions.ivfdata"} <= {*verified(folder).files}
    capsys.readouterr()
    for memory in ([], ["--memory-gb", "0.0000001"]):
        assert main(["search", str(folder), "a red circle", "-k", "3", "--json", *memory]) == 0
        assert len(found(capsys)["results"][0]["hits"]) == 3
    printed = subprocess.run(
        [sys.executable, "-m", "xmodal.cli", "search", str(folder), "a", "-k", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert len(json.loads(printed.stdout)["results"]) == 1, "FAISS prints of its own accord"
    assert main(["index", str(folder), "--remove", verified_ids(folder)[0]]) == 2
    assert "lie on disk" in capsys.readouterr().err
    words = ["--split", "val", "--overwrite"]  # in memory, in its place
    assert main(["index", str(shelf.run), "--output", str(folder), *words]) == 0
    assert sorted(path.suffix for path in folder.iterdir() if "ivfdata" in path.name) == []
    assert main(["index", str(folder), "--remove", verified_ids(folder)[0]]) == 0


def test_interrupted_is_told(index, monkeypatch, capsys):
    class Interrupting(io.StringIO):
        def read(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupting())
    assert main(["search", str(index), "--queries", "-"]) == 130
    assert "Interrupted. Nothing was written." in capsys.readouterr().err


def test_help_and_faults_come_without_torch(tmp_path):
    code = (
        "import sys\nfrom xmodal.cli import main\n"
        "for line in ('index -h', 'search -h', 'index x --split y', 'search x -k 0'):\n"
        "    try: print('code', main(line.split()))\n"
        "    except SystemExit as leaving: print('code', leaving.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 0", "code 0", "code 2", "code 2"]
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json.lock"}


def test_an_index_is_replaced_only_where_that_is_said(shelf, tmp_path, capsys):
    folder, words = tmp_path / "index", ["index", str(shelf.run), "--output", str(tmp_path / "index")]
    assert main([*words, "--split", "val"]) == 0
    before = contents(folder)
    capsys.readouterr()
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    manifest = verified(folder)
    for part in (
        "is an index already: scenes, val: 12 images (flat)",
        f"of the model {manifest.checkpoint}, last changed {manifest.made}",
        f"xmodal index {folder} --add --images FOLDER",
        "--output DIR",
        "--overwrite",
    ):
        assert part in said
    assert contents(folder) == before
    assert main([*words, "--overwrite"]) == 0
    assert verified(folder).splits == ("test",)
    (folder / "index.json").write_text("{")
    capsys.readouterr()
    assert main(words) == 2
    assert "is an index already: one that can't be opened" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert verified(folder).splits == ("test",)


def test_checkpoints_of_a_run_are_indexed_beside_one_another(shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoints = [shelf.run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for place in (shelf.run, *checkpoints):
        assert main(["index", str(place)]) == 0
    made = sorted(path.name for path in (tmp_path / "outputs" / "indexes").iterdir())
    assert made == [f"{shelf.run.name}-{what}" for what in ("best-split", "last-split", "split")]
    for folder in ("here", "there"):  # two folders of one name
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("a star\n")
    assert main(["index", str(shelf.run), "--captions", "here/mine.txt"]) == 0
    capsys.readouterr()
    assert main(["index", str(shelf.run), "--captions", "there/mine.txt"]) == 2
    assert f"{shelf.run.name}-mine is an index already" in " ".join(capsys.readouterr().err.split())
