"""From a torch module to a file in ONNX."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from xmodal.errors import ConfigError

Axes = tuple[int | str, ...]

_ONE_FILE = 3 * 2**29  # bytes of parameters up to which a graph holds them itself: a protobuf ends at 2 GiB


def write_graph(
    module: nn.Module,
    inputs: Sequence[Tensor],
    axes: Mapping[str, Axes],
    outputs: Sequence[str],
    file: Path,
) -> int:
    """Write what a module computes.

    Args:
        inputs: by which it is traced, in the order of its arguments; sizes above 1 where they are to be free.
        axes: of each input by name: a size, or the name of one that is free.
        outputs: their names.

    Returns:
        The version of ONNX's operators.

    Raises:
        ConfigError: it has steps that ONNX can't say; names the module.
    """
    free = tuple({place: name for place, name in enumerate(sizes) if isinstance(name, str)} for sizes in axes.values())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, tuple(inputs), input_names=list(axes), output_names=list(outputs), dynamic_shapes=free,
                dynamo=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            f"{file.stem} can't be exported to ONNX: {_reason(error)}. The same model as safetensors: --safetensors DIR"
        ) from error
    assert program is not None
    parameters = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    program.save(file, external_data=parameters > _ONE_FILE)
    return int(program.model.opset_imports[""])


def _reason(error: BaseException) -> str:
    """What torch.export stumbled over, in one line."""
    cause = error.__cause__ or error
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no details")
    return f"{type(cause).__name__}: {first.rstrip('.:')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch is silent about steps of its own."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
