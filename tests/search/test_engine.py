"""What is found in the index of a run is what its model and data say, in whatever way it is opened."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.cli import main
from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.experiment.embedded_run import embed_run
from xmodal.models import checkpoint
from xmodal.search.building import search_widely
from xmodal.search.engine import SearchEngine
from xmodal.search.folder import verified

CPU = torch.device("cpu")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def embedded(shelf):
    return embed_run(shelf.run, EvaluationOptions(split="test", bootstrap=0), [], CPU)


@pytest.fixture(scope="module")
def tests_alone(shelf) -> SearchEngine:
    """Of the test split, as it is without a word."""
    return SearchEngine.open(shelf.index("tests"))


def test_the_index_of_a_split_holds_its_embeddings_row_by_row(tests_alone, embedded):
    manifest = tests_alone.manifest
    assert (manifest.splits, manifest.embedding_dim, manifest.similarity) == (("test",), 16, "cosine")
    assert manifest.counts == {"images": 14, "captions": len(embedded.text)}
    for target, rows in (("images", embedded.image), ("captions", embedded.text)):
        found = np.stack([tests_alone.vector(target, number) for number in range(len(rows))])
        np.testing.assert_allclose(found, unit(rows.numpy()), atol=1e-6)
        side = manifest.sides[target]
        assert (side.index, side.recall, side.recall_count) == ("flat", 100.0, len(rows))


def test_a_sentence_finds_what_sorting_in_float64_finds(tests_alone, embedded):
    texts = [tests_alone.items.caption(n) for n in range(len(embedded.text))]
    scores = unit(embedded.text.numpy().astype(np.float64)) @ unit(embedded.image.numpy().astype(np.float64)).T
    for row, hits in enumerate(tests_alone.search_text(texts, 5)):
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores[row])[::-1][:5], atol=1e-3)
        np.testing.assert_allclose([scores[row][hit.number] for hit in hits], [hit.score for hit in hits], atol=1e-3)
        for hit in hits:
            item = tests_alone.items.item(hit.id)
            assert (hit.number, hit.captions, hit.split) == (item.image_number, item.captions, "test")
            assert Path(hit.file).is_file()


def test_ranks_are_those_of_the_evaluation(tests_alone, embedded):
    """Counted here from the scores; of several captions the best counts."""
    images, texts = unit(embedded.image.double().numpy()), unit(embedded.text.double().numpy())
    scores, owner = texts @ images.T, np.searchsorted(embedded.image_ids, embedded.text_image_ids)
    for row in range(len(texts)):
        expected = 1 + (np.delete(scores[row], owner[row]) >= scores[row, owner[row]]).sum()
        assert tests_alone.rank(embedded.text[row].numpy(), "images", [int(owner[row])]) == expected
    for column in range(len(images)):
        mine = owner == column
        expected = 1 + (scores[~mine, column] >= scores[mine, column].max()).sum()
        assert tests_alone.rank(embedded.image[column].numpy(), "captions", np.flatnonzero(mine).tolist()) == expected


def test_splits_targets_and_more_than_there_are(engine):
    assert engine.manifest.splits == ("train", "val", "test")
    [hits] = engine.search_text(["a red circle"], 1000)
    assert len(hits) == engine.manifest.counts["images"] == 66
    for split, size in (("train", 40), ("val", 12), ("test", 14)):
        [of_split] = engine.search_text(["a red circle"], 1000, split=split, corrected=False)
        assert len(of_split) == size
        assert {hit.split for hit in of_split} == {split}
        whole = [hit.number for hit in engine.search_text(["a red circle"], 1000, corrected=False)[0]]
        assert [hit.number for hit in of_split] == [n for n in whole if n in {hit.number for hit in of_split}]
    [captions] = engine.search_text(["a red circle"], 3, target="captions")
    assert [hit.caption in hit.captions for hit in captions] == [True] * 3
    sentence = engine.items.caption(0)
    [itself] = engine.search_text([sentence], 1, target="captions")
    assert itself[0].score == pytest.approx(1, abs=1e-3)
    assert engine.rank(engine.vector("images", 0), "images", [0], split="test") is None
    assert engine.search_text([], 3) == []


def test_what_can_not_be_searched_is_said(engine, tests_alone):
    for words, fault in (
        ({"k": 0}, "k must be at least 1, found 0"),
        ({"split": "tset"}, "no split 'tset', but train, val, test. Did you mean 'test'"),
    ):
        with pytest.raises(ConfigError, match=fault):
            engine.search_text(["a"], **words)
    with pytest.raises(ConfigError, match="holds no query bank to correct images with"):
        tests_alone.search_text(["a"], corrected=True)
    with pytest.raises(FeatureError, match=r"shape \(count, 16\), found \(1, 3\): are they of this model"):
        engine.search_vectors(np.zeros((1, 3), np.float32), target="images")
    with pytest.raises(FeatureError, match="which network made them is not recorded"):
        engine.search_image([engine.path_of(engine.items.file_at(0))])


def test_the_bank_corrects_searches_across_and_only_these(engine):
    assert engine.has_correction
    texts = [engine.items.caption(n) for n in range(0, 60, 3)]
    usual, plain = engine.search_text(texts, 9), engine.search_text(texts, 9, corrected=False)
    asked = engine.search_vectors(engine.encode_texts(texts), 9, target="images", corrected=True)

    def scores(found):
        return [[hit.score for hit in hits] for hits in found]

    assert scores(usual) == scores(asked)
    assert scores(usual) != scores(plain)
    own = engine.search_text(texts, 9, target="captions")
    assert scores(own) == scores(engine.search_text(texts, 9, target="captions", corrected=False))


def test_several_threads_find_what_one_finds(engine):
    texts = [engine.items.caption(n) for n in range(40)]
    fresh = SearchEngine.open(engine.folder)

    def find(text: str) -> list[tuple[int, float, str]]:
        [hits] = fresh.search_text([text], 5, split="train")
        return [(hit.number, round(hit.score, 4), hit.captions[0]) for hit in hits]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(find, texts * 2))
    assert found == [find(text) for text in texts] * 2


def test_points_of_the_map(engine):
    points = engine.map_points(40)
    assert len(points.ids) == len(points.targets) == len(points.numbers) == len(points.xy) <= 40
    assert {*points.targets} == {"images", "captions"}
    for item_id, target, number in zip(points.ids, points.targets, points.numbers.tolist(), strict=True):
        item = engine.items.item(item_id)
        assert number in ((item.image_number,) if target == "images" else item.caption_numbers)


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq"])
def test_other_kinds_of_index(shelf, kind, capsys):
    words = ["index.ef_search=16"] if kind == "hnsw" else ["index.bits=4", "index.lists=4"]
    found = SearchEngine.open(shelf.index(kind, "--split", "all", f"index={kind}", *words))
    side = found.manifest.sides["images"]
    assert side.index == kind
    assert side.recall > (90 if kind == "hnsw" else 20)
    assert (side.recall_queries, side.recall_of) == (found.manifest.counts["captions"], "captions")
    assert side.settings["ef_search" if kind == "hnsw" else "bits"] == (16 if kind == "hnsw" else 4)
    [hits] = found.search_text(["a red circle"], 5, split="test")
    assert [hit.split for hit in hits] == ["test"] * 5
    number = int(found.items.numbers("captions")[0])
    encoded = unit(found.encode_texts([found.items.caption(number)]))
    np.testing.assert_allclose(unit(found.vector("captions", number)[None]), encoded, atol=1e-3)
    if kind == "ivf_pq":
        assert found.rank(encoded[0], "captions", [number]) is None
        assert len(found.map_points().ids) == 0
        with pytest.raises(FeatureError, match="a new image can't be encoded"):
            found.vector("images", 0)
        gallery, every = found._galleries["captions"].index, found.manifest.counts["captions"]
        assert gallery.nlist > 1
        search_widely(gallery, 1)  # one cluster of several: fewer than are asked for
        [hits] = found.search_text(["a red circle"], every, target="captions")
        assert 0 < len(hits) < every
        assert len({hit.number for hit in hits}) == len(hits) == len(hits.ids)
        assert hits.scores == sorted(hits.scores, reverse=True)


def by_hand(engine: SearchEngine, target: str, other: str, most: int) -> float:
    """Recall@10 of what the index returns, against sorting; queries are drawn as `drawn_queries` draws them."""
    numbers, asking = engine.items.numbers(target), engine.items.numbers(other)
    drawn = asking[np.sort(np.random.default_rng(0).permutation(len(asking))[:most])]
    vectors = np.stack([engine.vector(target, n) for n in numbers.tolist()])
    queries = np.stack([engine.vector(other, n) for n in drawn.tolist()])
    found = [hits.numbers for hits in engine.search_vectors(queries, 10, target=target)]
    exact = numbers[np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]]
    return 10 * float(np.mean([len({*a} & {*b}) for a, b in zip(found, exact.tolist(), strict=True)]))


def words(path: Path, count: int) -> str:
    """A file of so many sentences."""
    lines = [f"a {('red', 'blue', 'green')[n % 3]} {('star', 'ring')[n % 2]} number {n}" for n in range(count)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_recall_is_measured_again_after_every_change(shelf, tmp_path):
    coarse = ("index=hnsw", "index.neighbours=2", "index.ef_search=1", "index.ef_construction=1")
    folder = shelf.index("coarse", "--split", "all", *coarse)
    before = SearchEngine.open(folder)
    assert main(["index", str(folder), "--add", "--captions", words(tmp_path / "words.txt", 60)]) == 0
    added = SearchEngine.open(folder)
    side, count = added.manifest.sides["captions"], before.manifest.counts["captions"] + 60
    assert (side.recall_count, side.recall_of, side.recall_queries) == (count, "images", 66)
    assert side.recall == pytest.approx(by_hand(added, "captions", "images", 200), abs=0.5)
    assert added.manifest.sides["images"] == before.manifest.sides["images"]
    assert main(["index", str(folder), "--remove", *added.items.ids[::3]]) == 0
    removed = SearchEngine.open(folder)
    for target, other in (("images", "captions"), ("captions", "images")):
        side = removed.manifest.sides[target]
        assert (side.recall_count, side.recall_of) == (removed.manifest.counts[target], other)
        assert side.recall == pytest.approx(by_hand(removed, target, other, 200), abs=0.5)


def test_codes_take_no_more_than_they_were_learned_from_and_their_recall_is_not_kept(shelf, tmp_path, caplog, capsys):
    folder = shelf.index("codes", "index=ivf_pq", "index.bits=4")
    learned_from = verified(folder).counts["captions"]
    assert main(["index", str(folder), "--add", "--captions", words(tmp_path / "words.txt", 20)]) == 0
    assert "captions: recall@10 of the changed index is not known" in caplog.text
    side = verified(folder).sides["captions"]
    assert (side.recall, side.recall_queries, side.recall_count) == (None, 0, learned_from)
    assert verified(folder).sides["images"].recall is not None
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(["index", str(folder), "--add", "--captions", words(tmp_path / "more.txt", learned_from - 19)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"learned from {learned_from} vectors; {learned_from - 19} more, after 20 that were added earlier" in said
    assert "--overwrite" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["index", str(folder), "--add", "--captions", words(tmp_path / "fit.txt", learned_from - 20)]) == 0


def copied(folder: Path, run: Path, place: Path) -> tuple[Path, Path]:
    """An index and its run, side by side elsewhere."""
    return Path(shutil.copytree(folder, place / "index")), Path(shutil.copytree(run, place / "run"))


def test_another_model_is_refused(shelf, whole, tmp_path):
    with pytest.raises(DataError, match="is not the model that made the index"):
        SearchEngine.open(whole, checkpoint=shelf.tuned)
    content = checkpoint.read(shelf.run / "checkpoints" / "best.ckpt")
    name = next(name for name, value in content["state_dict"].items() if value.is_floating_point() and value.numel())
    content["state_dict"][name].view(-1)[0] += 1e-3
    torch.save(content, tmp_path / "on.ckpt")
    with pytest.raises(DataError, match="it has been trained since, or is another run"):
        SearchEngine.open(whole, checkpoint=tmp_path / "on.ckpt")
    content["xmodal"]["config"]["embedding_dim"] = 8
    torch.save(content, tmp_path / "narrow.ckpt")
    with pytest.raises(FeatureError, match="embeds in 8 dimensions, the index was made in 16"):
        SearchEngine.open(whole, checkpoint=tmp_path / "narrow.ckpt")
    with pytest.raises(DataError, match="There is no file or folder"):
        SearchEngine.open(whole, checkpoint=tmp_path / "nowhere.ckpt")


def moved(folder: Path, **changes: str) -> None:
    """An index whose manifest names other places."""
    from xmodal.search.folder import change_of

    with change_of(folder) as change:
        manifest = verified(folder)
        change.commit(replace(manifest, **changes), manifest.files)


def test_a_model_and_photos_that_have_moved(shelf, whole, tmp_path):
    folder, run = copied(whole, shelf.run, tmp_path)
    moved(folder, checkpoint="/gone/best.ckpt", checkpoint_nearby="../run/checkpoints/best.ckpt")
    assert SearchEngine.open(folder, root="/photos").search_text(["a"], 1)[0][0].file.startswith("/photos/")
    moved(folder, checkpoint_nearby="gone.ckpt")
    with pytest.raises(DataError, match=r"there is no /gone/best.ckpt. Say where it is now: --checkpoint"):
        SearchEngine.open(folder)
    assert SearchEngine.open(folder, checkpoint=run).manifest.name == "manual"


def test_a_model_inside_goes_along_until_the_index_is_built_without(shelf, tmp_path):
    folder = shelf.index("inside", "--include-model")
    moved(folder, checkpoint="/gone", checkpoint_nearby="gone")
    there = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert len(SearchEngine.open(there).search_text(["a red circle"])[0]) == 10
    shelf.index("inside", "--overwrite")
    assert not (folder / "model.ckpt").exists()
    SearchEngine.open(folder)


@pytest.fixture(scope="module")
def of_own(shelf, own) -> SearchEngine:
    """Photos and sentences of one's own, through encoders both of which have trained layers."""
    words = ["--images", str(own / "photos"), "--captions", str(own / "lines.txt")]
    return SearchEngine.open(shelf.index("own", *words, run=shelf.tuned))


