"""What `xmodal evaluate` can be asked for, and what does not go together; known without importing torch."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
        relevance: ``instance`` or ``class``; None: as the run was evaluated.
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

    def faults(self, of_file: bool) -> list[str]:
        """Everything wrong with the options of an evaluation of a run, or of an embeddings file; a sentence each."""
        return [*self._out_of_range(), *self._contradictions(), *(self._of_file() if of_file else self._of_run())]

    def _out_of_range(self) -> Iterator[str]:
        least = {"--folds": (self.folds, 2), "--bank-size": (self.bank_size, 1), "--seed": (self.seed, 0)}
        for flag, (value, low) in least.items():
            if value is not None and value < low:
                yield f"{flag} must be at least {low}, found {value}."
        if self.bootstrap < 0 or 0 < self.bootstrap < FEWEST_RESAMPLES:
            yield (
                f"--bootstrap must be a number of resamples, at least {FEWEST_RESAMPLES} for a 95 % interval, or 0 for "
                f"none; found {self.bootstrap}."
            )
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

    def _of_run(self) -> Iterator[str]:
        if self.similarity is not None:
            yield "--similarity is for --embeddings: a run compares as it was trained (model.similarity)."
        if self.split is not None and self.split not in ROLES:
            yield f"--split must be one of {', '.join(ROLES)}, found {self.split}."
        if self.gallery == "train" and self.split in ("val", "test"):
            yield (
                f"--gallery train takes queries and gallery from train, which leaves nothing of --split {self.split}: "
                "leave one of them out."
            )
        if self.rerank and "train" in (self.gallery, self.split):
            yield f"--rerank {self.rerank} takes its bank from train, where the queries would find themselves."

    def _of_file(self) -> Iterator[str]:
        if self.gallery not in (None, "split"):
            yield f"--gallery {self.gallery} needs the splits of a run; an embeddings file is one gallery."
        if self.split is not None and not _NAME.fullmatch(self.split):
            yield f"--split {self.split!r} can't name figures and files: letters, digits, '_', '-' and '.' can."


def unwritable(targets: Mapping[str, Path | None]) -> list[str]:
    """Places (by flag) where no file can be made, found before anything is computed; a sentence each.

    Files come into being by a rename, which would put one in the place of a device, a pipe or a link (/dev/stdout).
    """
    faults = []
    for flag, path in targets.items():
        if path is not None and path.is_dir():
            faults.append(f"{flag} {path} is a folder; name a file in it.")
        elif path is not None and (path.is_symlink() or (path.exists() and not path.is_file())):
            faults.append(f"{flag} {path} is a link, a pipe or a device, which would be replaced; name a plain file.")
        elif path is not None and not path.absolute().parent.is_dir():
            faults.append(f"{flag} {path}: there is no folder {path.absolute().parent}.")
    return faults
