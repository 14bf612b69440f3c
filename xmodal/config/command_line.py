"""Faults of a command line, all of them, found before Hydra composes (it would stop at the first)."""

import itertools
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser  # the very parser of hydra.main: no flag of Hydra is unknown here
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmodal.config.check import check, type_faults
from xmodal.config.sources import CONF_DIR, ConfigSource
from xmodal.config.suggestions import did_you_mean, likely_keys, phrase
from xmodal.config.sweeping import Sweeping, sweeping
from xmodal.config.values import absolute_paths, all_keys, has_key, plain
from xmodal.errors import ConfigError

_REFUSED = (HydraException, OmegaConfBaseException, ValueError)  # of Hydra and OmegaConf; ValueError: odd group values
_MOST_JOBS = 32  # of a multirun: beyond, each value is checked once rather than each combination


def compose(overrides: Sequence[str] = (), source: ConfigSource | None = None) -> DictConfig:
    """The config that these overrides make, paths absolute; raises ConfigError with every fault of the overrides."""
    source = source or ConfigSource()
    checked = _Overrides(overrides, source)
    if checked.faults:
        raise ConfigError(list(checked.faults.values()))
    # composed by the check already; of lists and bounds Hydra itself says that they make no single run
    is_single = not any(override.is_sweep_override() for override in checked.good)
    return checked.jobs[0] if is_single else absolute_paths(source.load(list(overrides)))


def check_overrides(overrides: Sequence[str], source: ConfigSource | None = None) -> list[str]:
    """Faults of the overrides alone: syntax, group, option, key, type; what was probably meant is part of each."""
    return list(_Overrides(overrides, source or ConfigSource()).faults.values())


def check_command_line(argv: Sequence[str]) -> None:
    """Find every fault of a command line (without the program's name): its overrides, and what they compose to.

    ``hydra.*``, ``+key``, ``++key``, ``~key`` and Hydra's flags pass; of a multirun each job is checked, those of
    ``sweep=`` too. Where Hydra only shows something (``--cfg``), files are not looked for.

    Raises:
        ConfigError: with all faults.
    """
    known, unknown = get_args_parser().parse_known_args(list(argv))
    if known.help or known.hydra_help or known.shell_completion or known.info or known.experimental_rerun:
        return
    faults = _not_understood(unknown)
    source = _source(known)
    if source is not None:
        beside = sweeping(known.overrides, source) if _is_multirun(known) else Sweeping((), ())
        checked = _Overrides([*beside.lines, *known.overrides], source)
        faults += [*checked.faults.values(), *beside.faults, *_stray_sweeps(checked.good, known)]
        if known.cfg is None:
            faults += [fault for cfg in checked.jobs for fault in check(cfg)]
    if faults:
        raise ConfigError(_in_order(faults, known.overrides))


def words_of_help(argv: Sequence[str]) -> list[str]:
    """The command line; with ``--help``, without settings, which Hydra would compose and whose lists it would refuse.

    The help is the same whatever is set.
    """
    known, _ = get_args_parser().parse_known_args(list(argv))
    return [word for word in argv if not known.help or word not in known.overrides]


