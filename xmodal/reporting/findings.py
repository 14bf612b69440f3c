"""What was compared and what the paired tests say, in sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xmodal.reporting.balance import balance_of
from xmodal.reporting.groups import DIRECTIONS, Group
from xmodal.reporting.loss_figures import overfitting
from xmodal.reporting.ranking import from_best, headline, values_in_words
from xmodal.reporting.replicates import Figure, Replicates
from xmodal.reporting.significance import Contest, contest
from xmodal.reporting.swept import heading, setting, shown, sortable

_MOST_NAMED = 3
_MOST_VALUES = 8
_NOTEWORTHY = 5.0  # percent by which a validation loss rises

FOOTNOTE = (
    "Significant: by paired randomisation tests over query images, two-sided at 5 % after Holm's correction for the "
    "comparisons of one sentence; p is given before it, and nothing corrects for the number of sentences."
)


@dataclass(frozen=True)
class Sentence:
    """``Image → text`` (about), ``sum`` (answer), ``R@1 29.8 [27.1, 32.7], significantly better than …`` (rest)."""

    about: str
    answer: str
    rest: str


@dataclass(frozen=True)
class Topic:
    """Sentences on one question.

    Attributes:
        title: what it is about: ``Text aggregator``.
        scope: over what: ``mean over 5 embedding sizes``; may be empty.
        sentences: at least one.
    """

    title: str
    scope: str
    sentences: tuple[Sentence, ...]


def compared(group: Group) -> str:
    """``12 runs: 4 embedding sizes (256 to 2048) × 3 text aggregators (lstm, mean, sum).``"""
    runs = f"{len(group.runs)} run{'s' * (len(group.runs) > 1)}"
    if not group.keys:
        differing = f"; they differ in {len(group.all_keys)} settings" if group.all_keys else ""
        return f"{runs}{differing}."
    parts = " × ".join(_values_of(group.rows, key) for key in group.keys)
    seeds = sorted({len(row.runs) for row in group.rows})
    repeated = f", {'–'.join(map(str, seeds))} seeds each" if seeds[-1] > 1 else ""
    return f"{runs}: {parts}{repeated}."


def findings(group: Group) -> list[Topic]:
    """What is known of the best row, of each setting by itself, and of the training."""
    topics = [_best_row(group), *(_best_value(group, key) for key in group.keys if len(group.keys) > 1)]
    trained = (*_chosen_by_validation(group), *_overfitting(group))
    return [topic for topic in (*topics, Topic("Training", "", trained)) if topic.sentences]


def p_in_words(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``, on one line wherever it stands."""
    return (f"p = {p:.2g}" if p >= 0.001 else "p < 0.001").replace(" ", "\u00a0")


def with_interval(figure: Figure) -> str:
    """``29.8 [27.1, 32.7]``."""
    ends = f" [{figure.low:.1f}, {figure.high:.1f}]" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.1f}{ends}"


def _values_of(rows: Sequence[Replicates], key: str) -> str:
    values = sorted({shown(setting(row.runs[0], key)): setting(row.runs[0], key) for row in rows}.items(),
                    key=lambda pair: sortable(pair[1]))  # fmt: skip
    words = [text for text, _ in values]
    named = ", ".join(words) if len(words) <= _MOST_VALUES else f"{words[0]} to {words[-1]}"
    return f"{len(words)} {_plural(heading(key))} ({named})"


def _plural(noun: str) -> str:
    return f"values of {noun}" if "." in noun else noun if noun.endswith("s") else f"{noun}s"


def _best_row(group: Group) -> Topic:
    figures = [*(f"{way}_R1" for way in group.directions), *(["rsum"] if headline(group) == "rsum" else [])]
    names = [values_in_words(row, group.keys) for row in group.rows]
    said = tuple(sentence for figure in figures if (sentence := _sentence(group.rows, names, figure)))
    return Topic(f"Best of {len(group.rows)}", ", ".join(map(heading, group.keys)), said)


