"""Frozen encoders over photos and captions: into the feature store (resumable), or into memory."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from xmodal.encoders.protocol import Encoder
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.batches import Plan, merging_keys
from xmodal.features.chunks import ChunkedFile, DamagedChunkError
from xmodal.features.disk_space import expected_size, require_space
from xmodal.features.lock import only_one
from xmodal.features.pipeline import Input, Work, decoding_threads, encode_chunks
from xmodal.features.precision import precision_in_key, precisions_of_auto, used_precision
from xmodal.features.progress import showing
from xmodal.features.shards import Place, Rank
from xmodal.features.store import FeatureOrigin, FeatureStore, is_complete
from xmodal.types import RaggedFeatures

log = logging.getLogger(__name__)

_ITEMS = {"image": "photos", "text": "captions"}


def extract(
    encoder: Encoder,
    inputs: Sequence[Input],
    ids: Sequence[int | str],
    *,
    store: FeatureStore,
    data_name: str,
    encoder_name: str,
    data_fingerprint: str,
    dtype: str = "float16",
    chunk_size: int = 512,
    num_workers: int | None = None,
    precision: str = "auto",
    device: torch.device | str = "cpu",
    keys: Sequence[Hashable] | None = None,
    description: str = "features",
) -> Path:
    """Encode N items into the store and return the file; at once where the store has it already.

    Equal items are encoded once. Finished chunks survive a kill, a full disk or Ctrl-C: the same call continues from
    them and ends with the same datasets as an uninterrupted run. A second process that wants the same file waits for
    the first; processes that torchrun started share the work.

    Args:
        encoder: prepared; its ``batch_size`` items are encoded at a time.
        inputs: photos (files or PIL images) or sentences.
        ids: one per input.
        store, data_name, encoder_name: where the file goes and how it is called.
        data_fingerprint: digest of ids and contents of the inputs.
        dtype: ``float16`` (half the size) or ``float32``; encoders whose values are whole numbers get ``float32``.
        chunk_size: items between two savings.
        num_workers: threads that decode photos ahead of the network; None: one beside a network on the CPU, one per
            core beside a GPU.
        precision: in which the network computes: ``float32``, ``bfloat16``, ``float16``; ``auto``: bfloat16 on a GPU
            that has it, where ``dtype`` is float16, else float32, unless a file is there that it would be on another
            device. A file that was computed otherwise than asked for is never taken, and never replaced.
        device: where the encoder is.
        keys: equal for equal inputs; None: equal captions are equal, and no photos are.
        description: what the progress bar says.

    Raises:
        FeatureError: values that are not finite or too large for ``dtype``, a wrong width or count, a full disk, or
            another rank that failed.
        ConfigError: a ``dtype``, ``precision`` or ``chunk_size`` out of range.
    """
    _check_arguments(encoder, inputs, ids, keys, chunk_size)
    dtype = "float32" if getattr(encoder, "needs_float32", False) else dtype
    device = torch.device(device)
    used = used_precision(precision, device, dtype)
    origin = FeatureOrigin(encoder.fingerprint(), data_fingerprint, dtype, encoder.modality, precision_in_key(used))
    place = partial(store.path, data_name, encoder_name)
    merging = merging_keys(inputs, encoder.modality, keys)
    target = ChunkedFile(place(origin.key), origin, ids, encoder.batch_size, chunk_size, merging, used)
    if (found := _finished(target, precision, place)) is not None:
        log.info("Features of %s with %s: %s", data_name, encoder_name, found)
        return found
    threads = decoding_threads(num_workers, device, encoder.modality)
    work = Work(encoder, inputs, ids, target.plan, dtype, used, device, threads)
    _make(_Extraction(target, work, description, Rank(target.parts, Place.of_this_process())))
    return target.path


def _finished(target: ChunkedFile, precision: str, place: Callable[[str], Path]) -> Path | None:
    """The file of ``target`` where it is finished; for ``auto``, else one that it would be on another device; or None.

    Args:
        place: where the file of a key is.
    """
    if target.is_complete():
        target.clean()  # a run may have been killed between the last rename and the removal of its chunks
        return target.path
    choices = precisions_of_auto(target.origin.dtype) if precision == "auto" else ()
    for other in choices:
        origin = replace(target.origin, precision=precision_in_key(other))
        path = place(origin.key)
        if other != target.precision and is_complete(path, origin, target.ids, other):
            log.info(
                "features.precision=auto takes %s, which was computed in %s; computed now it would be in %s. "
                "features.precision=%s would make it so.",
                *(path, other, target.precision, target.precision),
            )
            return path
    return None


def encode_all(
    encoder: Encoder,
    inputs: Sequence[Input],
    num_workers: int | None = None,
    precision: str = "auto",
    keys: Sequence[Hashable] | None = None,
    *,
    device: torch.device | str = "cpu",
    description: str = "",
) -> RaggedFeatures:
    """Encode items into memory, as float32, storing nothing. Arguments are those of `extract`.

    Without a ``description`` nothing is said of start and progress.

    Raises:
        FeatureError: values that are not finite, or a wrong width or count.
        ConfigError: a ``precision`` out of range.
    """
    _check_arguments(encoder, inputs, inputs, keys)
    device = torch.device(device)
    used = used_precision(precision, device, "float32")
    if not inputs:
        return RaggedFeatures(np.zeros((0, encoder.feature_dim), np.float32), np.zeros(1, np.int64))
    plan = Plan.of(merging_keys(inputs, encoder.modality, keys), encoder.batch_size, len(inputs) + encoder.batch_size)
    threads = decoding_threads(num_workers, device, encoder.modality)
    work = Work(encoder, inputs, range(len(inputs)), plan, "float32", used, device, threads)
    if description:
        size = expected_size(encoder, inputs, "float32")
        log.info("Encoding %s into memory, storing nothing: %s", description, _amount(work, size.stated("in memory")))
    made: list[RaggedFeatures] = []
    with showing(description, len(inputs), 0) as advance:
        encode_chunks(work, [0], lambda _, sets: made.append(sets), advance if description else lambda _: None)
    [distinct] = made
    return distinct if len(distinct) == len(inputs) else distinct.select(plan.codes)


def _check_arguments(
    encoder: Encoder,
    inputs: Sequence[Input],
    ids: Sequence[object],
    keys: Sequence[Hashable] | None,
    chunk_size: int = 1,
) -> None:
    for name, given in {"ids": ids, "keys": keys}.items():
        if given is not None and len(given) != len(inputs):
            raise FeatureError(
                f"{len(inputs)} inputs were given with {len(given)} {name}; each input needs one {name[:-1]}."
            )
    if chunk_size < 1:
        raise ConfigError(f"features.{encoder.modality}_chunk_size must be at least 1, found {chunk_size}.")


@dataclass(frozen=True)
class _Extraction:
    """A file to be made, by this process or by several."""

    target: ChunkedFile
    work: Work
    description: str
    rank: Rank


def _make(extraction: _Extraction) -> None:
    target, rank = extraction.target, extraction.rank
    if rank.place.rank == 0:
        with only_one(target.path):
            target.remove_temporaries()  # before other ranks start: they wait until rank 0 is at work
            if not target.is_complete():
                with rank.at_work():
                    _lead(extraction)
        return
    complete = _looking_for(target)
    rank.wait(lambda: complete() or rank.leader_is_at_work(), "rank 0 to start")
    if not complete():
        with rank.at_work():
            _encode(extraction, rank.place.share(target.missing()))
            log.info("%s has made its chunks of %s; waiting for rank 0 to merge them.", rank.place, target.path)
            rank.wait(complete, "rank 0 to merge the chunks")


def _lead(extraction: _Extraction) -> None:
    """Make the chunks of rank 0, wait for those of the others, and join all."""
    target, rank = extraction.target, extraction.rank
    _announce(extraction)
    missing = target.missing()
    _encode(extraction, rank.place.share(missing))
    others = [number for number in missing if number % rank.place.world != rank.place.rank]
    rank.wait(lambda: _all_there(target, others), "the chunks of other ranks")
    _merge(extraction)


def _announce(extraction: _Extraction) -> None:
    """Say what will be done and how large it will be; refuse where it can't fit."""
    target, work, plan = extraction.target, extraction.work, extraction.target.plan
    expected = expected_size(work.encoder, work.inputs, work.dtype)
    missing = target.missing()
    remaining = sum(plan.spans[number][1] - plan.spans[number][0] for number in missing)
    done = len(work.inputs) - sum(plan.items_of(number) for number in missing)
    log.info(
        "Extracting %s into %s: %s (%d of %d already done)",
        *(extraction.description, target.path, _amount(work, str(expected)), done, len(work.inputs)),
    )
    if useless := target.useless():
        log.warning(
            "%d chunks in %s are damaged, or were made with another batch size, chunk size, precision or version: they "
            "are not used, and made again.",
            *(useless, target.parts),
        )
    require_space(target.path.parent, expected, remaining / max(1, len(work.inputs)))


