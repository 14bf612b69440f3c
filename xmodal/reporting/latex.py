"""A table as LaTeX, for a two-column paper with ``booktabs``."""

import unicodedata
from collections.abc import Sequence

from xmodal.reporting.markdown import interval
from xmodal.reporting.table import Cell, Column, Table

_WIDEST = 52  # characters in one column of a two-column page, at \footnotesize
_SYMBOLS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "→": r"$\rightarrow$", "↔": r"$\leftrightarrow$", "×": r"$\times$",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "—": "---", "†": r"$^\dagger$", "Δ": r"$\Delta$", "≥": r"$\geq$",
    "≤": r"$\leq$", "∞": r"$\infty$", "…": r"\dots{}", "“": "``", "”": "''", "’": "'", "·": r"$\cdot$",
}  # fmt: skip
_PREAMBLE = "% \\usepackage{booktabs}, \\usepackage[T1]{fontenc}; \\input this file where the table is to stand."


def as_latex(table: Table) -> str:
    """A ``table`` (``table*`` over both columns where it is too wide), with caption and label ``tab:<name>``.

    The caption says what marks and brackets mean; the notes stand above it as comments, for the text of the paper.
    """
    body = [[_cell(cell) for cell in row] for row in table.rows]
    place = "table" if _width(table) <= _WIDEST else "table*"
    title = f"{table.title} ({table.section})." if table.section else f"{table.title}."
    lines = [
        _PREAMBLE,
        *(f"% {' '.join(note.split())}" for note in table.notes),
        rf"\begin{{{place}}}[t]",
        r"  \centering",
        r"  \footnotesize",
        r"  \setlength{\tabcolsep}{4pt}",
        rf"  \caption{{{escaped(' '.join([title, *_legend(table)]))}}}",
        rf"  \label{{tab:{table.name}}}",
        rf"  \begin{{tabular}}{{@{{}}{''.join(_alignment(column) for column in table.columns)}@{{}}}}",
        r"    \toprule",
        _row([escaped(column.title) for column in table.columns]),
        r"    \midrule",
        *(_row(cells) for cells in body),
        r"    \bottomrule",
        r"  \end{tabular}",
        rf"\end{{{place}}}",
    ]
    return "\n".join(lines) + "\n"


def _legend(table: Table) -> list[str]:
    cells = [cell for row in table.rows for cell in row]
    legend = ["Bold: significantly better than all others."] if any(cell.is_best for cell in cells) else []
    legend += ["†: best, or not significantly worse."] if any(cell.is_tied for cell in cells) else []
    legend += ["In brackets: 95 % intervals."] if any(interval(cell) for cell in cells) else []
    return legend + (["±: deviation over seeds."] if any(cell.sd is not None for cell in cells) else [])


def escaped(text: str) -> str:
    """Plain text for LaTeX, on one line. Letters that pdfLaTeX's own fonts lack stand as ``?``."""
    return "".join(_SYMBOLS.get(sign) or _plain(sign) for sign in " ".join(text.split()))


def _plain(sign: str) -> str:
    if sign.isascii():
        return sign if sign.isprintable() else "?"
    base = unicodedata.normalize("NFKD", sign)[0]
    is_latin = unicodedata.name(sign, "").startswith("LATIN")
    return sign if is_latin and base.isascii() else base if base.isascii() and base.isprintable() else "?"


def _alignment(column: Column) -> str:
    return "r" if column.is_number else "l"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    text = rf"\textbf{{{text}}}" if cell.is_best else rf"{text}$^\dagger$" if cell.is_tied else text
    return rf"{text} {{\scriptsize {interval(cell)}}}" if interval(cell) else text


def _row(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _width(table: Table) -> int:
    """Characters of the widest row, as far as one can tell."""
    columns = zip(table.columns, zip(*table.rows, strict=True), strict=True)
    return sum(
        max(len(column.title), *(len(c.text) + len(interval(c)) for c in cells)) + 2 for column, cells in columns
    )
