"""Several processes that make one file of features together: one per GPU, as ``torchrun`` starts them.

Of the chunks that are missing, rank r of W makes numbers r, r + W, … Rank 0 holds the lock, waits for the chunks of the
others and merges all; the others wait for the file. The chunks don't depend on W, so the file is the one that a single
process makes. Ranks see each other's chunks, and a small file per rank whose time of change is its sign of life, in the
folder of parts, which a file system that all of them see must hold.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from xmodal.atomic import complete_file
from xmodal.errors import ConfigError, FeatureError

PATIENCE = 600.0  # seconds without any sign of life from other ranks
_POLL = 0.25  # seconds between two looks
_BEAT = 1.0  # seconds between two signs of life
_EARLIER = 60.0  # seconds: a failure that is longer past when a rank starts belongs to an earlier run


@dataclass(frozen=True)
class Place:
    """Rank ``rank`` of ``world`` processes that work together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_this_process(cls) -> "Place":
        """From RANK and WORLD_SIZE, which torchrun sets.

        Lightning's own launcher sets no RANK, and starts further processes only after the first has made the features.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        try:
            place = cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        except ValueError:
            place = cls(-1, 0)
        if not 0 <= place.rank < place.world:
            raise ConfigError(
                f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment don't make "
                "sense together; expected 0 <= RANK < WORLD_SIZE. torchrun sets both; without it, unset both."
            )
        return place

    def share(self, numbers: Iterable[int]) -> list[int]:
        """Those of the chunks that this rank makes."""
        return [number for number in numbers if number % self.world == self.rank]

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world}"


def local_device(name: str) -> torch.device:
    """The device for this process: ``auto`` (a GPU where there is one) and ``cuda`` mean the GPU of its LOCAL_RANK.

    Raises:
        ConfigError: a device that isn't there, or more processes than GPUs on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local, count = os.environ.get("LOCAL_RANK", ""), torch.cuda.device_count()
    if name != "cuda" or not local.isdigit() or count <= 1:  # one visible GPU: the launcher gave each process its own
        return _existing_device(name)
    if int(local) >= count:
        raise ConfigError(
            f"LOCAL_RANK={local}, but this machine has {count} GPUs. Start at most {count} processes on it "
            f"(torchrun --nproc_per_node={count}), or set features.device=cpu."
        )
    return torch.device("cuda", int(local))


def _existing_device(name: str) -> torch.device:
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # holds no values: as good as none
    number = 0 if device.index is None else device.index
    if (device.type if device.type != "cuda" else f"cuda:{number}") not in there:
        raise ConfigError(
            f"features.device={name}: this machine has no such device. Choices: auto, {', '.join(there)}."
        )
    return device


class Rank:
    """This process among those that make the same file.

    Args:
        parts: the folder of its chunks.
        place: which of the processes this is.
    """

    def __init__(self, parts: Path, place: Place) -> None:
        self.parts = parts
        self.place = place
        self._started = time.time()
        self._last_beat = 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Show the others that this rank works; a failure inside is shown to them too, and raised."""
        self._tell("working")
        try:
            yield
        except BaseException as error:
            if self.place.world > 1:
                self._tell("failed", str(error) or type(error).__name__)
            raise
        finally:
            if self.place.world == 1:
                self._withdraw()

    def beat(self) -> None:
        """A sign of life, to be given often; raises FeatureError where another rank has failed."""
        now = time.monotonic()
        if now - self._last_beat < _BEAT:
            return
        self._last_beat = now
        try:
            os.utime(self._file(self.place.rank))
        except OSError:
            self._tell("working")
        self._raise_failures()

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Return when ``done()``.

        Raises:
            FeatureError: another rank failed, or none has given a sign of life for ``PATIENCE`` seconds.
        """
        seen, since = self._signs(), time.monotonic()
        while not done():
            self._raise_failures()
            signs = self._signs()
            if signs != seen:
                seen, since = signs, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise FeatureError(
                    f"As {self.place}, this process waited for {what}, but nothing has changed in {self.parts} for "
                    f"{PATIENCE:.0f} s: other ranks have ended, hang, or write to another folder. Look at their "
                    "output, end them all and start again; finished chunks are kept."
                )
            time.sleep(_POLL)

    def leader_is_at_work(self) -> bool:
        """Whether rank 0 of this very job holds the lock."""
        found = self._read(0)
        return found.get("job") == _job() and found.get("state") == "working"

    def _tell(self, state: str, error: str = "") -> None:
        content = {"job": _job(), "state": state, "error": error, "time": time.time()}
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            with complete_file(self._file(self.place.rank)) as file:
                file.write_text(json.dumps(content), encoding="utf-8")
        except OSError:
            return  # a full disk: the others find out by their patience

    def _withdraw(self) -> None:
        try:
            self._file(0).unlink(missing_ok=True)
            self.parts.rmdir()
        except OSError:
            return  # there are chunks in it, to be kept; or it is gone already

    def _raise_failures(self) -> None:
        for rank in range(self.place.world):
            found = self._read(rank) if rank != self.place.rank else {}
            recent = float(found.get("time", 0.0)) > self._started - _EARLIER
            if found.get("state") == "failed" and found.get("job") == _job() and recent:
                raise FeatureError(
                    f"Rank {rank} of {self.place.world} gave up, so rank {self.place.rank} ends too; finished chunks "
                    f"are kept in {self.parts}. What rank {rank} said: {found.get('error')}"
                )

    def _read(self, rank: int) -> dict[str, str]:
        try:
            content = json.loads(self._file(rank).read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            return {}

    def _signs(self) -> dict[str, int]:
        """Files of the others in the folder of parts with their times of change."""
        own = self._file(self.place.rank).name
        try:
            with os.scandir(self.parts) as entries:
                return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name != own}
        except OSError:
            return {}

    def _file(self, rank: int) -> Path:
        return self.parts / f"rank-{rank:04d}.json"


def _job() -> str:
    """Equal for the ranks of one start, and hardly ever for those of two."""
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
    marks = [os.environ.get(name, "") for name in names]
    on_one_machine = os.environ.get("LOCAL_WORLD_SIZE", "") == os.environ.get("WORLD_SIZE", "1")
    return " ".join([*marks, str(os.getppid()) if on_one_machine else ""]).strip()
