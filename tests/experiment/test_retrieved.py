"""Queries that a report shows, and the sample of embeddings: naive lists as the oracle, and a real run's files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xmodal.callbacks.retrieval import EmbeddedSplit, Retrieved
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.experiment.embedding_sample import write_sample
from xmodal.experiment.retrieved import chosen, retrieved, write_retrieved
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.record import read_record

SIMILARITIES = {
    "cosine": lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
    "dot": lambda a, b: float(a @ b),
    "euclidean": lambda a, b: -float(np.linalg.norm(a - b)),
}


def world(similarity="cosine", by_class=False, images=40, noise=1.0, tmp=None):
    """Forty images in an order of their own, one to three captions each, two of which share their embedding."""
    random = np.random.default_rng(3)
    owners = [n for n in range(images) for _ in range(1 + n % 3)]
    listed = tuple(
        ImageItem(f"i{n}", "test", tmp and tmp / f"{n}.jpg", n % 4 if by_class else None) for n in range(images)
    )
    items = Items("some", listed, tuple(Caption(f"c{n}", owner, f"text {n}") for n, owner in enumerate(owners)))
    rows = random.permutation(images)
    image = random.normal(size=(images, 8))[rows]
    place = {row: position for position, row in enumerate(rows.tolist())}
    text = np.stack([image[place[owner]] for owner in owners]) + noise * random.normal(size=(len(owners), 8))
    text[1] = text[0]  # ties
    labels = np.array([n % 4 for n in range(images)]) if by_class else None
    embedded = EmbeddedSplit(
        torch.tensor(image, dtype=torch.float32),
        torch.tensor(text, dtype=torch.float32),
        torch.tensor(rows),
        torch.tensor(owners),
    )
    result = evaluate_retrieval(
        embedded.image,
        embedded.text,
        embedded.image_ids,
        embedded.text_image_ids,
        similarity,
        image_labels=None if labels is None else labels[rows],
        text_labels=None if labels is None else labels[owners],
    )
    shown = [np.zeros((count, 5), dtype=np.int64) for count in (images, len(owners))]
    found = Retrieved(result, rows, np.arange(len(owners)), *shown, labels)
    return SimpleNamespace(
        items=items, found=found, embedded=embedded, owners=owners, rows=rows.tolist(), labels=labels
    )


def naive_top(here, way, place, similarity):
    """(id, score, match) of the best five, by a sorted list."""
    sides = {
        "i": (here.embedded.image.numpy().astype(float), here.rows, [f"i{row}" for row in here.rows]),
        "t": (here.embedded.text.numpy().astype(float), here.owners, [f"c{n}" for n in range(len(here.owners))]),
    }
    (queries, of_query, _), (gallery, of_gallery, names) = sides[way[0]], sides[way[2]]
    rows = []
    for there, vector in enumerate(gallery):
        if way[0] == way[2] and there == place:
            continue
        own = of_gallery[there] == of_query[place]
        match = own or (here.labels is not None and here.labels[of_gallery[there]] == here.labels[of_query[place]])
        rows.append((names[there], SIMILARITIES[similarity](queries[place], vector), bool(match)))
    return sorted(rows, key=lambda row: (-round(row[1], 5), row[2]))[:5]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("by_class", [False, True])
def test_top_five_against_sorted_lists(similarity, by_class):
    here = world(similarity, by_class)
    ways = retrieved(here.items, here.found, here.embedded, similarity)
    assert set(ways) == ({"i2t", "t2i", "i2i", "t2t"} if by_class else {"i2t", "t2i"})
    places = {"i": [f"i{row}" for row in here.rows], "t": [f"c{n}" for n in range(len(here.owners))]}
    for way, queries in ways.items():
        for query in queries:
            place = places[way[0]].index(query["query"]["id"])
            assert query["rank"] == here.found.result.ranks[way][place]
            expected = naive_top(here, way, place, similarity)
            assert [top["score"] for top in query["top"]] == pytest.approx(
                [score for _, score, _ in expected], abs=2e-5
            )
            assert [top["match"] for top in query["top"]] == [match for *_, match in expected]
            assert {top["item"]["id"] for top in query["top"]} == {name for name, *_ in expected}


def test_first_match_of_the_five_stands_at_the_rank():
    here = world()
    for queries in retrieved(here.items, here.found, here.embedded, "cosine").values():
        for query in queries:
            matches = [place + 1 for place, top in enumerate(query["top"]) if top["match"]]
            assert matches[:1] == ([query["rank"]] if query["rank"] <= 5 else [])


def test_eight_of_each_kind_by_rank_alone():
    here = world(images=200, noise=1.2)
    for way, queries in retrieved(here.items, here.found, here.embedded, "cosine").items():
        ranks = here.found.result.ranks[way]
        kinds = {kind: [q["rank"] for q in queries if q["kind"] == kind] for kind in ("hit", "near", "failure")}
        assert kinds["hit"] == [1] * 8
        assert len(kinds["near"]) == 8
        assert all(2 <= rank <= 10 for rank in kinds["near"])
        assert kinds["failure"] == sorted(ranks.tolist(), reverse=True)[:8]


def test_kinds_where_there_are_few():
    found = {kind: places.tolist() for kind, places in chosen(np.array([0, 12, 1, 11, 3, 12, 1, 0])).items()}
    assert found == {"hit": [2, 6], "near": [4], "failure": [1, 5, 3]}


def test_truth_is_all_of_its_own():
    here = world()
    for way, queries in retrieved(here.items, here.found, here.embedded, "cosine").items():
        for query in queries:
            names = [item["id"] for item in query["truth"]]
            if way == "i2t":
                own = int(query["query"]["id"][1:])
                assert names == [f"c{n}" for n, owner in enumerate(here.owners) if owner == own]
            else:
                assert names == [f"i{here.owners[int(query['query']['id'][1:])]}"]


def test_truth_by_class_within_a_side_is_of_the_class():
    here = world(by_class=True)
    for query in retrieved(here.items, here.found, here.embedded, "cosine")["i2i"]:
        assert 1 <= len(query["truth"]) <= 5
        assert {item["label"] for item in query["truth"]} == {query["query"]["label"]}
        assert query["query"]["id"] not in {
            item["id"] for item in query["truth"] + [top["item"] for top in query["top"]]
        }


def test_file_says_photos_and_words(tmp_path):
    here = world(tmp=tmp_path)
    ways = retrieved(here.items, here.found, here.embedded, "cosine")
    write_retrieved(tmp_path / "retrieved_test.json", "test", "some", ways)
    said = json.loads((tmp_path / "retrieved_test.json").read_text(encoding="utf-8"))
    assert (said["format"], said["split"], said["data"]) == (1, "test", "some")
    query = said["ways"]["t2i"][0]
    assert query["query"]["text"] == f"text {query['query']['id'][1:]}"
    assert query["query"]["path"] is None
    assert query["truth"][0]["path"] == str(tmp_path / f"{query['truth'][0]['id'][1:]}.jpg")


def test_sample_pairs_each_image_with_its_first_caption(tmp_path):
    here = world()
    write_sample(tmp_path / "sample.npz", here.items, here.found, here.embedded, "dot")
    with np.load(tmp_path / "sample.npz", allow_pickle=False) as sample:
        assert str(sample["similarity"]) == "dot"
        assert sample["image_ids"].tolist() == [f"i{row}" for row in here.rows]
        first = [here.owners.index(row) for row in here.rows]
        assert sample["captions"].tolist() == [f"text {n}" for n in first]
        assert np.array_equal(sample["text"], here.embedded.text.numpy()[first])
        assert np.array_equal(sample["image"], here.embedded.image.numpy())


def test_sample_has_at_most_500_images(tmp_path):
    here = world(images=1100)
    write_sample(tmp_path / "sample.npz", here.items, here.found, here.embedded, "cosine")
    with np.load(tmp_path / "sample.npz", allow_pickle=False) as sample:
        ids = sample["image_ids"].tolist()
    assert len(set(ids)) == 500
    assert ids[0] == f"i{here.rows[0]}"
    assert ids[-1] == f"i{here.rows[-1]}"


def test_files_of_a_run(plain_run):
    said = json.loads((plain_run.folder / "retrieved_test.json").read_text(encoding="utf-8"))
    ranks = {way: side.ranks for way, side in read_record(plain_run.folder / "evaluation_test.npz").queries.items()}
    captions = [str(caption.caption_id) for caption in plain_run.experiment.datamodule.items.captions]
    rows = plain_run.experiment.datamodule.caption_rows("test").tolist()
    for query in said["ways"]["t2i"]:
        assert query["rank"] == ranks["t2i"][rows.index(captions.index(query["query"]["id"]))]
        assert query["truth"][0]["path"].endswith(".png") or query["truth"][0]["path"].endswith(".jpg")
    with np.load(plain_run.folder / "embeddings_test.npz", allow_pickle=False) as sample:
        assert sample["image"].shape == sample["text"].shape == (14, 16)
