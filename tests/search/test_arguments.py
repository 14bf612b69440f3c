"""What can't be searched with is told of in a sentence, each with what to pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.errors import ConfigError
from xmodal.search.arguments import bytes_of, check_list, check_whole, device_of
from xmodal.search.engine import SearchEngine


@pytest.mark.parametrize("k", ["3", 2.5, 3.0, None, [3]])
def test_a_count_is_a_whole_number(k: Any) -> None:
    with pytest.raises(ConfigError, match="k must be a whole number, found"):
        check_whole(k)
    check_whole(np.int64(3))


def test_one_query_is_no_list_of_them() -> None:
    with pytest.raises(ConfigError, match=r"texts must be a list, found 'two words' alone\. Pass \['two words'\]"):
        check_list("two words", "texts")
    for one in ("a.jpg", Path("a.jpg"), Image.new("RGB", (2, 2))):
        with pytest.raises(ConfigError, match="images must be a list"):
            check_list(one, "images")
    check_list(("a.jpg",), "images")


def test_a_sentence_alone_is_not_taken_as_letters(engine: SearchEngine) -> None:
    with pytest.raises(ConfigError, match=r"Pass \['two words'\]"):
        engine.search_text("two words", 2)
    with pytest.raises(ConfigError, match=r"Pass \['a\.jpg'\]"):
        engine.search_image("a.jpg", 2)


def test_devices_and_memory() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type in ("cpu", "cuda")
    for name in ("foo", "cpu:x", "", "meta"):
        with pytest.raises(ConfigError, match=r"device must be auto, cpu, cuda or cuda:N, found"):
            device_of(name)
    with pytest.raises(ConfigError, match=r"device 'cuda:99': torch sees .* GPU here"):
        device_of("cuda:99")
    assert bytes_of(0.5) == 500_000_000
    assert bytes_of(None) > 100_000_000
    for amount in (float("nan"), -1, 0, float("inf")):
        with pytest.raises(ConfigError, match="memory_gb must be a number above 0"):
            bytes_of(amount)


def test_opening_checks_them(whole: Path) -> None:
    with pytest.raises(ConfigError, match="found 'foo'"):
        SearchEngine.open(whole, device="foo")
    with pytest.raises(ConfigError, match="found nan"):
        SearchEngine.open(whole, memory_gb=float("nan"))
