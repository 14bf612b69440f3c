"""`xmodal dashboard`: the standard dashboard of a W&B project."""

import argparse
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal.atomic import complete_file
from xmodal.commands.options import unknown
from xmodal.config.evaluation import unwritable
from xmodal.errors import ConfigError
from xmodal.tracking.key import has_key, host


def add(commands: Any) -> None:
    command = commands.add_parser(
        "dashboard",
        help="make the standard dashboard of a W&B project",
        description="Save a workspace with the standard dashboard in a W&B project: a new view each time.",
    )
    command.add_argument("--entity", required=True, metavar="NAME", help="team or user of W&B")
    command.add_argument("--project", default="xmodal", metavar="NAME", help="of the runs (default: xmodal)")
    command.add_argument("--name", default="xmodal", metavar="NAME", help="of the view (default: xmodal)")
    command.add_argument("--group", metavar="SWEEP", help="show one sweep: the name of its folder (default: all runs)")
    command.add_argument(
        "--monitor", default="val/rsum", metavar="FIGURE", help="the figure that runs stand by (default: val/rsum)"
    )
    command.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the definition instead of saving it; needs no key and no network",
    )
    command.set_defaults(run=run, parser=command, interrupted="The dashboard was not saved.")


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Define the dashboard, and save it with W&B or in a file."""
    if faults := [*unknown(rest, parsed.parser), *_faults(parsed)]:
        raise ConfigError(faults)
    from xmodal.tracking.dashboard import save, spec_of, standard_dashboard

    dashboard = standard_dashboard(parsed.entity, parsed.project, parsed.name, parsed.group, parsed.monitor)
    if parsed.json is None:
        print(f"Dashboard: {save(dashboard)}")
        return 0
    with complete_file(parsed.json) as partial:
        partial.write_text(json.dumps(spec_of(dashboard), indent=2) + "\n", encoding="utf-8")
    print(f"Definition of the dashboard: {parsed.json}")
    return 0


def _faults(parsed: argparse.Namespace) -> list[str]:
    faults = unwritable({"--json": parsed.json}, {})
    if importlib.util.find_spec("wandb_workspaces") is None:
        faults.append(
            "The library wandb-workspaces is not installed: pip install -c constraints.txt -e '.[dashboards]'"
        )
    if parsed.json is None and not has_key():
        faults.append(
            f"W&B has no key for {host()}: type `wandb login`, or set WANDB_API_KEY. Without one, --json FILE writes "
            "the definition."
        )
    return faults
