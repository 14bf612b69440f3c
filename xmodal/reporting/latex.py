"""A table as LaTeX, for a two-column paper with ``booktabs``."""

import unicodedata
from collections.abc import Sequence

from xmodal.reporting.markdown import interval
from xmodal.reporting.table import Cell, Column, Table

_COLUMN = 237.0  # points of one column of a two-column page
_SIGN, _SMALL_SIGN, _GAP = 4.25, 3.8, 8.0  # points of a sign at \footnotesize and \scriptsize, and between columns
_SYMBOLS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "→": r"$\rightarrow$", "↔": r"$\leftrightarrow$", "×": r"$\times$",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "—": "---", "†": r"$^\dagger$", "Δ": r"$\Delta$", "≥": r"$\geq$",
    "≤": r"$\leq$", "∞": r"$\infty$", "…": r"\dots{}", "“": "``", "”": "''", "’": "'", "·": r"$\cdot$",
    "[": "{[}", "*": "{*}",  # at the start of a row they would be read as its option
}  # fmt: skip
_PREAMBLE = (
    "% \\usepackage{booktabs,graphicx}, \\usepackage[T1]{fontenc}; \\input this file where the table is to stand."
)


def as_latex(table: Table) -> str:
    """A ``table`` (``table*`` over both columns where it is too wide), with caption and label ``tab:<name>``; intervals
    stand below their figures.

    The caption says what marks and brackets mean; the notes stand above it as comments, for the text of the paper.
    """
    place = "table" if _width(table) <= _COLUMN else "table*"
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
        r"  \sbox0{%",
        *_tabular(table),
        r"  }%",
        r"  \ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        rf"\end{{{place}}}",
    ]
    return "\n".join(lines) + "\n"


def _tabular(table: Table) -> list[str]:
    return [
        rf"  \begin{{tabular}}{{@{{}}{''.join(_alignment(column) for column in table.columns)}@{{}}}}",
        r"    \toprule",
        _row([escaped(column.title) for column in table.columns]),
        r"    \midrule",
        *(line for row in table.rows for line in _lines(row)),
        r"    \bottomrule",
        r"  \end{tabular}%",
    ]


def _lines(cells: Sequence[Cell]) -> list[str]:
    """The figures, and their intervals where there are any."""
    below = [rf"{{\scriptsize {interval(cell)}}}" if interval(cell) else "" for cell in cells]
    return [_row([_cell(cell) for cell in cells]), *([_row(below) + r" \addlinespace[2pt]"] if any(below) else [])]


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
    return "c" if column.is_number else "l"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.is_best else rf"{text}$^\dagger$" if cell.is_tied else text


def _row(cells: Sequence[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"


def _width(table: Table) -> float:
    """Points of all columns, as far as one can tell without setting them."""
    columns = zip(table.columns, zip(*table.rows, strict=True), strict=True)
    return sum(_GAP + max(len(column.title) * _SIGN, *map(_points, cells)) for column, cells in columns)


def _points(cell: Cell) -> float:
    return max((len(cell.text) + cell.is_tied) * _SIGN, len(interval(cell)) * _SMALL_SIGN)