def test_photos_and_sentences_of_ones_own_are_encoded_as_queries_are(of_own, own):
    ids = ["a.jpg", "deep/er/a.PNG", "deep/turned.jpg", "caption 0", "caption 1", "caption 2"]
    assert of_own.items.ids == ids
    assert (of_own.manifest.splits, of_own.manifest.data_name) == (("own",), "photos")
    assert of_own.items.splits == ("own",)
    assert {hit.split for hit in of_own.search_text(["a star"], 9, split="own")[0]} == {"own"}
    with pytest.raises(ConfigError, match="no split 'test', but own"):
        of_own.search_text(["a star"], split="test")
    files = [of_own.path_of(of_own.items.file_at(row)) for row in range(3)]
    assert files == [str(own / "photos" / name) for name in ids[:3]]
    for number, encoded in enumerate(unit(of_own.encode_images(files))):
        np.testing.assert_allclose(of_own.vector("images", number), encoded, atol=1e-3)
    texts = [of_own.items.caption(number) for number in range(3)]
    assert texts == ["a red circle", "a blue square above a star", "a red circle"]
    for number, encoded in enumerate(unit(of_own.encode_texts(texts))):
        np.testing.assert_allclose(of_own.vector("captions", number), encoded, atol=1e-3)
    assert {hit.id for hit in of_own.search_text(texts[:1], 2, target="captions")[0]} == {"caption 0", "caption 2"}
    [hits] = of_own.search_image(files[2:], 3, target="images")
    assert hits[0].id == "deep/turned.jpg"
    assert of_own.search_image(files[:1], 5)[0][0].id.startswith("caption")


