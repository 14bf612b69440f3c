"""Seconds of `evaluate_retrieval` beside other ways to the same ranks, and beside the bare matrix product.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --sizes 1000 --repeats 9 --no-full
    python benchmarks/evaluation.py --sizes --full-repeats 3

Random unit vectors, five captions an image. The other ways: an argsort per query, as most published code has it (in
float64, and in xmodal's float32); the whole matrix of scores and an argsort along both of its axes; and nothing but the
product, whose scores are dropped. Every ratio is the other's time ÷ xmodal's, both measured in turns. Before a line is
printed, recall and median rank of the other way are compared with xmodal's. The last lines are of the size of
Flickr30k: memory and time there, in a process of its own.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from alternation import Comparison, alternate, choose_device, describe, seconds
from threadpoolctl import threadpool_limits
from torch import Tensor

from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.uncertainty import bootstrap_intervals

CAPTIONS_PER_IMAGE = 5
TILE = (512, 2560)  # images and captions of a product: the same as evaluate_retrieval's
FULL_WIDTH = 256
RESAMPLES = 1000
AT_LEAST_SECONDS = 0.5  # of a measurement: a single short call tells more of the other way's threads going to sleep
MIB = 2**20
RESET_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

Ranks = tuple[np.ndarray, np.ndarray]  # of the best match of each image, and of each caption
Way = Callable[["Pairs"], RetrievalResult | Ranks | None]


@dataclass(frozen=True)
class Pairs:
    """Random unit vectors; caption c belongs to image c // 5."""

    image: Tensor
    text: Tensor

    @classmethod
    def random(cls, images: int, width: int, device: torch.device) -> "Pairs":
        generator = torch.Generator().manual_seed(0)
        sides = (torch.randn(count, width, generator=generator) for count in (images, images * CAPTIONS_PER_IMAGE))
        return cls(*(side.div_(torch.linalg.vector_norm(side, dim=1, keepdim=True)).to(device) for side in sides))

    def for_numpy(self, dtype: torch.dtype) -> "Pairs":
        """The same vectors in main memory."""
        return Pairs(self.image.to("cpu", dtype), self.text.to("cpu", dtype))

    def first(self, images: int) -> "Pairs":
        """A small part, for warming up."""
        return Pairs(self.image[:images], self.text[: images * CAPTIONS_PER_IMAGE])

    @property
    def name(self) -> str:
        return f"{len(self.image):,} × {len(self.text):,}"


def evaluate(pairs: Pairs) -> RetrievalResult:
    """xmodal's way, all metrics included."""
    ids = np.arange(len(pairs.image))
    return evaluate_retrieval(pairs.image, pairs.text, ids, np.repeat(ids, CAPTIONS_PER_IMAGE))


def per_query_loop(pairs: Pairs) -> Ranks:
    """An argsort per query, in the form that the code of VSE++ (Faghri et al., BMVC 2018) spread.

    In NumPy, where that code fills arrays of float64 with what the model gives.
    """
    images, captions = pairs.image.numpy(), pairs.text.numpy()
    i2t, t2i = np.empty(len(images), np.int64), np.empty(len(captions), np.int64)
    for image in range(len(images)):
        order = np.argsort(np.dot(captions, images[image]))[::-1]
        own = range(CAPTIONS_PER_IMAGE * image, CAPTIONS_PER_IMAGE * (image + 1))
        i2t[image] = 1 + min(np.where(order == caption)[0][0] for caption in own)
    for image in range(len(images)):
        first = CAPTIONS_PER_IMAGE * image
        scores = np.dot(captions[first : first + CAPTIONS_PER_IMAGE], images.T)
        for caption, row in enumerate(scores, start=first):
            t2i[caption] = 1 + np.where(np.argsort(row)[::-1] == image)[0][0]
    return i2t, t2i


def evaluate_by_class(pairs: Pairs) -> RetrievalResult:
    """Ten classes: four directions, every row sorted."""
    ids = np.arange(len(pairs.image))
    return evaluate_retrieval(pairs.image, pairs.text, ids, np.repeat(ids, CAPTIONS_PER_IMAGE), image_labels=ids % 10)


