"""One run folder for all processes of a run.

Every process composes a configuration of its own, and so a folder that is called after the time and a random id.
Lightning's launcher names that of the first process to those that it starts. Processes that torchrun starts are told
here, through torchrun's own store of keys, which reaches all nodes.

In a multirun Lightning would start each process with the command of the whole sweep, and take the processes of the
first job for those of the next. Here each job has processes of its own, which are told the words of that job alone.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from hydra._internal.utils import get_args_parser  # the very parser of hydra.main
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from xmodal.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

log = logging.getLogger(__name__)

_JOB = "XMODAL_JOB"  # the words of one job of a multirun
_OF_LAUNCHER = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")  # left behind by Lightning's
_ENDING = ("ddp_spawn", "ddp_fork", "ddp_notebook")
_MULTIRUN = ("-m", "--multirun")
_OF_SWEEP = re.compile(r"sweep=|[+~]*hydra[./](mode|sweep|launcher|run\.dir|job\.name|output_subdir)")
_PATIENCE = timedelta(minutes=5)
_INSTEAD = (
    "Start `python train.py trainer=ddp trainer.devices=N`, which starts N processes itself, or "
    "`torchrun --nproc-per-node N train.py trainer=ddp trainer.devices=N`."
)


def words_of_job(words: Sequence[str]) -> list[str]:
    """The command line of the job that this process is part of, where Lightning started it for one; else ``words``.

    What Lightning adds to the command of the first process names the folder of a run, not that of the job.
    """
    if _JOB not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
        return list(words)
    told: list[str] = json.loads(os.environ[_JOB])
    return [*told, f"hydra.job.name=train_rank_{os.environ['LOCAL_RANK']}", "hydra.output_subdir=null"]


@contextmanager
def one_run() -> Iterator[None]:
    """Within, what one run does, be it a job of a multirun: its processes share a folder, and rank 0 alone reports.

    Processes that Lightning starts for a job of a multirun end with it. Where such a job fails the multirun ends, as
    Lightning ends all processes of a program of which one has failed.
    """
    _keep_screen_for_rank_0()
    tell_others()
    if HydraConfig.get().mode != RunMode.MULTIRUN or "LOCAL_RANK" in os.environ:
        yield
        return
    before = {name: os.environ.get(name) for name in (_JOB, *_OF_LAUNCHER)}
    os.environ[_JOB] = json.dumps(_words_of_this_job(sys.argv[1:]))
    try:
        yield
    except Exception:
        if "LOCAL_RANK" not in os.environ:  # it was alone
            raise
        log.exception("A job of several processes failed, and the multirun ends with it.")
        raise SystemExit(1) from None
    finally:
        _leave_group()
        _restore(before)


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _keep_screen_for_rank_0() -> None:
    """Let the other processes of a run print warnings alone; their log files say everything."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        return
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # a FileHandler is one too
            handler.setLevel(logging.WARNING)


def words_for_this_process(words: Sequence[str]) -> list[str]:
    """The command line with the run folder of rank 0 added to it, for the other ranks of torchrun: they wait for it.

    Raises:
        ConfigError: several processes of which none could tell the others its folder; a multirun by several processes.
    """
    if not _are_several() or _names_folder(words) or _only_shows(words):
        return list(words)
    if any(word in _MULTIRUN for word in words):
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
    job = f"train_rank_{os.environ['RANK']}"
    return [*words, _in_folder(folder), f"hydra.job.name={job}", "hydra.output_subdir=null"]


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
    if str(cfg.trainer.get("strategy")).startswith(_ENDING):
        raise ConfigError(
            f"trainer.strategy={cfg.trainer.strategy}: its processes end with training, and what they know of the run "
            "is lost. Choose trainer.strategy=ddp."
        )
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


def _words_of_this_job(words: Sequence[str]) -> list[str]:
    """A command that makes the job that is running now, in its folder, alone.

    Args:
        words: the command line of the multirun.
    """
    swept, chosen = get_args_parser().parse_known_args(list(words))[0].overrides, HydraConfig.get()
    flags = [word for word in words if word not in swept and word not in _MULTIRUN]
    return [*flags, *words_alone(), _in_folder(chosen.runtime.output_dir)]


def words_alone() -> list[str]:
    """The settings of the job of a multirun that is running now, without what belongs to the sweep."""
    job = HydraConfig.get()
    return [word for word in (*job.overrides.task, *job.overrides.hydra) if not _OF_SWEEP.match(word)]


def _in_folder(folder: str) -> str:
    quoted = re.sub(r'(["\\])', r"\\\1", folder)
    return f'hydra.run.dir="{quoted}"'


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")  # a job that failed early has not imported it
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _names_folder(words: Sequence[str]) -> bool:
    return any(word.startswith("hydra.run.dir=") for word in words)


def _only_shows(words: Sequence[str]) -> bool:
    """``--help``, ``--cfg job`` and the like make no run."""
    return any(word.startswith("-") and word not in _MULTIRUN for word in words)


def _store() -> "TCPStore":
    """That of torchrun's agent, which exists before the first process and after the last."""
    from torch.distributed import TCPStore  # seconds, for those who train by several processes alone

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=_PATIENCE)


def _key() -> str:
    """New where torchrun starts all processes again after a failure."""
    return f"xmodal/run_folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
