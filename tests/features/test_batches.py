import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal.features.batches import Plan, cut_into_batches, merging_keys

KEYS = st.lists(st.sampled_from("abcdefgh"), max_size=30)


@given(keys=KEYS, batch=st.integers(1, 5), chunk=st.integers(1, 12))
def test_spans_are_whole_batches_of_distinct_items_in_order_of_appearance(
    keys: list[str], batch: int, chunk: int
) -> None:
    plan = Plan.of(keys, batch, chunk)
    distinct = list(dict.fromkeys(keys))
    assert [keys[row] for row in plan.first] == distinct
    assert [distinct[code] for code in plan.codes] == keys
    assert plan.counts.tolist() == [keys.count(key) for key in distinct]
    assert [row for start, end in plan.spans for row in range(start, end)] == list(range(len(distinct)))
    assert all((end - start) % batch == 0 for start, end in plan.spans[:-1])
    assert all(end - start <= max(batch, chunk) for start, end in plan.spans)
    assert sum(plan.items_of(number) for number in range(len(plan.spans))) == len(keys)


def test_the_digest_tells_plans_apart() -> None:
    plans = [
        Plan.of("abc", 2, 4),
        Plan.of("aba", 2, 4),
        Plan.of("abc", 4, 4),
        Plan.of("abc", 2, 6),
        Plan.of("ab", 2, 4),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert Plan.of("xyz", 2, 5).digest == plans[0].digest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text("ab", max_size=5), max_size=20), batch=st.integers(1, 5))
def test_like_sizes_come_together_and_equal_sizes_stay_in_order(letter_encoder, texts: list[str], batch: int) -> None:
    class Sized(letter_encoder):
        def sizes(self, items: list[str]) -> list[int]:
            return [len(item) for item in items]

    plain = cut_into_batches(letter_encoder(batch), texts)
    assert np.array_equal(np.concatenate([*plain, np.zeros(0, int)]), np.arange(len(texts)))
    found = cut_into_batches(Sized(batch), texts)
    assert [row for rows in found for row in rows] == sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
    assert all(len(rows) == batch for rows in found[:-1])


@pytest.mark.parametrize(("modality", "expected"), [("text", ["a", "a"]), ("image", [0, 1])])
def test_captions_speak_for_themselves_and_photos_do_not(modality: str, expected: list) -> None:
    assert list(merging_keys(["a", "a"], modality, None)) == expected
    assert merging_keys(["a", "b"], modality, ["k", "k"]) == ["k", "k"]
