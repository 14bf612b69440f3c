"""Which data sets are looked at, and which of them have to be there."""

from pathlib import Path

import pytest

from xmodal.config.command_line import compose
from xmodal.config.sources import ConfigSource
from xmodal.doctor.examination import _data


@pytest.mark.parametrize("chosen", ["data=flickr8k", "experiment=vsepp_flickr8k"])
def test_the_one_that_a_run_would_take_has_to_be_there(tmp_path: Path, chosen: str) -> None:
    overrides = [f"paths.data_dir={tmp_path}", chosen]
    place, data_set = _data(compose(overrides), overrides, is_thorough=False)
    assert [line.mark for line in place.findings()] == ["ok"]
    (line,) = data_set.findings()
    assert (line.what, line.mark) == ("data=flickr8k", "missing")


def test_without_a_choice_all_are_looked_at_and_none_has_to_be_there(tmp_path: Path) -> None:
    overrides = [f"paths.data_dir={tmp_path}/none", f"paths.output_dir={tmp_path}/outputs"]
    place, *others = _data(compose(overrides), overrides, is_thorough=False)
    assert [line.mark for line in place.findings()] == ["missing"]  # since it was named
    named = {look.what: look for look in others}
    assert set(named) == {f"data={option}" for option in ConfigSource().groups()["data"]}
    assert [line.mark for line in named["data=scenes"].findings()] == ["ok"]
    assert [line.mark for line in named["data=coco"].findings()] == ["optional"]
