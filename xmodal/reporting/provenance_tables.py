"""Where every run comes from, how their settings differ, and the runs that have no figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmodal.reporting.groups import left_out
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import setting, shown, swept_keys
from xmodal.reporting.table import NOTHING, Cell, Column, Table, number, word


def provenance_tables(runs: Sequence[Run]) -> Iterator[Table]:
    """What is not in the tables of figures; origin; command; settings that differ; versions."""
    yield from _left_out(runs)
    yield from _damaged(runs)
    yield _origin(runs)
    yield _table("commands", "Commands", ["Command"], {run.name: [word(run.command or "")] for run in runs})
    yield from _settings(runs)
    yield from _versions(runs)


def _left_out(runs: Sequence[Run]) -> Iterator[Table]:
    if without := left_out(runs):
        rows = {run.name: [word(run.status), word(run.error or ""), _last_epoch(run)] for run in without}
        yield _table("left-out", "Runs without figures", ["Status", "Error", "Last epoch"], rows, kind="runs")


def _damaged(runs: Sequence[Run]) -> Iterator[Table]:
    if damaged := [run for run in runs if run.faults]:
        rows = {run.name: [word("; ".join(run.faults))] for run in damaged}
        yield _table("damaged", "Files that are damaged or contradict one another", ["Fault"], rows, kind="runs")


def _last_epoch(run: Run) -> Cell:
    return number(run.history[-1].get("epoch"), 0) if run.history else NOTHING


def _origin(runs: Sequence[Run]) -> Table:
    heads = ["Status", "Started", "Duration (s)", "Commit", "Data", "Data fingerprint", "Machine"]
    return _table("origin", "Where the runs come from", heads, {run.name: _origin_of(run) for run in runs}, (
        "Duration: of the whole run; “training” where only the epochs were timed.",
    ))  # fmt: skip


def _origin_of(run: Run) -> list[Cell]:
    said = run.provenance or {}
    git, data, machine = (
        found if isinstance(found := said.get(key), dict) else {} for key in ("git", "data", "machine")
    )
    commit = str(git.get("commit") or "")
    changed = " (changed since)" if git.get("dirty") else ""
    return [
        word(run.status),
        word(str(said.get("started") or "")),
        _duration(run),
        Cell(commit[:12] + changed, commit + changed) if commit else NOTHING,
        word(run.data_name),
        word(str(data.get("fingerprint") or "")[:16]),
        word(_machine(machine)),
    ]


def _duration(run: Run) -> Cell:
    seconds = (run.provenance or {}).get("seconds")
    if isinstance(seconds, int | float):
        return number(float(seconds), 0)
    trained = run.history[-1].get("seconds") if run.history else None
    return Cell(f"{trained:.0f} training", trained) if trained is not None else NOTHING


def _machine(machine: Mapping[str, Any]) -> str:
    gpus = machine.get("gpus")
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    named = [machine.get("system"), machine.get("processor"), cores, *(gpus if isinstance(gpus, list) else [])]
    return ", ".join(str(part) for part in named if part)


def _settings(runs: Sequence[Run]) -> Iterator[Table]:
    """The configurations, without what all runs share."""
    stating = [run for run in runs if run.config]
    keys = swept_keys(stating)
    if any(run.seed is not None for run in stating) and len({run.seed for run in stating}) > 1:
        keys = ["seed", *keys]
    if keys:
        rows = {
            run.name: [word(shown(setting(run, key))) if key in run.config else NOTHING for key in keys] for run in runs
        }
        yield _table("settings", "Settings that differ", keys, rows)


def _versions(runs: Sequence[Run]) -> Iterator[Table]:
    found = {run.name: _stated_versions(run) for run in runs}
    names = sorted({name for versions in found.values() for name in versions})
    if names:
        rows = {run: [word(str(versions.get(name) or "")) for name in names] for run, versions in found.items()}
        yield _table("versions", "Library versions", names, rows)


def _stated_versions(run: Run) -> dict[str, Any]:
    versions = (run.provenance or {}).get("versions")
    return versions if isinstance(versions, dict) else {}


def _table(
    name: str,
    title: str,
    heads: Sequence[str],
    rows: Mapping[str, Sequence[Cell]],
    notes: Sequence[str] = (),
    kind: Any = "provenance",
) -> Table:
    columns = [Column("Run", "run", False), *(Column(head, head, False) for head in heads)]
    body = [(word(run), *cells) for run, cells in rows.items()]
    return Table(name, kind, "", title, tuple(columns), tuple(body), tuple(notes))
