"""`xmodal evaluate`: figures of a trained run or of embeddings made elsewhere, on the screen and in files."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xmodal.atomic import complete_file
from xmodal.config.command_line import compose
from xmodal.config.evaluation import EvaluationOptions, Subject, unwritable, with_suffix
from xmodal.errors import ConfigError, DataError
from xmodal.experiment.embedded import Embedded
from xmodal.experiment.embedded_run import embed_run
from xmodal.experiment.embeddings_file import read_embeddings
from xmodal.experiment.figures import console, figures_table, flat_figures, record_of
from xmodal.experiment.opened_run import constructed
from xmodal.experiment.zero_shot import embed_zero_shot
from xmodal.retrieval.evaluate import RetrievalResult, evaluate_retrieval
from xmodal.retrieval.hubness import QueryBank
from xmodal.retrieval.index import Index, index_recall
from xmodal.retrieval.protocols import evaluate_folds
from xmodal.retrieval.record import EvaluationRecord, write_record

log = logging.getLogger(__name__)

INDEX_K = 10


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: figures by their flat names, and a record of every query for each set of figures."""

    embedded: Embedded
    result: RetrievalResult
    figures: dict[str, float]
    records: dict[str, EvaluationRecord]  # by what follows the plain one's name: "", perhaps "_querybank"


@dataclass(frozen=True)
class Targets:
    """Files that were asked for by name; None: not asked for."""

    json: Path | None = None
    record: Path | None = None


def evaluate_and_report(
    subject: Subject, place: Path | None, options: EvaluationOptions, overrides: Sequence[str], targets: Targets
) -> Evaluation:
    """Evaluate a run, a file of embeddings or two encoders as they are; print the figures, then write the files.

    Args:
        subject: which of the three.
        place: of the run, or of the file; None for the encoders, which ``overrides`` name.

    Raises:
        XmodalError: whatever is wrong with the model, the data, or in the end the places to write to.
    """
    index = _index(options.index)
    device = chosen_device(options.device)
    embedded = _embedded(subject, place, options, overrides, device)
    if embedded.record is not None and targets.record is None:
        _require_apart(targets, embedded.record, options)
    found = evaluate(embedded, options)
    _print(found, options)
    if index is not None:
        recalls = index_recalls(embedded, index)
        found.figures.update(recalls)
        i2t, t2i = (f"{recall:.1f} %" for recall in recalls.values())
        print(f"index={options.index} finds of the exact top {INDEX_K}: image → text {i2t}, text → image {t2i}")
    save(found, targets)
    return found


def _embedded(
    subject: Subject, place: Path | None, options: EvaluationOptions, overrides: Sequence[str], device: torch.device
) -> Embedded:
    if subject == "encoders":
        return embed_zero_shot(options, overrides, device)
    assert place is not None
    return (
        read_embeddings(place, options, device) if subject == "file" else embed_run(place, options, overrides, device)
    )


def _require_apart(targets: Targets, record: Path, options: EvaluationOptions) -> None:
    """The figures must not be written where the queries go, nor the other way round."""
    records = [record, *([with_suffix(record, f"_{options.rerank}")] if options.rerank else [])]
    if faults := unwritable({"--json": targets.json}, dict.fromkeys(records, "the queries of this very evaluation")):
        raise ConfigError(faults)


def evaluate(embedded: Embedded, options: EvaluationOptions) -> Evaluation:
    """Exact figures of the embeddings, with intervals, under the name that the options give them."""
    result = _result(embedded, options)
    by_suffix = {"": result} | ({f"_{options.rerank}": result.reranked} if result.reranked else {})
    figures: dict[str, float] = {}
    for suffix, one in by_suffix.items():
        figures |= flat_figures(embedded.name + suffix, one)
    figures |= _at_smaller_sizes(embedded, options)
    records = {suffix: _record(embedded, embedded.name + suffix, one) for suffix, one in by_suffix.items()}
    return Evaluation(embedded, result, figures, records)


def _at_smaller_sizes(embedded: Embedded, options: EvaluationOptions) -> dict[str, float]:
    """Figures of the first dimensions alone, where they were trained to be embeddings: ``test/dim64/i2t_R1`` …"""
    points = replace(options, bootstrap=0, rerank=None)
    figures: dict[str, float] = {}
    for size in embedded.sizes:
        figures |= flat_figures(f"{embedded.name}/dim{size}", _result(embedded.at_size(size), points))
    return figures


def save(found: Evaluation, targets: Targets) -> None:
    """Write the JSON and the records; what fails does not keep the others from being written.

    A record that nobody asked for by name (the run's folder may be read-only) is a warning.

    Raises:
        DataError: a file that was asked for could not be written.
    """
    failed = _attempt(targets.json, "--json", lambda path: write_json(path, found.figures)) if targets.json else []
    where = targets.record or found.embedded.record
    if where is None:
        log.info("These are other items than the run's own: their queries are kept where --record FILE says.")
    else:
        faults = [fault for suffix in found.records for fault in _save_record(where, suffix, found)]
        failed += faults if targets.record else []
        for fault in [] if targets.record else faults:
            log.warning("%s The figures above are complete. Another place: --record FILE.", fault)
    if failed:
        raise DataError("\n".join(failed))