def _amount(work: Work, size: str) -> str:
    """``3 captions, 2 of them distinct, at most 84 bytes on disk, computed in float32``."""
    items, distinct = _ITEMS[work.encoder.modality], len(work.plan.first)
    return f"{len(work.inputs)} {items}, {distinct} of them distinct, {size}, computed in {work.precision}"


def _encode(extraction: _Extraction, numbers: Sequence[int]) -> None:
    """Make these chunks."""
    target, work, rank = extraction.target, extraction.work, extraction.rank
    alone = rank.place.world == 1
    total = len(work.inputs) if alone else sum(target.plan.items_of(number) for number in numbers)
    done = total - sum(target.plan.items_of(number) for number in numbers)
    title = extraction.description if alone else f"{extraction.description} ({rank.place})"
    with showing(title, total, done, bar=alone) as advance:

        def step(count: int) -> None:
            rank.beat()
            advance(count)

        encode_chunks(work, numbers, target.write, step)


def _merge(extraction: _Extraction) -> None:
    """Join the chunks; one that the disk has damaged since is made anew, once."""
    target, work = extraction.target, extraction.work
    renewed: set[int] = set()
    while True:
        try:
            target.merge(work.encoder.feature_dim, extraction.rank.beat)
            return
        except DamagedChunkError as error:
            if error.number in renewed:
                raise
            log.warning("%s Making it anew now.", error)
            renewed.add(error.number)
            encode_chunks(work, [error.number], target.write, lambda _: extraction.rank.beat())


def _all_there(target: ChunkedFile, numbers: Iterable[int]) -> bool:
    return all(target.has(number) for number in numbers)


def _looking_for(target: ChunkedFile) -> Callable[[], bool]:
    """Whether the final file is complete; looked into only when it has changed."""
    seen: tuple[int, int] | None = None
    found = False

    def complete() -> bool:
        nonlocal seen, found
        try:
            status = target.path.stat()
        except OSError:
            return False
        if (status.st_ino, status.st_mtime_ns) != seen:
            seen = (status.st_ino, status.st_mtime_ns)
            found = target.is_complete()
        return found

    return complete
