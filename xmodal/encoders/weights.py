"""Where the weights of a frozen network come from, whether they fit, and by which digest they are known."""

import hashlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from xmodal.encoders.published import torch_file
from xmodal.errors import WeightsError

StateDict = dict[str, Tensor]
PRETRAINED = "pretrained"

UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, UnpicklingError, SafetensorError)
_EXAMPLES = 3  # keys named in a message
_PROBED = 8  # values per tensor by which a checkpoint recognises its weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU random numbers start from ``seed``; afterwards the global state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def is_path(weights: str | None) -> bool:
    """Whether ``weights`` names a file or folder (rather than ``pretrained`` or null)."""
    return weights is not None and weights != PRETRAINED


def absent(weights: str | None, key: str) -> list[str]:
    """A sentence where ``weights`` is the path of a file that is not there."""
    if weights is None or not is_path(weights) or Path(weights).expanduser().is_file():
        return []
    return [f"{key}.weights: no file {Path(weights).expanduser()}; give a file, pretrained or null (random weights)."]


def three_ways_on(what: str, why: str, network: str, path: str, key: str) -> WeightsError:
    """The error for weights that can't be had, with what to do next."""
    return WeightsError(
        f"{what} can't be had: {why}. Three ways on:\n"
        f"  1. network: {network}\n"
        f"  2. a path: {key}.weights={path}\n"
        f"  3. none: {key}.weights=null (random weights from a seed, no download)"
    )


def unreachable(url: str, seconds: float = 15.0) -> str | None:
    """Why the host of ``url`` gives no answer within ``seconds``; None where it answers (with an error, too)."""
    fault = [f"{urlparse(url).hostname} gave no answer within {seconds:.0f} s"]

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=seconds).close()
            fault.clear()
        except HTTPError:
            fault.clear()  # the host is there; what it thinks of this file the download itself will tell
        except (OSError, HTTPException) as error:
            fault[0] = f"{urlparse(url).hostname} can't be reached ({getattr(error, 'reason', error)})"

    asking = threading.Thread(target=ask, daemon=True)  # a thread, because looking a name up has no time limit
    asking.start()
    asking.join(seconds)
    return fault[0] if fault else None


@contextmanager
def _stalls_end(seconds: float) -> Iterator[None]:
    """Inside, a connection that delivers nothing for ``seconds`` is an error instead of a wait without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def torchvision_state_dict(choice: WeightsEnum, key: str) -> StateDict:
    """Weights published by torchvision, from torch's cache (``TORCH_HOME``) or downloaded into it.

    Raises:
        WeightsError: not in the cache, and no network; or a damaged file.
    """
    file = torch_file(choice.url)
    folder = file.parent
    fault = None if file.exists() else unreachable(choice.url)
    try:
        if fault is None:
            with _stalls_end(30.0):
                return choice.get_state_dict(progress=True, check_hash=True)
    except UNREADABLE as error:
        fault = first_line(error)
    what = f"The pretrained weights {file.name} ({key}.weights=pretrained)"
    network = f"start once with a network, or put the file into {folder} (TORCH_HOME moves this folder)"
    raise three_ways_on(what, f"not in {folder}, and {fault}", network, f"/path/to/{file.name}", key)


def read_state_dict(path: Path, key: str) -> StateDict:
    """The tensors of a ``.safetensors`` file, or of what ``torch.save(network.state_dict(), path)`` wrote.

    Raises:
        WeightsError: no such file, unreadable, or not a flat dictionary of tensors.
    """
    for fault in absent(str(path), key):
        raise WeightsError(fault)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        expected = "a .safetensors file, or torch.save(network.state_dict(), path)"
        raise WeightsError(f"{key}.weights: can't read {path}: {first_line(error)}; expected {expected}.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a dictionary with {_some(map(str, state))}" if isinstance(state, dict) else type(state).__name__
        raise WeightsError(f"{key}.weights: {path} holds {found}; expected a flat state_dict: names → tensors.")
    return dict(state)


def resolve(weights: str | None, choice: WeightsEnum, key: str) -> StateDict | None:
    """The tensors that ``weights`` stands for: ``pretrained``, a path, or null (None: random weights).

    Raises:
        WeightsError: they can't be had.
    """
    if weights is None:
        return None
    if weights == PRETRAINED:
        return torchvision_state_dict(choice, key)
    return read_state_dict(Path(weights).expanduser(), key)


def load_strictly(network: nn.Module, state: StateDict, source: str) -> None:
    """Copy ``state`` into ``network``: every name present, none left over, every shape equal.

    ``num_batches_tracked`` of batch norms, which changes no output, may be absent.

    Raises:
        WeightsError: naming what is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = {"of wrong shape": shapes}
    if not shapes:  # the network itself says what is missing, since some modules translate names of older files
        result = network.load_state_dict(state, strict=False)
        missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
        kinds = {"missing": missing, "unexpected": result.unexpected_keys}
    faults = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if faults:
        name = type(network).__name__
        raise WeightsError(f"{source} does not fit {name} with {len(expected)} tensors; {'; '.join(faults)}.")


def freeze(network: nn.Module) -> nn.Module:
    """The same network: evaluation mode, no gradients."""
    return network.eval().requires_grad_(False)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and values, independent of order, device and memory layout."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def frozen_state(network: nn.Module, embed: bool) -> dict[str, Any]:
    """What a checkpoint keeps of a network: all tensors where ``embed``, else a few values to recognise it by."""
    state: dict[str, Any] = {"probe": _probe(network)}
    if embed:
        state["weights"] = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return state


def check_probe(network: nn.Module, state: Mapping[str, Any], name: str) -> None:
    """Make sure that a rebuilt network is the one which the checkpoint was trained with.

    Compared with a tolerance, because seeded random numbers differ in the last bit between processors.

    Raises:
        WeightsError: other weights.
    """
    if "probe" not in state:
        return
    found, expected = _probe(network), state["probe"]
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
        raise WeightsError(
            f"The weights of {name} are not those that the checkpoint was trained with ({len(found)} values compared, "
            f"{len(expected)} expected): the published weights or the random numbers of torch {torch.__version__} "
            "have changed. Use the versions named in the checkpoint's config, or train again."
        )


def _probe(network: nn.Module) -> Float[Tensor, "values"]:
    tensors = network.state_dict().values()
    return torch.cat([tensor.detach().reshape(-1)[:_PROBED].cpu().float() for tensor in tensors])


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")


def first_line(error: BaseException) -> str:
    """Kind and first line of a library's error, for use inside a message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
