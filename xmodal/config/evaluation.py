"""What `xmodal evaluate` can be asked for, and what does not go together; known without importing torch."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Subject = Literal["run", "file", "encoders"]  # a trained run, a file of embeddings, or encoders as they are

ROLES = ("train", "val", "test")
PROTOCOLS = ("full", "folds")
GALLERIES = ("split", "train", "all")
RERANKINGS = ("querybank", "inverted_softmax")
RELEVANCES = ("instance", "class")
SIMILARITIES = ("cosine", "dot", "euclidean")
DEVICES = ("auto", "cpu", "cuda")

FOLDS = 5
FEWEST_RESAMPLES = 40  # with fewer, not one lies beyond either end of a 95 % interval
_NAME = re.compile(r"\w[\w.-]*")


def fold_counts(images: int) -> list[int]:
    """The numbers, from 2, of folds of one size and at least two images each."""
    return [count for count in range(2, images // 2 + 1) if images % count == 0]


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation, as it was asked for.

    Attributes:
        split: ``train``, ``val`` or ``test`` (of an embeddings file: any name for its figures); None: not said.
        protocol: ``full``, or ``folds``: means over ``folds`` equal parts; None: whichever ``folds`` implies.
        folds: number of parts; None: not said.
        gallery: the items searched: those of the split, of all splits, or (queries too) of the training split.
        rerank: also report figures with this hubness correction.
        bank_size: most images, and most captions, of its bank; None for all.
        inverse_temperature: of the correction; None: its default.
        relevance: ``instance`` or ``class``; None: as the run was evaluated, or as the data set says.
        similarity: of the vectors of an embeddings file; None: cosine.
        bootstrap: resamples for 95 % intervals; 0 for none.
        seed: of the resamples and of the choice of the bank.
        index: an option of ``conf/index`` (settings may follow: ``hnsw ef_search=16``) whose recall is reported.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    split: str | None = None
    protocol: str | None = None
    folds: int | None = None
    gallery: str | None = None
    rerank: str | None = None
    bank_size: int | None = None
    inverse_temperature: float | None = None
    relevance: str | None = None
    similarity: str | None = None
    bootstrap: int = 1000
    seed: int = 0
    index: str | None = None
    device: str = "auto"

    @property
    def fold_count(self) -> int | None:
        """Number of folds, or None for the full split."""
        return (self.folds or FOLDS) if self.protocol == "folds" or self.folds is not None else None

    def name(self, split: str, usual_relevance: str) -> str:
        """What figures are called by: the split, and whatever makes them another figure than the plain one.

        ``test``, ``test_folds5``, ``test_gallery_all``, ``test_class`` where relevance by class is not the usual one.
        """
        parts = [split]
        parts += [f"folds{self.fold_count}"] if self.fold_count else []
        parts += ["gallery_all"] if self.gallery == "all" else []
        parts += [self.relevance] if self.relevance not in (None, usual_relevance) else []
        return "_".join(parts)

    def faults(self, subject: Subject) -> list[str]:
        """Everything wrong with the options of an evaluation of the ``subject``; a sentence each."""
        own = self._of_file() if subject == "file" else [*self._foreign_similarity(subject), *self._of_splits()]
        return [*self._out_of_range(), *self._contradictions(), *own]

    def _out_of_range(self) -> Iterator[str]:
        least = {"--folds": (self.folds, 2), "--bank-size": (self.bank_size, 1), "--seed": (self.seed, 0)}
        for flag, (value, low) in least.items():
            if value is not None and value < low:
                yield f"{flag} must be at least {low}, found {value}."
        if fault := resamples_fault("--bootstrap", self.bootstrap):
            yield fault
        inverse = self.inverse_temperature
        if inverse is not None and not (math.isfinite(inverse) and inverse > 0):
            yield f"--inverse-temperature must be a positive number, found {inverse}."

    def _contradictions(self) -> Iterator[str]:
        if self.protocol == "full" and self.folds is not None:
            yield f"--folds {self.folds} belongs to --protocol folds, but --protocol full was given."
        if self.fold_count and self.gallery == "all":
            yield "--protocol folds cuts the gallery into parts, --gallery all widens it: choose one of them."
        if self.fold_count and self.index:
            yield "--index looks at one gallery, --protocol folds at several: choose one of them."
        for flag, value in (("--bank-size", self.bank_size), ("--inverse-temperature", self.inverse_temperature)):
            if value is not None and self.rerank is None:
                yield f"{flag} belongs to a correction: add --rerank {' or '.join(RERANKINGS)}."

    def _foreign_similarity(self, subject: Subject) -> Iterator[str]:
        if self.similarity is not None and subject == "run":
            yield "--similarity is for --embeddings: a run compares as it was trained (model.similarity)."
        elif self.similarity is not None:
            yield f"--similarity is for --embeddings: with --zero-shot type model.similarity={self.similarity}."

    def _of_splits(self) -> Iterator[str]:
        if self.split is not None and self.split not in ROLES:
            yield f"--split must be one of {', '.join(ROLES)}, found {self.split}."
        if self.gallery == "train" and self.split in ("val", "test"):
            yield (
                f"--gallery train takes queries and gallery from train, which leaves nothing of --split {self.split}: "
                "leave one of them out."
            )
        if self.rerank and "train" in (self.gallery, self.split):
            yield f"--rerank {self.rerank} takes its bank from train, where the queries would find themselves."
        elif self.rerank and self.gallery == "all":
            yield (
                f"--rerank {self.rerank} takes its bank from train, whose items --gallery all puts into the gallery: "
                "they would be known by their own captions. Leave one of them out."
            )

    def _of_file(self) -> Iterator[str]:
        if self.gallery not in (None, "split"):
            yield f"--gallery {self.gallery} needs the splits of a run; an embeddings file is one gallery."
        if self.split is not None and not _NAME.fullmatch(self.split):
            yield f"--split {self.split!r} can't name figures and files: letters, digits, '_', '-' and '.' can."
        if fault := self.temperature_fault(self.similarity or "cosine"):
            yield fault

    def temperature_fault(self, similarity: str) -> str | None:
        """A correction has a default for cosines alone."""
        if self.rerank is None or self.inverse_temperature is not None or similarity == "cosine":
            return None
        return (
            f"--rerank {self.rerank} needs --inverse-temperature BETA under {similarity} similarity, whose scores have "
            "a scale of their own (20 is usual for cosines). A start: 1 divided by the scores' standard deviation."
        )

    def folds_fault(self, images: int) -> str | None:
        """The folds must be of one size, and hold two images at least."""
        folds = self.fold_count
        possible = fold_counts(images)
        if folds is None or folds in possible:
            return None
        choices = " or ".join(map(str, _nearest(possible, folds)))
        return (
            f"--folds {folds} does not cut {images:,} images into parts of one size, of two images at least "
            "(galleries of different sizes do not compare). "
            + (
                f"Possible: --folds {choices}."
                if choices
                else "No other number does: evaluate the full split, without folds."
            )
        )


def _nearest(possible: Iterable[int], wanted: int) -> list[int]:
    """The four numbers nearest to the one that was wanted, ascending."""
    return sorted(sorted(possible, key=lambda count: abs(count - wanted))[:4])


def resamples_fault(name: str, value: int) -> str | None:
    """What is wrong with a number of resamples, called ``name`` (``--bootstrap``) by the user."""
    if value == 0 or value >= FEWEST_RESAMPLES:
        return None
    return (
        f"{name} must be a number of resamples, at least {FEWEST_RESAMPLES} for a 95 % interval, or 0 for none; "
        f"found {value}."
    )


def unwritable(targets: Mapping[str, Path | None], taken: Mapping[Path, str] | None = None) -> list[str]:
    """Places (by flag) where no file may be made, found before anything is computed; a sentence each.

    Files come into being by a rename, which would put one in the place of a device, a pipe or a link (/dev/stdout).
    No target takes the place of another one, nor of what is ``taken`` (what each file is, for the message).
    """
    faults = _impossible(targets)
    owners = {path.resolve(): what for path, what in (taken or {}).items()}
    for flag, path in targets.items():
        if path is None:
            continue
        if what := owners.get(path.resolve()):
            faults.append(f"{flag} {path} would replace {what}; name another file.")
        owners.setdefault(path.resolve(), f"the file of {flag}")
    return faults


def with_suffix(record: Path, suffix: str) -> Path:
    """Where the queries of corrected figures are kept, beside the plain ones: ``kept.npz``, ``kept_querybank.npz``."""
    return record.with_name(f"{record.stem}{suffix}{record.suffix}")


def files_of_run(place: Path) -> dict[Path, str]:
    """What an evaluation or a comparison reads, or training left, by its path: the file, or those of a run's folder."""
    if not place.is_dir():
        return {place: "the file that is read"}
    patterns = ("*.ckpt", "checkpoints/*.ckpt", "config.yaml", "metrics.json", "history.csv", "train.log")
    return {file: "a file of the run" for pattern in patterns for file in place.glob(pattern)}


def _impossible(targets: Mapping[str, Path | None]) -> list[str]:
    faults = []
    for flag, path in targets.items():
        if path is not None and path.is_dir():
            faults.append(f"{flag} {path} is a folder; name a file in it.")
        elif path is not None and (path.is_symlink() or (path.exists() and not path.is_file())):
            faults.append(f"{flag} {path} is a link, a pipe or a device, which would be replaced; name a plain file.")
        elif path is not None and not path.absolute().parent.is_dir():
            faults.append(f"{flag} {path}: there is no folder {path.absolute().parent}.")
    return faults
