"""Where the YAML files lie, which groups and options they make, and the resolvers that they use.

Nothing here imports torch: ``python train.py --help`` has to answer at once.
"""

import os
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = _PACKAGE / "conf"  # a wheel carries the files inside the package, a checkout beside it

CONF_DIR: Path = _SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent / "conf"
HYDRA_VERSION_BASE = "1.3"
_NO_GROUPS = ("hydra", "wandb")  # Hydra's own; sweeps for `wandb sweep`, which Hydra does not read


def absolute(path: str | Path) -> str:
    """``path`` as an absolute path, seen from the current folder; ``~`` is the home folder."""
    return os.path.abspath(os.path.expanduser(str(path)))


def default_data_dir() -> str:
    """``$XMODAL_DATA``, else ``data/`` of the repository (of the current folder, for an installed wheel), absolute."""
    beside = Path.cwd() if _SHIPPED.is_dir() else CONF_DIR.parent
    return absolute(os.environ.get("XMODAL_DATA") or beside / "data")


def register_resolvers() -> None:
    """Make ``${xmodal.absolute:…}``, ``${xmodal.data_dir:}`` and ``${xmodal.short_id:}`` known to OmegaConf."""
    OmegaConf.register_new_resolver("xmodal.absolute", absolute, replace=True)
    OmegaConf.register_new_resolver("xmodal.data_dir", default_data_dir, replace=True)
    # cached in the config: the run directory is read several times and must stay the same
    OmegaConf.register_new_resolver("xmodal.short_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)


register_resolvers()

# conf/hydra/launcher/joblib.yaml has the name of the plugin's own file, whose types its values are compared with
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@dataclass(frozen=True)
class ConfigSource:
    """A folder of YAML files, the root file among them, and folders that the command line adds."""

    folder: Path = CONF_DIR
    name: str = "train"
    extra: tuple[Path, ...] = ()

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Options of each group, sorted; Hydra's own groups are left out."""
        found: dict[str, set[str]] = {}
        for root in (self.folder, *self.extra):
            for file in root.rglob("*.yaml"):
                group, _, option = file.relative_to(root).with_suffix("").as_posix().rpartition("/")
                if group and group.split("/")[0] not in _NO_GROUPS:
                    found.setdefault(group, set()).add(option)
        return {group: tuple(sorted(options)) for group, options in sorted(found.items())}

    def options_with_key(self, group: str, key: str) -> list[str]:
        """Options of ``group`` whose file holds ``key``."""
        files = {file.stem: file for root in (self.folder, *self.extra) for file in (root / group).glob("*.yaml")}
        return sorted(name for name, file in files.items() if _holds(file, key))

    def load(self, overrides: Sequence[str]) -> DictConfig:
        """The composed config, without Hydra's node; raises what Hydra raises for bad overrides."""
        return self._composed(overrides, with_hydra=False)

    def load_hydra(self, overrides: Sequence[str]) -> DictConfig:
        """Hydra's own node for these overrides: launcher, sweeper, folders; raises what Hydra raises for bad ones."""
        return self._composed(overrides, with_hydra=True).hydra

    def _composed(self, overrides: Sequence[str], with_hydra: bool) -> DictConfig:
        searched = [f"hydra.searchpath=[{','.join(f'file://{path}' for path in self.extra)}]"] if self.extra else []
        at = hydra.initialize_config_dir
        with _beside_a_running_job(), at(str(self.folder), version_base=HYDRA_VERSION_BASE, job_name="train"):
            return hydra.compose(self.name, overrides=[*searched, *overrides], return_hydra_config=with_hydra)


@contextmanager
def _beside_a_running_job() -> Iterator[None]:
    """Hydra composes once per process; inside a job of ``hydra.main`` its own state is put aside and given back."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        yield
    finally:
        state.hydra = outer


def _holds(file: Path, key: str) -> bool:
    node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