def test_adding_and_removing_keep_ids_and_numbers(of_own, own, tmp_path):
    folder = Path(shutil.copytree(of_own.folder, tmp_path / "index"))
    shutil.copytree(own / "photos", tmp_path / "more", ignore=lambda *_: ["link.jpg", "a.jpg", "er"])
    (tmp_path / "more" / "deep" / "turned.jpg").rename(tmp_path / "more" / "new.jpg")
    (tmp_path / "words.txt").write_text("a green star\n")
    assert main(["index", str(folder), "--remove", "caption 2", "a.jpg"]) == 0
    more = ["--images", str(tmp_path / "more" / ".." / "more"), "--captions", str(tmp_path / "words.txt")]
    assert main(["index", str(folder), "--add", *more]) == 0
    found = SearchEngine.open(folder)
    assert found.items.ids == ["deep/er/a.PNG", "deep/turned.jpg", "caption 0", "caption 1", "new.jpg", "caption 3"]
    assert found.items.numbers("images").tolist() == [1, 2, 3]
    assert found.items.numbers("captions").tolist() == [0, 1, 3]
    assert found.path_of(found.items.item("new.jpg").file) == str(tmp_path / "more" / "new.jpg")
    assert found.path_of(found.items.item("deep/turned.jpg").file) == str(own / "photos" / "deep" / "turned.jpg")
    np.testing.assert_array_equal(found.vector("images", 2), of_own.vector("images", 2))
    np.testing.assert_allclose(found.vector("images", 3), of_own.vector("images", 2), atol=1e-3)  # the same photo
    encoded = unit(found.encode_texts(["a green star"]))[0]
    np.testing.assert_allclose(found.vector("captions", 3), encoded, atol=1e-3)
    assert main(["index", str(folder), "--add", *more[:2]]) == 2  # all of these are there
    assert main(["index", str(folder), "--add", "--images", str(tmp_path / "more"), *more[2:]]) == 0  # sentences alone
    assert SearchEngine.open(folder).items.ids[-1] == "caption 4"


def test_what_is_added_to_a_data_set_is_of_a_split_of_its_own(shelf, tests_alone, tmp_path):
    folder = Path(shutil.copytree(tests_alone.folder, tmp_path / "index"))
    (tmp_path / "words.txt").write_text("a green star\na red ring\n")
    assert main(["index", str(folder), "--add", "--captions", str(tmp_path / "words.txt")]) == 0
    found = SearchEngine.open(folder)
    assert found.manifest.splits == found.items.splits == ("test", "own")
    [own] = found.search_text(["a green star"], 999, target="captions", split="own")
    assert [hit.caption for hit in own] == ["a green star", "a red ring"]
    [of_data] = found.search_text(["a green star"], 999, target="captions", split="test")
    assert len(of_data) == tests_alone.manifest.counts["captions"]
    assert {hit.split for hit in of_data} == {"test"}
    assert main(["index", str(folder), "--remove", *[hit.id for hit in own]]) == 0
    with pytest.raises(ConfigError, match="no split 'own', but test"):
        SearchEngine.open(folder).search_text(["a"], split="own")
