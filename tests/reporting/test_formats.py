"""Markdown, CSV and LaTeX read back: every sign arrives, nothing is rounded, LaTeX compiles where it is installed."""

import csv
import re
import shutil
import subprocess
from dataclasses import replace
from io import StringIO

import pytest

from xmodal.reporting.latex import as_latex
from xmodal.reporting.latex import escaped as latex_escaped
from xmodal.reporting.markdown import as_markdown
from xmodal.reporting.markdown import escaped as markdown_escaped
from xmodal.reporting.plain import as_csv
from xmodal.reporting.table import NOTHING, Cell, Column, Table, number, word

NASTY = r"a_b & 50% #1 $x$ {y} \z ~ ^ <i> | `c` *d* [e] → × ± − é “q” 漢"
COLUMNS = (Column("Run", "run", False), Column("R@1 (accuracy)", "R1"), Column("medR", "medR"))
ROWS = (
    (word(NASTY), Cell("29.8", 29.8123456789, 27.1, 32.66, is_best=True), number(4.0)),
    (word("two\nlines"), Cell("29.4 ± 0.5", 1 / 3, 27.0, 31.9, sd=0.5, is_tied=True), NOTHING),
    (word("plain"), Cell("1.0", 1.0), number(float("nan"))),
)
TABLE = Table("x_y-z", "figures", "data_1, test", "Image → text", COLUMNS, ROWS, (NASTY, "100 % of it."))


def test_csv_has_plain_names_and_full_precision():
    found = list(csv.DictReader(StringIO(as_csv(TABLE))))
    assert list(found[0]) == ["run", "R1", "R1_low", "R1_high", "R1_sd", "R1_mark", "medR"]
    assert found[0] == {
        "run": NASTY, "R1": "29.8123456789", "R1_low": "27.1", "R1_high": "32.66", "R1_sd": "", "R1_mark": "best",
        "medR": "4.0",
    }  # fmt: skip
    assert float(found[1]["R1"]) == 1 / 3
    assert [row["R1_mark"] for row in found] == ["best", "tied", ""]
    assert [row["medR"] for row in found] == ["4.0", "", ""]
    assert found[1]["run"] == "two\nlines"


def test_markdown():
    lines = as_markdown(TABLE).splitlines()
    assert lines[0] == r"### Image → text (data\_1, test)"
    assert lines[2:4] == ["| Run | R@1 (accuracy) | medR |", "|---|---:|---:|"]
    assert lines[4].endswith("| **29.8** [27.1, 32.7] | 4.0 |")
    assert lines[5] == "| two lines | 29.4 ± 0.5† [27.0, 31.9] | – |"
    assert lines[6] == "| plain | 1.0 | – |"
    assert lines[-1] == "100 % of it."


def test_every_row_of_markdown_has_the_cells_of_its_head():
    rows = [line for line in as_markdown(TABLE).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


def test_markdown_shows_special_signs_as_they_are():
    assert re.sub(r"\\(.)", r"\1", markdown_escaped(NASTY)) == NASTY
    assert markdown_escaped("<script>") == r"\<script\>"


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("%")]


def test_latex_is_balanced_and_escaped():
    body = "\n".join(lines_of(as_latex(TABLE)))
    bare = re.sub(r"\\[\\{}$&#%_]", "", body)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert "#" not in bare
    assert "_" not in bare.replace("tab:x_y-z", "")
    begun, ended = (re.findall(rf"\\{word}{{(\w+\*?)}}", body) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption{", r"\label{tab:x_y-z}"):
        assert body.count(rule) == 1


def test_every_row_of_latex_has_as_many_cells_as_the_head():
    rows = [line for line in lines_of(as_latex(TABLE)) if r" \\" in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert len(rows) == 1 + 3 + 2  # intervals stand below the two rows that have any


def test_marks_of_latex():
    text = as_latex(TABLE)
    assert r"\textbf{29.8}" in text
    assert r"29.4 $\pm$ 0.5$^\dagger$" in text
    assert r"{\scriptsize [27.1, 32.7]}" in text


def test_latex_says_in_its_caption_only_what_the_table_has():
    caption = next(line for line in as_latex(TABLE).splitlines() if "caption" in line)
    assert "Bold" in caption
    assert r"95 \% intervals" in caption
    plain = Table("x", "figures", "", "Title", COLUMNS, ROWS[2:])
    assert r"\caption{Title.}" in as_latex(plain)


def test_a_narrow_table_takes_one_column_of_the_page_and_a_wide_one_two():
    narrow = Table("x", "figures", "", "Title", COLUMNS, ROWS[2:])
    wide = Table("x", "figures", "", "Title", COLUMNS * 4, (ROWS[2] * 4,))
    assert r"\begin{table}[t]" in as_latex(narrow)
    assert r"\begin{table*}[t]" in as_latex(wide)


def test_every_ascii_sign_is_safe_in_latex():
    signs = "".join(map(chr, range(33, 127)))
    found = re.sub(r"\\[\\{}$&#%_]|\\text\w+\{\}|\{[\[*]\}", "", latex_escaped(signs))
    assert not set(found) & set("\\{}$&#%_^~")


def test_notes_cannot_leave_their_comment():
    text = as_latex(Table("x", "figures", "", "T", COLUMNS, ROWS[2:], ("one\n\\input{evil}",)))
    assert "% one \\input{evil}" in text.splitlines()


def test_latex_compiles(tmp_path):
    """With real pdfLaTeX; nothing is wider than its place."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    wide = Table("wide", "figures", "", NASTY, COLUMNS * 5, tuple(row * 5 for row in ROWS))
    for table in (TABLE, wide):
        (tmp_path / f"{table.name}.tex").write_text(as_latex(table))
    (tmp_path / "all.tex").write_text(
        r"\documentclass[twocolumn]{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}x"
        r"\input{x_y-z.tex}\input{wide.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "all.pdf").exists()


def test_a_row_of_latex_never_begins_with_what_a_line_break_takes_for_its_option():
    rows = [[word("[16,32]"), number(1.0), number(2.0)], [word("*"), number(1.0), number(2.0)]]
    text = as_latex(replace(TABLE, rows=tuple(map(tuple, rows))))
    assert "    {[}16,32] & 1.0" in text
    assert "    {*} & 1.0" in text
