"""Extraction in processes of their own: killed, side by side, without space, and in ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from xmodal.features.store import FeatureStore


def _assert_same_datasets(one: Path, other: Path) -> None:
    with h5py.File(one, "r") as left, h5py.File(other, "r") as right:
        assert set(left) == set(right) == {"values", "offsets", "ids"}
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert np.array_equal(left[name][:], right[name][:])


SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from xmodal.errors import FeatureError
from xmodal.features import hdf5_writing, shards
from xmodal.features.extract import extract
from xmodal.features.store import FeatureStore

class SlowEncoder:
    modality, batch_size, feature_dim = "text", 3, 500
    def __init__(self):
        self.weight = torch.randn(26, 500, generator=torch.Generator().manual_seed(0))
    def fingerprint(self):
        return {"encoder": "SlowEncoder"}
    def check(self): return []
    def prepare(self, captions, cache_dir): pass
    def to(self, device): pass
    def state(self): return {}
    def restore(self, state): pass
    def preprocess(self, item):
        return [ord(c) % 26 for c in item]
    def encode(self, batch):
        time.sleep(float(os.environ["PAUSE"]))
        print(len(batch), flush=True)
        if os.environ.get("BREAKS") == os.environ.get("RANK", "0"):
            raise FeatureError("the sky fell")
        return [self.weight[torch.tensor(letters)] for letters in batch]

if __name__ == "__main__":
    if "LIMIT" in os.environ:
        import resource
        limit = int(os.environ["LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "PATIENCE" in os.environ:
        shards.PATIENCE = float(os.environ["PATIENCE"])
    if "MERGE_PAUSE" in os.environ:  # between the writing of a final file and its renaming
        at_once = hdf5_writing.force_to_disk
        def after_a_while(path):
            if path.match("slow*.tmp"):
                time.sleep(float(os.environ["MERGE_PAUSE"]))
            at_once(path)
        hdf5_writing.force_to_disk = after_a_while
    texts = [f"caption number {i} of many" for i in range(100)]
    try:
        extract(SlowEncoder(), texts, list(range(100)), store=FeatureStore(Path(sys.argv[1])), data_name="toy",
                encoder_name="slow", data_fingerprint="d", chunk_size=10)
    except FeatureError as error:
        sys.exit(f"FeatureError: {error}")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "slow_extraction.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def slow_extraction(start: Callable[..., Any], script: Path) -> Callable[..., Any]:
    """Start the script; ``pause`` is how long a batch takes, in seconds."""
    folder = script.parent
    return lambda root, pause, **changes: start([str(script), str(root)], folder, PAUSE=str(pause), **changes)


@pytest.fixture(scope="module")
def undisturbed(slow_extraction: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing stopped."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert slow_extraction(root, 0).finish().returncode == 0
    [path] = root.glob("toy/*.h5")
    return path


def _wait_for(condition: Callable[[], bool], process: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.finish()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_extraction_continues_and_ends_like_one_that_was_not(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path
) -> None:
    process = slow_extraction(tmp_path, 0.05)
    _wait_for(lambda: len(list(tmp_path.rglob("chunk-*.h5"))) >= 3, process)
    process.send_signal(signal.SIGKILL)
    assert process.finish(10).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("toy/*.h5"))  # nothing that a later run could take for complete
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("chunk-*.h5")}
    process = slow_extraction(tmp_path, 0.03)
    _wait_for(lambda: len(list(tmp_path.rglob("chunk-*.h5"))) > len(finished) + 1, process)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert process.finish().returncode == 0
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)
    assert not list(tmp_path.glob("toy/*.parts"))


@pytest.mark.slow
def test_two_processes_make_the_file_once(slow_extraction: Callable[..., Any], tmp_path: Path) -> None:
    processes = [slow_extraction(tmp_path, 0.02) for _ in range(2)]
    assert [process.finish().returncode for process in processes] == [0, 0]
    [path] = tmp_path.glob("toy/*.h5")
    assert len(FeatureStore(tmp_path).read(path)) == 100


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "kept"), [(100_000, 0), (600_000, 12)])
def test_a_full_disk_keeps_what_is_finished_and_says_how_to_go_on(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path, limit: int, kept: int
) -> None:
    """The limit on file sizes stops the first chunk, or the final file, in the middle of a write."""
    done = slow_extraction(tmp_path, 0, LIMIT=str(limit)).finish()
    assert done.returncode == 1
    assert "FeatureError: No space left for features" in done.stderr
    assert f"{kept} of 12 chunks are finished" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("toy/*.h5"))
    assert not list(tmp_path.rglob("*.tmp"))
    assert slow_extraction(tmp_path, 0).finish().returncode == 0
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)


@pytest.mark.slow
def test_a_kill_while_chunks_are_joined_costs_no_encoding(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path
) -> None:
    process = slow_extraction(tmp_path, 0, MERGE_PAUSE="60")
    _wait_for(lambda: bool(list(tmp_path.rglob("slow*.tmp"))), process)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.finish(10).returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("toy/*.h5"))
    done = slow_extraction(tmp_path, 0).finish()
    assert (done.returncode, _encoded(done)) == (0, 0)
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)
    assert not list(tmp_path.glob("toy/*.parts"))


def _encoded(done: subprocess.CompletedProcess[str]) -> int:
    """How many items a process has encoded."""
    return sum(int(line) for line in done.stdout.split())


def _start_ranks(slow_extraction: Callable[..., Any], root: Path, world: int = 2, **changes: str) -> list[Any]:
    variables = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "PATIENCE": "120"} | changes
    return [slow_extraction(root, 0.02, RANK=str(rank), LOCAL_RANK=str(rank), **variables) for rank in range(world)]


@pytest.mark.slow
def test_ranks_share_the_chunks_and_make_the_file_of_one(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path
) -> None:
    done = [process.finish() for process in _start_ranks(slow_extraction, tmp_path)]
    assert [one.returncode for one in done] == [0, 0], done
    assert [_encoded(one) for one in done] == [54, 46]  # twelve chunks of nine; the last has one
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)
    assert not list(tmp_path.glob("toy/*.parts"))
    child = slow_extraction(tmp_path, 0, LOCAL_RANK="1", NODE_RANK="0", WORLD_SIZE="2").finish()  # of Lightning
    assert (child.returncode, _encoded(child)) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_fails_ends_the_others_and_does_not_trouble_the_next_start(
    slow_extraction: Callable[..., Any], undisturbed: Path, tmp_path: Path, broken: int
) -> None:
    done = [process.finish(60) for process in _start_ranks(slow_extraction, tmp_path, BREAKS=str(broken))]
    assert [one.returncode for one in done] == [1, 1]
    assert "FeatureError: the sky fell" in done[broken].stderr
    assert f"Rank {broken} of 2 gave up, so rank {1 - broken} ends too" in done[1 - broken].stderr
    assert f"What rank {broken} said: the sky fell" in done[1 - broken].stderr
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}  # the next start of the same launcher
    done = [process.finish() for process in _start_ranks(slow_extraction, tmp_path, **again)]
    assert [one.returncode for one in done] == [0, 0], done
    [path] = tmp_path.glob("toy/*.h5")
    _assert_same_datasets(undisturbed, path)


@pytest.mark.slow
def test_a_rank_that_vanishes_is_not_waited_for_for_ever(slow_extraction: Callable[..., Any], tmp_path: Path) -> None:
    first, second = _start_ranks(slow_extraction, tmp_path, PATIENCE="2")
    _wait_for(lambda: bool(list(tmp_path.rglob("chunk-000001.h5"))), second)
    second.send_signal(signal.SIGKILL)
    assert second.finish(10).returncode == -signal.SIGKILL
    done = first.finish(60)
    assert done.returncode == 1
    assert "As rank 0 of 2, this process waited for the chunks of other ranks, but nothing has changed" in done.stderr
    [alone] = [slow_extraction(tmp_path, 0).finish()]  # what was finished counts for any number of processes
    assert alone.returncode == 0
    assert _encoded(alone) < 46


def test_a_bar_with_a_rate_is_drawn_on_a_terminal(script: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    reader, writer = pty.openpty()
    variables = {**os.environ, "PAUSE": "0.01", "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "f")], env=variables, stderr=writer)
    os.close(writer)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 4096)
        except OSError:  # the other end was closed
            break
    os.close(reader)
    assert process.wait(300) == 0
    assert b"100/100" in shown
    assert b"/s" in shown
