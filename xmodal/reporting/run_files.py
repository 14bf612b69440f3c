"""Reading the files of a run folder; what can't be read becomes a sentence in a list of faults, not an exception."""

import csv
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xmodal.errors import DataError
from xmodal.retrieval.record import EvaluationRecord, read_record

PROVENANCE = "provenance.json"
METRICS = "metrics.json"
HISTORY = "history.csv"
CONFIG = "config.yaml"
COMMAND = "command.txt"
_EARLIER_RUN = "earlier_run.json"  # left by a job of `resume=true` that had been finished before
_COMPOSED = ".hydra/config.yaml"
_HYDRA = ".hydra/hydra.yaml"
_FORMAT = 1
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def is_run(folder: Path) -> bool:
    """Whether a run left this folder: by its records, or by Hydra's own where it failed before it had any."""
    return (folder / ".hydra").is_dir() or any((folder / name).is_file() for name in (PROVENANCE, METRICS, HISTORY))


def run_behind(folder: Path) -> Path:
    """The run itself; or the earlier one that stands for a job that was not run again, where it is still there."""
    try:
        told = json.loads((folder / _EARLIER_RUN).read_text(encoding="utf-8"))
        earlier = (folder / told["run"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    return earlier if is_run(earlier) else folder


@dataclass
class RunFiles:
    """The files of one folder.

    Attributes:
        folder: of the run.
        faults: what was damaged; grows as files are read.
    """

    folder: Path
    faults: list[str] = field(default_factory=list)

    def provenance(self) -> dict[str, Any] | None:
        """Where the run came from; None where the folder does not say."""
        found = self._mapping(PROVENANCE, json.loads)
        if found is not None and found.get("format") != _FORMAT:
            self.faults.append(f"{PROVENANCE} is of format {found.get('format')!r}, expected {_FORMAT}: it is not used")
            return None
        return found

    def metrics(self) -> dict[str, float]:
        """Figures by their flat names, ``test/i2t_R1``."""
        found = self._mapping(METRICS, json.loads) or {}
        numbers = {name: float(value) for name, value in found.items() if _is_number(value)}
        if wrong := sorted(set(found) - set(numbers)):
            self.faults.append(f"{METRICS} holds what is no number: {', '.join(wrong[:5])}")
        return numbers

    def history(self) -> list[dict[str, float]]:
        """One mapping per epoch, without the figures that an epoch does not have."""
        text = self._text(HISTORY)
        if text is None:
            return []
        if not text.endswith("\n"):
            self.faults.append(f"{HISTORY} {'was cut off' if text else 'is empty'}: its last epochs are missing")
        try:
            rows = list(csv.DictReader(text.splitlines(), strict=True))
            return [{name: float(value) for name, value in row.items() if value != ""} for row in rows]
        except (csv.Error, ValueError, TypeError) as fault:
            self.faults.append(f"{HISTORY} can't be read ({fault})")
            return []

    def config(self) -> tuple[dict[str, Any], bool]:
        """The resolved configuration, else what Hydra composed; and whether it is the first, which states everything.

        A configuration without settings that Hydra composed was cut off.
        """
        composed = self._mapping(_COMPOSED, _yaml) or {}
        found = self._mapping(CONFIG, _yaml)
        if found is None:
            return composed, False
        if lost := [str(key) for key in composed if key not in found]:
            self.faults.append(f"{CONFIG} lacks {', '.join(lost[:5])}, which {_COMPOSED} has: it was cut off")
            return composed, False
        return found, True

    def choices(self) -> dict[str, str]:
        """The option chosen in each group, by Hydra's record."""
        found = self._mapping(_HYDRA, _yaml) or {}
        try:
            chosen = found["hydra"]["runtime"]["choices"]
            return {str(group): str(option) for group, option in chosen.items() if option is not None}
        except (KeyError, TypeError, AttributeError):
            return {}

    def command(self) -> str | None:
        """The command in ``command.txt``, as results that are kept without their run folder state it."""
        text = self._text(COMMAND)
        return " ".join(text.split()) if text else None

    def earlier_run(self) -> str | None:
        """Where the run is that this job stands for."""
        return (self._mapping(_EARLIER_RUN, json.loads) or {}).get("run")

    def evaluations(self) -> list[str]:
        """Names of the evaluations whose queries are kept."""
        return sorted(file.stem.removeprefix("evaluation_") for file in self.folder.glob("evaluation_*.npz"))

    def evaluation(self, name: str) -> EvaluationRecord | None:
        """The queries of one evaluation."""
        path = self.folder / f"evaluation_{name}.npz"
        if not path.is_file():
            return None
        try:
            return read_record(path)
        except DataError as fault:
            self.faults.append(str(fault))
            return None

    def _mapping(self, name: str, parse: Any) -> dict[str, Any] | None:
        text = self._text(name)
        if text is None:
            return None
        try:
            found = parse(text)
        except (ValueError, yaml.YAMLError, RecursionError) as fault:
            self.faults.append(f"{name} can't be read ({' '.join(str(fault).split())})")
            return None
        if not isinstance(found, dict):
            self.faults.append(f"{name} holds {type(found).__name__}, expected names with values")
            return None
        return found

    def _text(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as fault:
            self.faults.append(f"{name} can't be read ({fault})")
            return None


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def settings_of_command(command: str) -> dict[str, Any]:
    """What a command line sets: ``key=value`` words, values read as YAML."""
    try:
        words = shlex.split(command)
    except ValueError:
        return {}
    pairs = [word.lstrip("+").split("=", 1) for word in words if "=" in word and not word.startswith(("-", "~"))]
    return {key: _value(text) for key, text in pairs}


def _value(text: str) -> Any:
    try:
        return _yaml(text)
    except yaml.YAMLError:
        return text


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)