def _save_record(where: Path, suffix: str, found: Evaluation) -> list[str]:
    path = with_suffix(where, suffix)
    faults = _attempt(path, "Queries", lambda path: write_record(path, found.records[suffix]))
    if not faults:
        log.info("Queries of %s, for xmodal compare: %s", found.records[suffix].name, path)
    return faults


def _attempt(path: Path, what: str, write: Callable[[Path], None]) -> list[str]:
    """Nothing, or a sentence about why the file could not be written."""
    try:
        write(path)
    except OSError as error:
        return [f"{what}: {path} can't be written ({error.strerror})."]
    return []


def write_json(path: Path, figures: Mapping[str, float]) -> None:
    """Flat names to numbers, as in ``metrics.json``; visible only when complete."""
    with complete_file(path) as partial:
        partial.write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")


def chosen_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        ConfigError: ``cuda`` where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here. Leave it out, or use --device cpu.")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _index(option: str | None) -> Index | None:
    """The index that ``hnsw`` or ``hnsw ef_search=16`` names, with the settings of ``conf/index``."""
    if option is None:
        return None
    name, *settings = option.split() or [""]
    config = compose([f"index={name}", *(f"index.{setting}" for setting in settings)]).index
    index: Index = constructed(config)
    return index


def _result(embedded: Embedded, options: EvaluationOptions) -> RetrievalResult:
    sides = (embedded.image, embedded.text, embedded.image_ids, embedded.text_image_ids)
    shared: dict[str, Any] = {
        "similarity": embedded.similarity,
        "ks": embedded.ks,
        "image_labels": embedded.image_labels,
        "text_labels": embedded.text_labels,
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "bank": _bank(embedded, options),
    }
    if options.fold_count:
        return evaluate_folds(*sides, options.fold_count, **shared)
    shared |= {"image_queries": embedded.image_queries, "text_queries": embedded.text_queries}
    return evaluate_retrieval(*sides, **shared)


def _bank(embedded: Embedded, options: EvaluationOptions) -> QueryBank | None:
    if options.rerank is None:
        return None
    assert embedded.bank_images is not None
    assert embedded.bank_texts is not None
    inverse = {} if options.inverse_temperature is None else {"inverse_temperature": options.inverse_temperature}
    return QueryBank(embedded.bank_images, embedded.bank_texts, options.rerank, **inverse)


def _record(embedded: Embedded, name: str, result: RetrievalResult) -> EvaluationRecord:
    if embedded.names is not None:
        return record_of(name, embedded.data_name, embedded.similarity, result, embedded.names, embedded.content)
    return EvaluationRecord(name, embedded.data_name, embedded.similarity, result.queries, embedded.content)


def index_recalls(embedded: Embedded, index: Index) -> dict[str, float]:
    """``{"test/i2t_index_recall@10": …, "test/t2i_index_recall@10": …}``, percent of the exact top 10 that it finds."""
    image, text = (side.cpu().numpy() for side in (embedded.image, embedded.text))
    asked = {"i2t": (image, embedded.image_queries), "t2i": (text, embedded.text_queries)}
    recalls = {}
    for way, vectors in (("i2t", text), ("t2i", image)):
        queries, mask = asked[way]
        gallery = index.build(vectors, embedded.similarity)
        recall = index_recall(gallery, vectors, queries if mask is None else queries[mask], INDEX_K)
        recalls[f"{embedded.name}/{way}_index_recall@{INDEX_K}"] = round(recall, 5)
    return recalls


def _print(found: Evaluation, options: EvaluationOptions) -> None:
    """Names of files stand as they are: ``m[/b].npz`` is no markup."""
    screen = console()
    screen.print(found.embedded.description, highlight=False, markup=False)
    screen.print(figures_table(found.figures))
    for note in _notes(found.result, found.embedded.similarity):
        screen.print(note, highlight=False, markup=False)
    if options.bootstrap and not found.result.intervals:
        screen.print("No intervals: resampling needs two query images at least.", highlight=False)


def _notes(result: RetrievalResult, similarity: str) -> list[str]:
    """What took no part in the figures, or only in a way worth knowing."""
    unmatched = "no match among the {}: in the {} gallery, out of the {} figures."
    i2t, t2i = "image → text", "text → image"
    notes = [
        (result.images_without_caption, "image has", "images have", unmatched.format("captions", t2i, i2t)),
        (result.texts_without_image, "caption has", "captions have", unmatched.format("images", i2t, t2i)),
    ]
    if similarity == "cosine":
        zero = "the zero vector, which has the cosine 0 with everything."
        notes += [
            (result.zero_images, "image embedding is", "image embeddings are", zero),
            (result.zero_texts, "caption embedding is", "caption embeddings are", zero),
        ]
    return [f"{count:,} {one if count == 1 else several} {what}" for count, one, several, what in notes if count]
