"""`xmodal demo` as it is typed: what is wrong is said before anything loads, Ctrl-C ends it."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from xmodal.cli import main


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["demo", *words]) == 2
    return capsys.readouterr().err


def test_what_is_wrong_is_said_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "a", "b", "c", "--port=70000", "--sharing")
    assert "found 3" in told
    assert "--port must be between 0 and 65535, found 70000" in told
    assert "--sharing" in told
    assert "--root" in said(capsys, "a", "b", "--root", "x")


@pytest.mark.parametrize("memory", ["nan", "-1", "0", "inf"])
def test_memory_that_is_no_amount(capsys: pytest.CaptureFixture[str], memory: str) -> None:
    assert f"--memory-gb must be a number above 0, found {float(memory)}" in said(capsys, "a", f"--memory-gb={memory}")


def test_devices_that_are_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "a", "--device=foo"])
    assert "invalid choice: 'foo'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert "--device cuda: torch sees no GPU here" in said(capsys, "a", "--port=0", "--device=cuda")


def test_without_gradio(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'xmodal[demo]'" in said(capsys, "a")


def test_without_an_index(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    told = said(capsys, str(tmp_path / "nowhere"), "--port=0")
    assert "Build an index first: xmodal index" in told


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], site: str, folder: Path) -> None:
    port = site.rstrip("/").rpartition(":")[2]
    assert f"port {port} (" in said(capsys, str(folder), "--port", port)


@pytest.fixture
def served(start: Callable[..., Any], folder: Path, tmp_path: Path) -> Iterator[tuple[Any, int]]:
    """The program, once it serves, and its port."""
    words = ["-m", "xmodal.cli", "demo", str(folder), "--port=0", "--device=cpu"]
    program = start(words, tmp_path)
    deadline, found = time.monotonic() + 120, None
    while found is None and program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        found = re.search(r"The page is at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)", program.printed()[0])
    assert found is not None, program.printed()
    yield program, int(found[1])
    if program.poll() is None:
        program.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_ends_it(served: tuple[Any, int]) -> None:
    program, port = served
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    page = connection.getresponse().read()
    assert b"gradio_config" in page
    connection.request("GET", "/gradio_api/heartbeat/abc")  # a visitor who stays
    connection.getresponse()
    program.send_signal(signal.SIGINT)
    done = program.finish(60)
    connection.close()
    assert done.returncode == 130
    assert "Interrupted. The page is closed." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_leaves_nothing_that_was_sent(folder: Path, tmp_path: Path) -> None:
    """In an interpreter of its own, for Python asks once where temporary files go."""
    words = [sys.executable, "-m", "xmodal.cli", "demo", str(folder), "--port=0", "--device=cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, cwd=tmp_path, **pipes) as program:
        assert "The page is at" in program.stdout.readline()
        assert len(list(tmp_path.glob("xmodal-demo-*"))) == 1
        program.send_signal(signal.SIGTERM)
        _, told = program.communicate(timeout=60)
    assert program.returncode == 143, told
    assert list(tmp_path.glob("xmodal-demo-*")) == []
    assert "Traceback" not in told
