"""A look that breaks off."""

from collections.abc import Iterator

from xmodal.doctor.finding import Finding, Look


def breaking() -> Iterator[Finding]:
    yield Finding("first", "ok", "there")
    raise LookupError("the shelf\nis empty " + "x" * 1000)


def test_an_unexpected_error_is_a_line_after_those_before_it() -> None:
    first, second = Look("section", "the shelf", breaking).findings()
    assert first == Finding("first", "ok", "there")
    assert (second.what, second.mark) == ("the shelf", "fault")
    assert second.found.startswith("LookupError: the shelf is empty")
    assert len(second.found) <= 300
    assert "xmodal doctor --json" in second.advice
    assert second.is_failing
    assert not first.is_failing