def full_argsort(pairs: Pairs) -> Ranks:
    """The whole matrix of scores, sorted along both axes."""
    scores = pairs.image @ pairs.text.T
    captions = torch.arange(len(pairs.text), device=scores.device)
    i2t = places(scores).gather(1, captions.view(-1, CAPTIONS_PER_IMAGE)).amin(dim=1)
    t2i = places(scores.T).gather(1, (captions // CAPTIONS_PER_IMAGE)[:, None]).squeeze(1)
    return 1 + i2t.cpu().numpy(), 1 + t2i.cpu().numpy()


def places(scores: Tensor) -> Tensor:
    """Where each item of the gallery stands, counted from 0; a row is a query."""
    order = scores.argsort(dim=1, descending=True)
    counted = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, counted)


def product_at_once(pairs: Pairs) -> None:
    """The whole matrix of scores, and nothing else."""
    torch.mm(pairs.image, pairs.text.T)


def product_in_tiles(pairs: Pairs) -> None:
    """Every score, tile by tile into the same memory."""
    tile = torch.empty(TILE, device=pairs.image.device)
    for images in pairs.image.split(TILE[0]):
        for captions in pairs.text.split(TILE[1]):
            torch.mm(images, captions.T, out=tile[: len(images), : len(captions)])


PRODUCTS: dict[str, Way] = {"at once": product_at_once, "in tiles": product_in_tiles}


def compare(pairs: Pairs, way: Way, repeats: int, others_pairs: Pairs | None = None) -> Comparison:
    """Both in turns, in evaluations per second; the ranks are compared. The other way may be given its own vectors."""
    given = {evaluate: pairs, way: others_pairs or pairs}
    found: dict[Way, RetrievalResult | Ranks | None] = {}

    def rate(work: Way) -> float:
        def measured() -> None:
            found[work] = work(given[work])

        taken = [seconds(measured, pairs.image.device)]
        while sum(taken) < AT_LEAST_SECONDS:
            taken.append(seconds(measured, pairs.image.device))
        return len(taken) / sum(taken)

    for work in (evaluate, way):  # the first call chooses kernels and starts threads
        work(given[work].first(64))
    comparison = alternate(partial(rate, evaluate), partial(rate, way), repeats)
    if found[way] is not None:
        require_agreement(found[evaluate], found[way])
    return comparison


def require_agreement(ours: RetrievalResult, other: Ranks) -> None:
    """Recall and median rank are the same, but for near-ties that two kernels round apart: one query, and one rank."""
    for way, ranks in zip(("i2t", "t2i"), other, strict=True):
        figures = {f"{way}_R{k}": float(100 * np.mean(ranks <= k)) for k in (1, 5, 10)}
        allowed = dict.fromkeys(figures, 100.5 / len(ranks)) | {f"{way}_medR": 1.0}
        for name, figure in (figures | {f"{way}_medR": float(np.median(ranks))}).items():
            if abs(figure - ours.metrics[name]) > allowed[name]:
                raise SystemExit(f"the two ways disagree on {name}: xmodal {ours.metrics[name]}, the other {figure}")


def line(pairs: Pairs, name: str, other: str, comparison: Comparison) -> str:
    """Medians of both times, the median ratio and its spread."""
    ours, bare = (median(1 / rate for rate in rates) for rates in (comparison.ours, comparison.bare))
    low, high = min(comparison.ratios), max(comparison.ratios)
    return (
        f"{pairs.name}, {name}: xmodal {ours:.4f} s, {other} {bare:.4f} s, "
        f"ratio {median(comparison.ratios):.3f} ({low:.3f} to {high:.3f} in {len(comparison.ratios)} alternations)"
    )


def fastest_product(pairs: Pairs) -> str:
    """The name of the faster of the two, each measured after a warm-up."""
    taken = {}
    for name, product in PRODUCTS.items():
        product(pairs.first(64))
        taken[name] = seconds(partial(product, pairs), pairs.image.device)
    return min(taken, key=taken.__getitem__)


def print_size(pairs: Pairs, repeats: int) -> None:
    """The lines of one size."""
    for name, dtype in (("per-query argsort loop", torch.float64), ("the loop in float32", torch.float32)):
        comparison = compare(pairs, per_query_loop, repeats, pairs.for_numpy(dtype))
        print(line(pairs, name, "loop", comparison), flush=True)
    comparison = compare(pairs, full_argsort, repeats)
    print(line(pairs, "full-matrix argsort", "argsort", comparison), flush=True)
    fastest = fastest_product(pairs)
    comparison = compare(pairs, PRODUCTS[fastest], repeats)
    print(line(pairs, f"bare product {fastest}", "product", comparison), flush=True)
    taken = seconds(lambda: evaluate_by_class(pairs), pairs.image.device)
    print(f"{pairs.name}, by class, four directions: {taken:.2f} s", flush=True)
    queries = evaluate(pairs).queries
    taken = seconds(lambda: bootstrap_intervals(queries, RESAMPLES), pairs.image.device)
    print(f"{pairs.name}, bootstrap with {RESAMPLES:,} resamples: {taken:.2f} s", flush=True)


def print_full_size(images: int, width: int, device_name: str, threads: int, repeats: int) -> None:
    """Memory of one evaluation, then time beside the product in tiles; for a process that has done nothing before."""
    torch.set_num_threads(threads)
    device = choose_device(device_name)
    with threadpool_limits(threads):
        pairs = Pairs.random(images, width, device)
        fresh = memory(device)
        evaluate(pairs.first(64))
        warm = memory(device)
        evaluate(pairs)
        peak = memory(device, peak=True)
        print(
            f"{pairs.name}, width {width}, peak extra memory: {peak - warm:.1f} MiB, or {peak - fresh:.1f} MiB with "
            f"what a first, small evaluation leaves behind (embeddings: {embeddings_mib(pairs):.1f} MiB)",
            flush=True,
        )
        comparison = compare(pairs, product_in_tiles, repeats)
        print(line(pairs, f"width {width}, bare product in tiles", "product", comparison), flush=True)


def embeddings_mib(pairs: Pairs) -> float:
    return sum(side.nbytes for side in (pairs.image, pairs.text)) / MIB


def memory(device: torch.device, peak: bool = False) -> float:
    """Memory in use now, after which a new peak begins; or the peak. MiB; of the process, or of the graphics card."""
    if device.type == "cuda":
        if peak:
            return torch.cuda.max_memory_allocated(device) / MIB
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / MIB
    if not peak:
        RESET_PEAK.write_text("5")
    fields = dict(row.split(":", 1) for row in STATUS.read_text().splitlines())
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) / 1024


def main() -> None:
    """Measure and print every size."""
    options = _parser().parse_args()
    device = choose_device(options.device)
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    print(f"evaluating on {describe(device)}, width {options.width}, ratios are the other's time ÷ xmodal's")
    with threadpool_limits(threads):  # NumPy's products too
        for images in options.sizes:
            print_size(Pairs.random(images, options.width, device), options.repeats)
    if options.full:
        full = (options.full_images, FULL_WIDTH, options.device, threads, options.full_repeats)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            processes.submit(print_full_size, *full).result()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Seconds of evaluate_retrieval, beside other ways to the same ranks.")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 5000], help="images, each with five captions")
    parser.add_argument("--width", type=int, default=1024, help="width of the embeddings")
    parser.add_argument("--repeats", type=int, default=3, help="alternations")
    parser.add_argument("--full", action=argparse.BooleanOptionalAction, default=True, help="measure the largest size")
    parser.add_argument("--full-images", type=int, default=31_014, help=f"its images, of width {FULL_WIDTH}")
    parser.add_argument("--full-repeats", type=int, default=1, help="its alternations")
    parser.add_argument("--threads", type=int, help="threads of products; default: PyTorch's choice")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    main()
