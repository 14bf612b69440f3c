"""Whether what an encoder gave is what it promised, and can be stored."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from xmodal.encoders.protocol import Encoder
from xmodal.errors import FeatureError
from xmodal.types import RaggedFeatures

FLOAT16_MAX = 65504.0


def check_sets(sets: list[Tensor], ids: Sequence[Hashable], encoder: Encoder, dtype: str) -> RaggedFeatures:
    """The sets of one batch joined, as ``dtype``, in memory of their own.

    Raises:
        FeatureError: naming items, where there are too few sets, or one has another width, values that are not finite,
            or values that ``dtype`` can't hold.
    """
    name = type(encoder).__name__
    _check_shapes(sets, ids, encoder)
    values = torch.cat(sets).float().numpy()
    offsets = np.concatenate([[0], np.cumsum([len(features) for features in sets])]).astype(np.int64)
    largest = np.maximum(values.max(initial=0.0), -values.min(initial=0.0))  # NaN where there is one
    if not np.isfinite(largest) or (dtype == "float16" and largest > FLOAT16_MAX):
        _raise_range(RaggedFeatures(values, offsets), ids, name)
    return RaggedFeatures(values.astype(dtype, copy=False), offsets)


def _check_shapes(sets: list[Tensor], ids: Sequence[Hashable], encoder: Encoder) -> None:
    name = type(encoder).__name__
    if len(sets) != len(ids):
        raise FeatureError(f"{name} gave {len(sets)} sets for a batch of {len(ids)} items.")
    width = encoder.feature_dim
    for item, features in zip(ids, sets, strict=True):
        if features.ndim != 2 or features.shape[1] != width:
            raise FeatureError(
                f"{name} gave features of shape {tuple(features.shape)} for item {item!r}; expected (n, {width})."
            )


def _raise_range(features: RaggedFeatures, ids: Sequence[Hashable], name: str) -> None:
    largest = [np.abs(features[row]).max(initial=0.0) for row in range(len(features))]
    wrong = [repr(item) for item, value in zip(ids, largest, strict=True) if not np.isfinite(value)]
    if wrong:
        raise FeatureError(
            f"{name} gave NaN or infinite features for {len(wrong)} of the {len(ids)} items of a batch, the first "
            f"being {', '.join(wrong[:5])}. Look at these items and at the encoder's weights; no vector of this batch "
            "was stored."
        )
    value, item = next((value, item) for value, item in zip(largest, ids, strict=True) if value > FLOAT16_MAX)
    raise FeatureError(
        f"{name} gave the feature value {value:.6g} for item {item!r}; float16 ends at {FLOAT16_MAX:.0f}. "
        "Set features.dtype=float32."
    )
