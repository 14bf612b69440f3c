"""One run folder for all processes of a run.

Every process composes a configuration of its own, and so a folder that is called after the time and a random id.
Lightning's launcher names that of the first process to those that it starts. Processes that torchrun starts are told
here, through torchrun's own store of keys, which reaches all nodes.
"""

import os
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from xmodal.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_PATIENCE = timedelta(minutes=5)
_INSTEAD = (
    "Start `python train.py trainer=ddp trainer.devices=N`, which starts N processes itself, or "
    "`torchrun --nproc-per-node N train.py trainer=ddp trainer.devices=N`."
)


def words_for_this_process(words: Sequence[str]) -> list[str]:
    """The command line with the run folder of rank 0 added to it, for the other ranks of torchrun: they wait for it.

    Raises:
        ConfigError: several processes of which none could tell the others its folder; a multirun by several processes.
    """
    if not _are_several() or _names_folder(words) or _only_shows(words):
        return list(words)
    if any(word in ("-m", "--multirun") for word in words):
        raise ConfigError(f"torchrun can't start a multirun: each of its runs needs a start of its own. {_INSTEAD}")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ConfigError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} are set, but not by torchrun with a "
            f"store of its own (--rdzv-backend static or c10d): each process would make a run folder. {_INSTEAD} Or "
            "name the folder: hydra.run.dir=/path, new for each start."
        )
    if os.environ["RANK"] == "0":
        return list(words)
    try:
        folder = _store().get(_key()).decode()
    except RuntimeError as error:
        raise ConfigError(f"Rank {os.environ['RANK']} was not told the run folder of rank 0 ({error}).") from error
    quoted = re.sub(r'(["\\])', r"\\\1", folder)
    job = f"train_rank_{os.environ['RANK']}"
    return [*words, f'hydra.run.dir="{quoted}"', f"hydra.job.name={job}", "hydra.output_subdir=null"]


def tell_others() -> None:
    """On rank 0 of torchrun, name the run folder to the other ranks."""
    if _are_several() and os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _store().set(_key(), HydraConfig.get().runtime.output_dir)


def require_one_start(cfg: DictConfig, devices: int) -> None:
    """Raise ConfigError where the processes would not be those of one run.

    Args:
        devices: of the trainer, per node.
    """
    nodes = cfg.trainer.get("num_nodes", 1)
    if _are_several():
        world = int(os.environ["WORLD_SIZE"])
        if world != devices * nodes:
            raise ConfigError(
                f"torchrun started {world} processes, but trainer.devices and trainer.num_nodes say {devices} × "
                f"{nodes}. Add trainer=ddp trainer.devices=N (processes per node) trainer.num_nodes=M."
            )
    elif nodes > 1 and not (HydraConfig.initialized() and _names_folder(HydraConfig.get().overrides.hydra)):
        raise ConfigError(
            f"trainer.num_nodes={nodes}: each node would make its own run folder. Start `torchrun --nnodes {nodes} "
            f"--nproc-per-node N … train.py trainer=ddp trainer.devices=N trainer.num_nodes={nodes}` on each."
        )


def _are_several() -> bool:
    """Whether something outside started several processes; Lightning's own launcher sets no RANK."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _names_folder(words: Sequence[str]) -> bool:
    return any(word.startswith("hydra.run.dir=") for word in words)


def _only_shows(words: Sequence[str]) -> bool:
    """``--help``, ``--cfg job`` and the like make no run."""
    return any(word.startswith("-") and word not in ("-m", "--multirun") for word in words)


def _store() -> "TCPStore":
    """That of torchrun's agent, which exists before the first process and after the last."""
    from torch.distributed import TCPStore  # seconds, for those who train by several processes alone

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=_PATIENCE)


def _key() -> str:
    """New where torchrun starts all processes again after a failure."""
    return f"xmodal/run_folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