def _in_order(faults: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Each fault once, in the order of the words that it speaks of; what concerns none of them comes last."""
    keys = [line.partition("=")[0].lstrip("+~") for line in lines]

    def place(fault: str) -> int:
        exact = [i for i, line in enumerate(lines) if fault.startswith(f"{line}: ")]
        key = re.split("[=:]", fault.lstrip("+~"), maxsplit=1)[0]
        return exact[0] if exact else keys.index(key) if key in keys else len(keys)

    return sorted(dict.fromkeys(faults), key=place)


def compose_choice(cfg: DictConfig, group: str, option: str, source: ConfigSource | None = None) -> dict[str, Any]:
    """What ``option`` of ``group`` would be inside ``cfg``, as a plain dictionary with its interpolations resolved.

    Args:
        option: the option's name; settings of it may follow, as in ``"fasttext vectors=cc.en.300.bin"``.

    Raises:
        ConfigError: no such option, or a fault in its settings.
    """
    source = source or ConfigSource()
    name, *settings = option.split()
    overrides = [f"{group}={name}", *(f"{group}.{setting}" for setting in settings)]
    if faults := check_overrides(overrides, source):
        raise ConfigError(faults)
    context = cfg.copy()
    OmegaConf.set_readonly(context, False)
    OmegaConf.set_struct(context, False)
    context[group] = source.load(overrides)[group]
    return plain(context[group])


def report(faults: Sequence[str]) -> str:
    """The one form in which faults are shown: their number, then one per line."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"{count} in the command line:", *(f"  {fault}" for fault in faults)])


def _not_understood(words: Sequence[str]) -> list[str]:
    """Faults of the words that Hydra's parser leaves over: flags that do not exist, settings in the wrong place."""
    faults = [_unknown_flag(word) for word in words if word.startswith("-")]
    if settings := [word for word in words if not word.startswith("-")]:
        shown = ", ".join([*settings[:2], *(["…"] if len(settings) > 2 else [])])
        faults.append(f"{shown}: settings stand on both sides of a flag. Put flags such as -m first or last.")
    return faults


def _unknown_flag(word: str) -> str:
    name = word.lstrip("-")
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    hint = did_you_mean(word, flags, cutoff=0.7) or f" Settings are typed without dashes: {name.partition('=')[0]}=…"
    return f"{word}: there is no such flag.{hint}"


def _source(known: Namespace) -> ConfigSource | None:
    """Where the command line lets Hydra look; None for places other than folders, which only Hydra can read."""
    folder, name = known.config_path, (known.config_name or "train").removesuffix(".yaml")
    if folder and "://" in folder:
        return None
    root = CONF_DIR.parent / folder if folder else CONF_DIR  # Hydra reads a relative one from train.py's folder
    extra = (Path(known.config_dir).resolve(),) if known.config_dir else ()
    return ConfigSource(root, name, extra) if root.is_dir() else None


def _is_multirun(known: Namespace) -> bool:
    return known.multirun or "hydra.mode=MULTIRUN" in known.overrides


def _stray_sweeps(overrides: Sequence[Override], known: Namespace) -> list[str]:
    """What makes several runs without -m; to show a configuration does no harm."""
    if _is_multirun(known):
        return []
    lists = [o.input_line for o in overrides if o.is_sweep_override()]
    chosen = [o.input_line for o in overrides if o.key_or_group == "sweep" and o.value() != "none"]
    return [
        *(f"{line}: several values make several runs: add -m. (A list is written key=[a,b].)" for line in lists),
        *(f"{line}: a sweep is several runs: add -m." for line in chosen if known.cfg is None and line not in lists),
    ]


class _Overrides:
    """The overrides of a command line, sorted into good ones and faulty ones (text of the override → fault)."""

    def __init__(self, lines: Sequence[str], source: ConfigSource) -> None:
        self.source = source
        self.groups = source.groups()
        self.faults: dict[str, str] = {}
        parsed = [override for line in lines if (override := self._parse(line)) is not None]
        self.good = [override for override in parsed if not self._is_faulty(override, self._option_fault(override))]
        self.jobs = [absolute_paths(cfg) for cfg in self._composed()]  # one config per run
        self._add_type_faults()

    def _composed(self) -> list[DictConfig]:
        """The configs that the good overrides make; only where Hydra refuses them is the culprit looked for."""
        try:
            return [self.source.load(job) for job in _jobs(self.good, self.groups)]
        except _REFUSED:
            chosen = [override for override in self.good if override.key_or_group in self.groups]
            configs = list(self._load(chosen))
            self.good = [o for o in self.good if not self._is_faulty(o, self._key_fault(o, configs))]
            return list(self._load(self.good))

    def _parse(self, line: str) -> Override | None:
        try:
            return OverridesParser.create().parse_override(line)
        except HydraException as error:
            self.faults[line] = f"{line}: {self._unreadable(line, error)}"
            return None

    def _unreadable(self, line: str, error: HydraException) -> str:
        if "=" in line:
            return f"cannot be read ({str(error).splitlines()[0]}). Quote unusual characters: key=\"'…'\"."
        owners = [f"{group}={line}" for group, options in self.groups.items() if line in options]
        return f"expected key=value.{phrase(owners)}"

    def _is_faulty(self, override: Override, fault: str | None) -> bool:
        if fault:
            self.faults[str(override.input_line)] = f"{override.input_line}: {fault}"
        return fault is not None

    def _option_fault(self, override: Override) -> str | None:
        group = override.key_or_group
        if group not in self.groups or override.type == OverrideType.DEL:
            return None
        options = self.groups[group]
        for value in _values(override, options):
            names = value if isinstance(value, list) else [value]
            if None in names:
                return f"a choice cannot be null. Leave the setting out, or choose: {', '.join(options)}."
            if bad := [name for name in names if str(name) not in options]:
                hint = did_you_mean(str(bad[0]), options)
                return f"there is no {group} '{bad[0]}'.{hint} Choices: {', '.join(options)}."
        return None

    def _key_fault(self, override: Override, configs: Sequence[DictConfig]) -> str | None:
        key = override.key_or_group
        own = key in self.groups or key.split(".")[0].split("/")[0] == "hydra"
        if own or override.type != OverrideType.CHANGE or all(has_key(cfg, key) for cfg in configs):
            return None
        cfg = next(cfg for cfg in configs if not has_key(cfg, key))
        return f"there is no key '{key}'.{self._hint(key, cfg)}"

    def _hint(self, key: str, cfg: DictConfig) -> str:
        if "." not in key and (groups := did_you_mean(key, self.groups, cutoff=0.75)):
            return groups
        group, _, rest = key.partition(".")
        if rest and group in self.groups and (options := self.source.options_with_key(group, rest)):
            return f" It belongs to {' and '.join(f'{group}={option}' for option in options)}."
        return phrase(likely_keys(key, all_keys(cfg)))

    def _add_type_faults(self) -> None:
        """Note overrides whose value has the wrong type; they stay composable, so they stay good."""
        # a group within a group is a parameter of what the outer one chose, which may have none of that name
        names = (o.key_or_group for o in self.good)
        keys = {name.replace("/", ".") for name in names if "/" in name or name not in self.groups}
        for cfg in self.jobs:
            for key, fault in type_faults(cfg).items():
                if any(key == given or key.startswith(f"{given}.") for given in keys):
                    self.faults.setdefault(fault, fault)

    def _load(self, overrides: Sequence[Override]) -> Iterator[DictConfig]:
        for job in _jobs(overrides, self.groups):
            try:
                yield self.source.load(job)
            except _REFUSED as error:
                line = next((line for line in job if not self._composes([line])), " ".join(job) or "the configuration")
                self.faults.setdefault(line, f"{line}: {_reason(error)}")

    def _composes(self, job: list[str]) -> bool:
        try:
            self.source.load(job)
        except _REFUSED:
            return False
        return True


def _reason(error: Exception) -> str:
    texts = [str(e) for e in (error, error.__cause__) if e is not None and str(e).strip()]
    return " ".join(" ".join(texts).split())


def _values(override: Override, options: Sequence[str]) -> list[object]:
    """Every value of an override: one, or those of a sweep."""
    value = override.value()
    if isinstance(value, Glob):
        return list(value.filter(list(options)))
    if override.value_type == ValueType.INTERVAL_SWEEP or not override.is_sweep_override():
        return [value]
    return [Override._convert_value(item) for item in override.sweep_iterator()]


def _lines(override: Override, groups: dict[str, tuple[str, ...]]) -> list[str]:
    """The override once per value, each without a sweep; none for an interval, which only a sweeper can draw from."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.value_type == ValueType.INTERVAL_SWEEP:
        return []
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        texts = [str(value) for value in _values(override, groups.get(override.key_or_group, ()))]
    else:
        texts = list(override.sweep_string_iterator())
    return [f"{override.get_key_element()}={text}" for text in texts]


def _jobs(overrides: Sequence[Override], groups: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Overrides of each job: all combinations where they are few, else each value beside the first of the others."""
    choices = [lines for override in overrides if (lines := _lines(override, groups))]
    count = 1
    for lines in choices:
        count *= len(lines)
    if count <= _MOST_JOBS:
        return [list(job) for job in itertools.product(*choices)]
    first = [lines[0] for lines in choices]
    others = [[*first[:i], line, *first[i + 1 :]] for i, lines in enumerate(choices) for line in lines[1:]]
    return [first, *others]
