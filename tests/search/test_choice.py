"""Which index is chosen for how many vectors in how much memory, and what of the user's words it keeps."""

import pytest

from xmodal.errors import ConfigError
from xmodal.retrieval.index import FlatIndex, HNSWIndex, IVFPQIndex
from xmodal.search.choice import Asked, choose

GB = 10**9


@pytest.mark.parametrize(
    ("count", "width", "memory", "words", "expected"),
    [
        (1, 512, 8 * GB, [], ("flat", False, False)),
        (1_000_000, 512, 8 * GB, [], ("flat", False, False)),
        (1_000_001, 512, 8 * GB, [], ("hnsw", False, True)),
        (1_000_000, 512, 2 * GB, [], ("ivf_pq", False, True)),  # 2.06 GB exact, more along a graph
        (10_000_000, 512, 8 * GB, [], ("ivf_pq", False, True)),
        (100_000_000, 512, 2 * GB, [], ("ivf_pq", True, True)),
        (10, 512, 1, [], ("ivf_pq", True, True)),
        (1_000_000, 512, 1, ["index=flat"], ("flat", False, False)),
        (1_000_000, 512, 8 * GB, ["index=hnsw"], ("hnsw", False, True)),
        (1000, 512, GB, ["index=hnsw", "index.ef_search=16"], ("hnsw", False, False)),
        (1000, 512, GB, ["index=ivf_pq", "index.probes=3"], ("ivf_pq", False, False)),
        (1000, 512, GB, ["index=ivf_pq", "index.lists=3"], ("ivf_pq", False, True)),
    ],
)
def test_the_choice(count: int, width: int, memory: int, words: list[str], expected: tuple[str, bool, bool]) -> None:
    found = choose(count, width, memory, Asked.parse(words))
    assert (found.kind, found.on_disk, found.tunes) == expected
    for word in words[1:]:
        name, value = word.removeprefix("index.").split("=")
        assert found.settings[name] == int(value)
    assert type(found.index()) is {"flat": FlatIndex, "hnsw": HNSWIndex, "ivf_pq": IVFPQIndex}[found.kind]


@pytest.mark.parametrize("memory", [40 * GB, 2 * GB, GB])
def test_codes_are_as_fine_as_memory_allows(memory: int) -> None:
    found = choose(10_000_000, 512, memory, Asked.parse(["index=ivf_pq"]))
    assert 512 % found.settings["codes"] == 0
    assert found.settings["codes"] == {40 * GB: 256, 2 * GB: 128, GB: 64}[memory]
    assert (found.size <= memory) == (not found.on_disk)


def test_on_disk_codes_are_the_finest_even_where_coarse_ones_alone_would_fit() -> None:
    found = choose(35_000, 512, 3_000_000, Asked.parse(["index=ivf_pq"]))  # codes of 64 fit, clusters beside them don't
    assert found.on_disk
    assert found.settings["codes"] == 256


@pytest.mark.parametrize(("count", "width"), [(1, 1), (1, 7), (38, 13), (39, 16), (1000, 96), (10**6, 17)])
def test_settings_that_are_printed_are_those_of_the_index(count: int, width: int) -> None:
    words = ["index=ivf_pq", "index.lists=500", "index.codes=7", "index.probes=600"]
    for asked in (Asked.parse(words), Asked.parse(words[:1])):
        found = choose(count, width, GB, asked)
        assert width % found.settings["codes"] == 0
        assert 1 <= found.settings["probes"] <= found.settings["lists"] <= max(1, count // 39)
        assert 2 ** found.settings["bits"] <= max(2, count)


def test_the_choice_is_said_in_words() -> None:
    said = str(choose(2_000_000, 100, 8 * GB, Asked()))
    assert said == (
        "hnsw neighbours=32 ef_construction=200 ef_search=32, about 1.36 GB (more than a million vectors, which fit "
        "into memory)"
    )
    assert "more than the budget of 1 MB" in str(choose(10_000, 100, 10**6, Asked.parse(["index=flat"])))


def test_a_typed_setting_that_can_not_be_is_said_with_the_reason() -> None:
    words = ["index=ivf_pq", "index.lists=100000", "index.codes=7", "index.probes=9", "index.bits=8"]
    said = str(choose(80, 16, GB, Asked.parse(words)))
    assert said.startswith(
        "ivf_pq lists=2 (100000 asked for; 80 vectors are enough for 2 clusters, 39 for each) "
        "probes=2 (9 asked for; there are only 2 clusters) codes=4 (7 asked for; it must divide the width of 16) "
        "bits=6 (8 asked for; 80 vectors are too few for more), about "
    )
    kept = choose(80, 16, GB, Asked.parse(["index=ivf_pq", "index.lists=2", "index.codes=4", "index.bits=6"]))
    assert kept.notes == choose(80, 16, GB, Asked.parse(["index=ivf_pq"])).notes == {}


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["index=hnws"], "there is no index 'hnws'. Did you mean 'hnsw'"),
        (["index=hnsw", "index.ef_serch=3"], "Did you mean 'index.ef_search'"),
        (["index=hnsw", "index.ef_search=many"], "expected a whole number, found 'many'"),
        (["index=hnsw", "index.ef_search=0"], "index.ef_search must be at least 1, found 0"),
        (["index=ivf_pq", "index.bits=13"], "index.bits must be at most 12, found 13"),
        (["index=flat", "index.ef_search=3"], "It belongs to index=hnsw"),
        (["index=hnsw", "index._target_=x"], "is not a setting"),
        (["index.ef_search=3"], "say which index it is a setting of"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_embedded(words: list[str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Asked.parse(words)
