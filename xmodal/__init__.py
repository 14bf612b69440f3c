"""xmodal: experiments in cross-modal (image↔text) retrieval with PyTorch Lightning and Hydra."""

from importlib.metadata import version

__version__ = version("xmodal")
