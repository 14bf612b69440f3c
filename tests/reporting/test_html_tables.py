"""Tables on a page: intervals on a scale, settings once, constant columns apart."""

from xmodal.reporting.html_tables import Bar, common_notes, view, without_constants
from xmodal.reporting.table import NOTHING, Cell, Column, Table, word


def table(rows, heads=("Run", "Status", "Value"), kind="provenance", notes=()):
    columns = tuple(Column(head, head.lower(), head == "Value") for head in heads)
    return Table("name", kind, "", "Title", columns, tuple(map(tuple, rows)), tuple(notes))


def test_intervals_lie_on_the_scale_of_their_column():
    rows = [[word("a"), word("x"), Cell("2", 2.0, 0.0, 4.0)], [word("b"), word("x"), Cell("8", 8.0, 6.0, 10.0)]]
    found = view(table(rows, kind="figures"))
    assert [row[2].bar for row in found.rows] == [Bar(0.0, 40.0, 20.0), Bar(60.0, 100.0, 80.0)]
    assert found.rows[0][2].interval == "[0.0, 4.0]"
    assert found.heads[2].interval == len("[6.0, 10.0]")
    assert found.rows[0][0].bar is None


def test_nothing_is_drawn_where_there_is_no_scale():
    alone = [[word("a"), word("x"), Cell("2", 2.0, 0.0, 4.0)]]
    assert view(table(alone, kind="figures")).rows[0][2].bar is None
    rows = [[word("a"), word("x"), Cell("2", 2.0, 2.0, 2.0)], [word("b"), word("x"), NOTHING]]
    assert [row[2].bar for row in view(table(rows, kind="figures")).rows] == [None, None]


def test_a_pivot_has_one_scale():
    rows = [[word(str(i)), Cell("1", 1.0, 0.0, 2.0), Cell("9", 9.0, 8.0, 10.0)] for i in range(2)]
    found = view(table(rows, kind="pivot"))
    assert [entry.bar for entry in found.rows[0][1:]] == [Bar(0.0, 20.0, 10.0), Bar(80.0, 100.0, 90.0)]


def test_settings_of_the_row_above_are_marked_up_to_the_first_that_differs():
    rows = [
        [word("lstm"), word("64"), Cell("1", 1.0)],
        [word("lstm"), word("128"), Cell("1", 1.0)],
        [word("sum"), word("128"), Cell("1", 1.0)],
    ]
    again = [[entry.is_again for entry in row] for row in view(table(rows, kind="figures")).rows]
    assert again == [[False] * 3, [True, False, False], [False] * 3]


def test_a_deviation_stands_apart_from_its_figure():
    cell = Cell("29.4 ± 0.5", 29.4, 27.0, 31.0, 0.5)
    entry = view(table([[word("a"), word("x"), cell]])).rows[0][2]
    assert (entry.text, entry.deviation, entry.order) == ("29.4", "± 0.5", "29.4")


def test_what_all_rows_state_is_said_once():
    rows = [[word("a"), word("done"), word("1")], [word("b"), word("done"), word("2")], [word("c"), NOTHING, NOTHING]]
    said, rest = without_constants(table(rows))
    assert [(column.title, cell.text) for column, cell in said] == [("Status", "done")]
    assert [column.title for column in rest.columns] == ["Run", "Value"]
    assert [[cell.text for cell in row] for row in rest.rows] == [["a", "1"], ["b", "2"], ["c", "–"]]


def test_notes_of_several_tables_are_said_once():
    row = [word("a"), word("x"), NOTHING]
    tables = [table([row], notes=["p", "own"]), table([row], notes=["p"])]
    assert common_notes(tables) == ["p"]
    assert view(tables[0], ["p"]).notes == ("own",)


def test_pivots_have_values_for_heads():
    columns = (Column("Size", "size", False), Column("text aggregator sum", "text_aggregator=sum"))
    found = view(Table("n", "pivot", "", "t", columns, ((word("64"), Cell("1", 1.0)),)))
    assert [head.title for head in found.heads] == ["Size", "sum"]
