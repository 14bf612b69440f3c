"""The setting `trainable_layers`: its range, and what the check of a config makes of it."""

import pytest

from xmodal.config.annotations import signature
from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.faster_rcnn import FasterRCNNEncoder
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.encoders.protocol import Encoder, FineTuned
from xmodal.encoders.vgg import VGGEncoder
from xmodal.errors import ConfigError

MOST = [
    (VGGEncoder, {}, 14),
    (VGGEncoder, {"depth": 19}, 17),
    (FasterRCNNEncoder, {}, 2),
    (FasterRCNNEncoder, {"version": 2}, 1),
    (BertEncoder, {"num_layers": 3}, 3),
    (FastTextEncoder, {}, 1),
]


@pytest.mark.parametrize(("made", "options", "most"), MOST)
def test_range(made: type[Encoder], options: dict, most: int):
    for value in (0, 1, most, "all"):
        assert isinstance(made(**options, trainable_layers=value), FineTuned)
    for value in (-1, most + 1):
        pattern = rf"_encoder\.trainable_layers must be a whole number from 0 to {most}, or all; found {value}\."
        with pytest.raises(ConfigError, match=pattern):
            made(**options, trainable_layers=value)


@pytest.mark.parametrize("made", dict.fromkeys(row[0] for row in MOST))
def test_config_admits_whole_numbers_and_all(made: type):
    found = signature(f"{made.__module__}.{made.__qualname__}")
    assert found is not None
    accepted = found.parameters["trainable_layers"]
    assert [accepted.admits(value) for value in (0, 3, "all", "some", 1.5, None, True)] == [True] * 3 + [False] * 4
    assert accepted.describe() == "one of all or a whole number"
