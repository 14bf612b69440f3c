"""What was found, as a table for people and as JSON for programs."""

import json
import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xmodal.doctor.examination import Examined
from xmodal.doctor.finding import Finding

_WIDTH_OF_FILES = 160  # of output that goes to no terminal
_STYLES = {"ok": "green", "optional": "dim", "warning": "yellow", "missing": "bold red", "fault": "bold red"}


def is_sound(examined: Examined) -> bool:
    """Whether nothing that is needed is missing or at fault."""
    return not any(finding.is_failing for finding in _all(examined))


def print_table(examined: Examined) -> None:
    """Print a line for each finding, what to do below it, and a summary."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    table.add_column("what", overflow="fold")
    table.add_column("found, and → what to do", overflow="fold")
    for section, findings in examined.items():
        table.add_row("", Text(section.upper(), style="bold"), "")
        for finding in findings:
            table.add_row(Text(finding.mark, style=_STYLES[finding.mark]), Text(finding.what), _told(finding))
        table.add_section()
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES).print(table)
    print(summary(examined))


def summary(examined: Examined) -> str:
    """One line: what has to be put right, if anything."""
    failing = [finding.what for finding in _all(examined) if finding.is_failing]
    warnings = sum(finding.mark == "warning" for finding in _all(examined))
    beside = f" {warnings} {'warning' if warnings == 1 else 'warnings'}." if warnings else ""
    fetched = [finding.what for finding in _all(examined) if finding.values.get("needed") and finding.mark == "warning"]
    if not failing and fetched:
        return f"Nothing is at fault, but weights have to be fetched before a run: {', '.join(fetched)}.{beside}"
    if not failing:
        return f"All that is needed is here.{beside}"
    return f"{len(failing)} to put right: {', '.join(failing)}.{beside}"


def as_json(examined: Examined) -> str:
    """``{"sound": …, "lines": [{"section", "what", "mark", "found", "advice", "values"}]}``."""
    lines = [
        {
            "section": section,
            "what": finding.what,
            "mark": finding.mark,
            "found": finding.found,
            "advice": finding.advice,
            "values": dict(finding.values),
        }
        for section, findings in examined.items()
        for finding in findings
    ]
    return json.dumps({"sound": is_sound(examined), "lines": lines}, indent=2, ensure_ascii=False) + "\n"


def _all(examined: Examined) -> Iterator[Finding]:
    for findings in examined.values():
        yield from findings


def _told(finding: Finding) -> Text:
    text = Text(finding.found)
    return text.append(f"\n→ {finding.advice}", style="cyan") if finding.advice else text
