"""Searches of `SearchEngine` beside bare FAISS on the same index, exact and along a graph.

    python benchmarks/search.py
    python benchmarks/search.py --count 100000 --only hnsw --index-folder /tmp/indexes

A million unit vectors, 512 wide, as embeddings lie: around a few thousand centres, in a space of fewer dimensions, with
noise on top. Ours takes vectors of any length, makes sure that they are numbers, normalises them, searches, and ends
with the id of every item that was found; bare FAISS gets vectors of unit length and ends with rows. Ratios are our time
÷ that of bare FAISS, measured in turns in one process. The graph's recall@10 against exact search is printed beside.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import torch
from alternation import Comparison, alternate, describe, seconds

from xmodal.config.command_line import compose
from xmodal.models.build import build_model, with_feature_widths
from xmodal.search.building import QUERIES, RecallMeasure, build_gallery, search_widely, tuned
from xmodal.search.choice import Asked, Choice, choose
from xmodal.search.engine import SearchEngine
from xmodal.search.gallery import NumberedGallery, as_queries, read_gallery
from xmodal.search.items_table import IndexedItems, Item
from xmodal.search.manifest import Manifest, Side

WIDTH = 512
DIMENSIONS = 48  # that the vectors vary in, before the noise
CENTRES = 4000
AT_ONCE = 65536
K = 10
BATCHES = (1, 32, 1000)
PLENTY = 10**12  # bytes: no choice is to be made for lack of memory


@dataclass(frozen=True)
class Space:
    """How vectors lie: the same for those that are searched and for queries."""

    centres: np.ndarray
    directions: np.ndarray

    @classmethod
    def drawn(cls) -> "Space":
        random = np.random.default_rng(0)
        return cls(
            random.normal(size=(CENTRES, DIMENSIONS)).astype(np.float32),
            random.normal(size=(DIMENSIONS, WIDTH)).astype(np.float32) / np.sqrt(WIDTH, dtype=np.float32),
        )

    def vectors(self, count: int, seed: int) -> np.ndarray:
        """Unit vectors (count, 512)."""
        random = np.random.default_rng(seed)
        found = np.empty((count, WIDTH), np.float32)
        for start in range(0, count, AT_ONCE):
            size = min(AT_ONCE, count - start)
            place = self.centres[random.integers(CENTRES, size=size)]
            place = place + 0.7 * random.standard_normal((size, DIMENSIONS), dtype=np.float32)
            noise = 0.02 * random.standard_normal((size, WIDTH), dtype=np.float32)
            found[start : start + size] = as_queries(place @ self.directions + noise, WIDTH, "cosine")
        return found


def made_gallery(vectors: np.ndarray, kind: str, settings: dict[str, int], folder: Path | None) -> NumberedGallery:
    """The index, from the folder where it is there already."""
    choice = choose(len(vectors), WIDTH, PLENTY, Asked(kind, settings))
    path = None if folder is None else folder / f"{kind}-{len(vectors)}.faiss"
    if path is not None and path.exists():
        return read_gallery(path, "cosine")
    made: list[NumberedGallery] = []
    taken = seconds(lambda: made.append(build_gallery(vectors, choice, "cosine", PLENTY, Path("unused"))), CPU)
    print(f"{kind}: built in {taken:.0f} s ({choice})", flush=True)
    if path is not None:
        made[0].write(path)
    return made[0]


CPU = torch.device("cpu")


def engine_of(gallery: NumberedGallery, kind: str) -> SearchEngine:
    """A search engine over a gallery; its model encodes nothing here."""
    count = len(gallery)
    items = IndexedItems.of([Item(f"image {n}", f"{n}.jpg", n, (), (), "test") for n in range(count)])
    side = Side(count, count, kind, {})
    manifest = Manifest("", "random", ("test",), "cosine", WIDTH, "", "", "", "/", {"images": side}, 0.0, "", "")
    model = build_model(with_feature_widths(compose([f"embedding_dim={WIDTH}"]), 8, 8))
    return SearchEngine(Path("/"), manifest, model, items, {"images": gallery}, {}, Path("/"))


def tune(
    gallery: NumberedGallery, vectors: np.ndarray, queries: np.ndarray, kind: str, settings: dict[str, int]
) -> str:
    """Search as widely as `xmodal index` would; the recall that gives."""
    choice: Choice = choose(len(vectors), WIDTH, PLENTY, Asked(kind, settings))
    if "ef_search" in settings:  # the index may come from a file
        search_widely(gallery.index, settings["ef_search"])
    choice, recall = tuned(gallery, choice, RecallMeasure(vectors, queries, "cosine"))
    return f"{kind}: recall@10 {recall.percent:.2f} % over {recall.queries} queries ({choice})"


def compare(
    engine: SearchEngine, gallery: NumberedGallery, queries: np.ndarray, batch: int, repeats: int, least: float
) -> Comparison:
    """Both in turns, in queries per second."""
    bare = faiss.downcast_index(gallery.index.index)
    unnormalised = queries * 3.0
    starts = range(0, len(queries) - batch + 1, batch)

    def ours(start: int) -> None:
        found = engine.search_vectors(unnormalised[start : start + batch], K, target="images")
        ids = [item for hits in found for item in hits.ids]
        assert len(ids) == batch * K

    def theirs(start: int) -> None:
        bare.search(queries[start : start + batch], K)

    def rate(work: Callable[[int], None]) -> float:
        taken, place = 0.0, 0
        while taken < least:
            taken += seconds(partial(work, starts[place % len(starts)]), CPU)
            place += 1
        return batch * place / taken

    for work in (ours, theirs):
        work(0)
    return alternate(partial(rate, ours), partial(rate, theirs), repeats)


def line(name: str, comparison: Comparison) -> str:
    """Medians of both times per query, and of the ratio, with its spread."""
    ours, bare = (median(1 / rate for rate in rates) for rates in (comparison.ours, comparison.bare))
    ratios = [1 / ratio for ratio in comparison.ratios]
    return (
        f"{name}: xmodal {ours:.6f} s, faiss {bare:.6f} s, ratio "
        f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} alternations)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--only", choices=("flat", "hnsw"), help="one of the two")
    parser.add_argument("--repeats", type=int, default=5, help="alternations")
    parser.add_argument("--seconds", type=float, default=0.5, help="least of a measurement")
    parser.add_argument("--neighbours", type=int, default=16, help="of the graph")
    parser.add_argument("--ef-construction", type=int, default=100, help="of the graph")
    parser.add_argument("--ef-search", type=int, help="candidates per query, instead of as many as recall needs")
    parser.add_argument("--threads", type=int, default=2, help="of FAISS")
    parser.add_argument("--index-folder", type=Path, help="keep the indexes here, for the next time")
    parser.add_argument("--device", default="cpu", choices=("cpu",), help="FAISS searches on processors here")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    print(describe(CPU), flush=True)
    space = Space.drawn()
    vectors, queries = space.vectors(options.count, 1), space.vectors(QUERIES, 2)
    graph = {"neighbours": options.neighbours, "ef_construction": options.ef_construction}
    graph |= {} if options.ef_search is None else {"ef_search": options.ef_search}
    for kind, settings in (("flat", {}), ("hnsw", graph)):
        if options.only in (None, kind):
            gallery = made_gallery(vectors, kind, settings, options.index_folder)
            print(tune(gallery, vectors, queries, kind, settings), flush=True)
            engine = engine_of(gallery, kind)
            for batch in BATCHES:
                comparison = compare(engine, gallery, queries, batch, options.repeats, options.seconds)
                print(line(f"{kind}, {options.count:,} × {WIDTH}, batches of {batch:,}", comparison), flush=True)


if __name__ == "__main__":
    main()
