"""Figures: what is drawn is what was measured, and the same bytes every time."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from xmodal.reporting.figures import plates_of
from xmodal.reporting.groups import groups_of
from xmodal.reporting.loss_figures import overfitting
from xmodal.reporting.pictures import Picture, drawn, for_page, write_pictures
from xmodal.reporting.rank_figures import shares, upper_ends
from xmodal.reporting.runs import find_runs
from xmodal.reporting.style import apart


def plates(root):
    found, faults = plates_of(groups_of(find_runs([root])))
    assert faults == []
    return {plate.anchor: plate for plate in found}


def axes_of(picture):
    axes = Figure().add_subplot()
    picture.draw(axes)
    return axes


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def grid(make_run):
    return {
        (size, way): make_run(f"{size}-{way}", {"embedding_dim": size, "text_aggregator": way}, 0.02 * i + 0.1, draw=i)
        for i, (size, way) in enumerate((size, way) for size in (64, 128, 1024) for way in ("mean", "sum"))
    }


def test_long_labels_of_lines_are_never_alike(make_run):
    long = "a_name_of_an_encoder_that_is_rather_long"
    for i, (encoder, epochs) in enumerate([(f"{one}_{long}_{two}", 2) for one in "ab" for two in "ab"]):
        for size in (64, 128):
            make_run(f"{i}-{size}", {"image_encoder": encoder, "trainer.max_epochs": epochs + i, "embedding_dim": size})
    axes = axes_of(plates(make_run.root)["recall"].pictures[0])
    labels = [text.get_text() for text in axes.texts]
    assert len(labels) == len(set(labels)) == 4
    assert all("…" in label and len(label) < 40 for label in labels)


def test_recall_against_sizes_is_what_was_measured(grid, make_run):
    plate = plates(make_run.root)["recall"]
    assert [picture.name for picture in plate.pictures] == [
        "made-up-test_recall_i2t_R1",
        "made-up-test_recall_t2i_R1",
    ]
    axes = axes_of(plate.pictures[1])
    lines = {line.get_marker(): line.get_ydata().tolist() for line in axes.lines}
    assert len(lines) == 2
    expected = {way: [metrics(grid[size, way])["test/t2i_R1"] for size in (64, 128, 1024)] for way in ("mean", "sum")}
    assert sorted(lines.values()) == sorted(expected.values())
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "1024"]
    assert {text.get_text() for text in axes.texts} == {"mean", "sum"}


def test_a_series_has_one_colour_in_both_directions(make_run):
    ways = ("sum", "mean", "max", "gpo")
    for i, (size, way) in enumerate((size, way) for size in (64, 128) for way in ways):
        make_run(f"{size}-{way}", {"embedding_dim": size, "text_aggregator": way}, 0.1, draw=i)
    forth, back = map(axes_of, plates(make_run.root)["recall"].pictures)
    colours = [{text.get_text(): text.get_color() for text in axes.texts} for axes in (forth, back)]
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == len(ways)
    assert list(colours[0]) != list(colours[1])  # the best series of one direction is not that of the other


def test_bars_are_the_intervals(grid, make_run):
    axes = axes_of(plates(make_run.root)["recall"].pictures[0])
    drawn_ends = {tuple(np.round(path[:, 1], 6)) for bars in axes.collections for path in bars.get_segments()}
    kept = [metrics(run) for run in grid.values()]
    assert drawn_ends == {(round(one["test/i2t_R1_low"], 6), round(one["test/i2t_R1_high"], 6)) for one in kept}


def test_words_are_listed_the_best_at_the_top(make_run):
    for i, name in enumerate(("sum", "gpo", "$x_1$ <b>")):
        make_run(f"run{i}", {"text_aggregator": name}, skill=0.1 + 0.1 * i, draw=5)
    picture = plates(make_run.root)["recall"].pictures[0]
    axes = axes_of(picture)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sum", "gpo", "$x_1$ <b>"]
    assert "$x_1$ &lt;b&gt;" in drawn(picture).svg


def test_one_run_has_a_figure_too(make_run):
    make_run("only")
    found = plates(make_run.root)
    assert set(found) == {"recall", "losses", "ranks"}
    axes = axes_of(found["recall"].pictures[0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["R@10", "R@5", "R@1"]


def test_more_series_than_colours_leave_the_rest_grey(make_run):
    for i in range(8):
        for size in (64, 128):
            make_run(f"{i}-{size}", {"embedding_dim": size, "text_aggregator": f"a{i}"}, 0.05 + 0.03 * i, draw=i)
    plate = plates(make_run.root)["recall"]
    assert "In grey: 2 whose best recall is lower." in plate.caption
    named = {text.get_text() for text in axes_of(plate.pictures[0]).texts}
    assert len(named) == 6
    assert "a7" in named


def test_losses_by_epoch_with_the_best_one(make_run):
    run = make_run("run")
    (run / "history.csv").write_text("epoch,train/loss,val/loss\n0,3,2\n1,2,1\n2,1,1.5\n")
    plate = plates(run)["losses"]
    axes = axes_of(plate.pictures[0])
    train, validation, best = axes.lines[:3]
    assert train.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
    assert validation.get_xydata().tolist() == [[1, 2], [2, 1], [3, 1.5]]
    assert set(best.get_xdata()) == {2}
    assert {text.get_text() for text in axes.texts} == {"+50 %", "train", "validation"}
    [found] = find_runs([run])
    assert overfitting(found) == pytest.approx(50)


def test_a_history_without_losses_has_no_figure(make_run):
    run = make_run("run")
    (run / "history.csv").write_text("epoch,train/loss,val/loss\n0,nan,inf\n")
    assert "losses" not in plates(run)


def test_bins_of_ranks_grow_as_ranks_do():
    assert upper_ends(1) == [1]
    assert upper_ends(7) == [1, 2, 5, 10]
    assert upper_ends(101) == [1, 2, 5, 10, 20, 50, 100, 200]
    ranks = np.random.default_rng(0).geometric(0.02, size=500)
    ends = upper_ends(int(ranks.max()))
    counted = [sum(low < rank <= high for rank in ranks) / 5 for low, high in zip([0, *ends], ends, strict=False)]
    assert shares(ranks, ends) == pytest.approx(counted)
    assert sum(counted) == pytest.approx(100)


def test_labels_keep_apart_and_in_order():
    assert apart([0.5, 0.5, 0.1], 0.1, 0.0, 1.0) == pytest.approx([0.5, 0.6, 0.1])
    assert apart([1.0, 1.0, 1.0], 0.2, 0.0, 1.0) == pytest.approx([0.6, 0.8, 1.0])
    crowded = apart([0.3] * 9, 0.5, 0.0, 1.0)
    assert crowded == sorted(crowded)
    assert crowded[0] >= -1e-9
    assert crowded[-1] <= 1 + 1e-9


def test_the_space_is_drawn_from_the_sample(make_run):
    run = make_run("run")
    rng = np.random.default_rng(0)
    image = rng.normal(size=(60, 8)).astype("f4")
    np.savez(run / "embeddings_test.npz", image=image, text=image, similarity=np.array("cosine"))
    plate = plates(run)["space"]
    assert "For 40 of 40 images the match is the greatest in its row" in plate.caption
    assert "1.00 on average" in plate.caption
    matrix = axes_of(plate.pictures[1]).images[0].get_array()
    assert matrix.shape == (40, 40)
    assert np.asarray(matrix).diagonal() == pytest.approx(np.ones(40))


def test_damaged_embeddings_are_told_of(make_run):
    run = make_run("run")
    (run / "embeddings_test.npz").write_bytes(b"PK")
    _, [fault] = plates_of(groups_of(find_runs([run])))
    assert re.match(r"made-up, test: embeddings_test.npz can't be read", fault)


def simple(name="one", colour="#0072b2"):
    return Picture(name, "A line", lambda axes: axes.plot([1, 2], [3, 4], color=colour, marker="o"))


def test_the_same_picture_has_the_same_bytes(tmp_path):
    first, second = drawn(simple()), drawn(simple())
    assert (first.pdf, first.png, first.svg) == (second.pdf, second.png, second.svg)
    assert b"CreationDate" not in first.pdf
    names = [path.name for path in write_pictures([first], tmp_path / "figures")]
    assert names == ["one.pdf", "one.png"]
    assert (tmp_path / "figures" / "one.pdf").read_bytes().startswith(b"%PDF")
    assert b"/Type3" not in first.pdf


def test_on_a_page_pictures_have_its_colours_and_ids_of_their_own():
    svg = drawn(simple()).svg
    root = ElementTree.fromstring(svg)
    assert "var(--series-1)" in svg
    assert "#0072b2" not in svg
    assert root.get("role") == "img"
    assert root.get("aria-label") == "A line"
    assert not root.findall(".//{*}style")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert all(one.startswith("one-") for one in ids)
    for used in re.findall(r'(?:xlink:href="|url\()#([^")]+)', svg):
        assert used in ids


def test_text_that_looks_like_a_colour_stays():
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><text style="fill: #0072b2">#0072b2</text></svg>'
    assert for_page(svg, "a", "t").count("#0072b2") == 1