def _best_value(group: Group, key: str) -> Topic:
    """Which value of a setting is best, over all values of the others that every value of it was run with."""
    title = heading(key)[:1].upper() + heading(key)[1:]
    balance = balance_of(group, key)
    if balance is None:
        return Topic(title, "", ())
    rows, ways = balance.pooled(), [f"{way}_R1" for way in group.directions]
    said = tuple(sentence for figure in ways if (sentence := _sentence(rows, list(balance.values), figure)))
    return Topic(title, balance.scope, said)


def _sentence(rows: Sequence[Replicates], names: Sequence[str], figure: str) -> Sentence | None:
    found = [row.figure(figure) for row in rows]
    values = [one.value if one else None for one in found]
    having = [i for i, value in enumerate(values) if value is not None]
    if len(having) < 2:
        return None
    outcome = contest([row.queries for row in rows], values, figure)
    best = outcome.best if outcome.best is not None else max(having, key=lambda i: (values[i] or 0.0, -i))
    way = figure.removesuffix("_R1")
    about, unit = (DIRECTIONS[way], "R@1") if way in DIRECTIONS else ("All recalls", figure)
    figure_of_best = found[best]
    assert figure_of_best is not None
    labels = [f"{name} ({value:.1f})" if value is not None else name for name, value in zip(names, values, strict=True)]
    return Sentence(about, names[best], f"{unit} {with_interval(figure_of_best)}; {_verdict(outcome, labels, values)}.")


def _verdict(outcome: Contest, labels: Sequence[str], values: Sequence[float | None]) -> str:
    if outcome.best is None:
        return "not tested, for queries are not kept"
    others = sorted(outcome.p_values, key=lambda i: (-(values[i] or 0.0), i))
    tied = [f"{labels[i]}, {p_in_words(outcome.p_values[i])}" for i in others if i in outcome.tied]
    if not tied:
        return _won([labels[i] for i in others], max(outcome.p_values.values()))
    listed = "; ".join(tied[:_MOST_NAMED]) + (f"; and {len(tied) - _MOST_NAMED} more" * (len(tied) > _MOST_NAMED))
    ahead = "no" if values[others[0]] == values[outcome.best] else "not significantly"
    if len(others) == 1:
        return f"{ahead} better than {listed}"
    counted = str(len(tied)) if len(tied) < len(others) else "either" if len(others) == 2 else "any"
    return f"{ahead} better than {counted} of the other {len(others)}: {listed}"


def _won(others: Sequence[str], p: float) -> str:
    each = "each " if len(others) > 1 else ""
    largest = f"{each}{p_in_words(p)}" + (" or less" if each and p >= 0.001 else "")
    if len(others) <= _MOST_NAMED:
        return f"significantly better than {' and '.join(others)}, {largest}"
    return f"significantly better than all other {len(others)}, {largest}; the nearest: {others[0]}"


def _chosen_by_validation(group: Group) -> Iterator[Sentence]:
    """A choice made on the reported split flatters it; says what the validation split would have chosen."""
    split = group.runs[0].split or ""
    if len(group.rows) < 2 or split.startswith("val"):
        return
    found = [row.loss("val/rsum") for row in group.rows]
    scores = [one.value for one in found if one is not None]
    if len(scores) < len(found):
        return
    chosen, name = group.rows[max(range(len(scores)), key=lambda i: (scores[i], -i))], headline(group)
    figure = chosen.figure(name)
    if chosen is from_best(group)[0]:
        yield Sentence("Validation", "chooses the same", f"by its rsum as {split} does.")
    elif figure is not None:
        words = values_in_words(chosen, group.keys)
        yield Sentence(
            "Validation", f"would have chosen {words}", f"by its rsum; on {split}, {name} {with_interval(figure)}."
        )


def _overfitting(group: Group) -> Iterator[Sentence]:
    rises = {run.name: rise for run in group.runs if (rise := overfitting(run)) is not None}
    above = {name: rise for name, rise in rises.items() if rise >= _NOTEWORTHY}
    if above:
        most = max(above, key=lambda name: (above[name], name))
        ended = f"ended with a validation loss {_NOTEWORTHY:.0f} % or more above its lowest, most of all"
        yield Sentence(
            "Overfitting", f"{len(above)} of {len(rises)} runs", f"{ended} run {most} ({above[most]:.0f} %)."
        )
