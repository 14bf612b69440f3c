"""Which runs may be compared: those that answered the same queries."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xmodal.reporting.replicates import Replicates, replicates_of
from xmodal.reporting.runs import Run
from xmodal.reporting.swept import headline_keys, swept_keys

SIZE = "embedding_dim"


@dataclass(frozen=True)
class Group:
    """Finished runs of one evaluation.

    Attributes:
        title: ``flickr8k, test``; a number follows where there are several of that name.
        runs: in the order of the report.
        all_keys: settings that differ.
        keys: those that head columns; none where they are too many.
        rows: the runs, those that differ in their seed alone as one.
        notes: what is to be known of all of them.
    """

    title: str
    runs: tuple[Run, ...]
    all_keys: tuple[str, ...]
    keys: tuple[str, ...]
    rows: tuple[Replicates, ...]
    notes: tuple[str, ...]

    @property
    def directions(self) -> list[str]:
        """Directions that any run has figures of, those between images and texts first."""
        return [way for way in DIRECTIONS if any(row.figure(f"{way}_R1") for row in self.rows)]


DIRECTIONS = {
    "i2t": "Image → text",
    "t2i": "Text → image",
    "i2i": "Image → image",
    "t2t": "Text → text",
}


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The finished runs by data set, evaluation and queries, in the order of their names.

    Runs without their queries go with the others of the same data set and evaluation where these are all of the same
    queries; else they are a group of their own.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_finished:
            by_name.setdefault(f"{run.data_name}, {run.split}", []).append(run)
    groups = []
    for name in sorted(by_name):
        parts = _of_same_queries(by_name[name])
        for i, part in enumerate(parts):
            title = name if len(parts) == 1 else f"{name} ({i + 1})"
            apart = [f"{len(parts)} sets of queries go by the name {name}: they are not compared."] * (len(parts) > 1)
            groups.append(_group(title, part, apart))
    return groups


def left_out(runs: Sequence[Run]) -> list[Run]:
    """The runs without figures."""
    return [run for run in runs if not run.is_finished]


def _group(title: str, runs: Sequence[Run], notes: Sequence[str]) -> Group:
    keys = sorted(swept_keys(runs), key=lambda key: key == SIZE)  # sizes one behind the other, for each of the others
    rows, repeated = replicates_of(runs, keys)
    found = [
        *notes,
        *_size(runs),
        *_chosen_here(runs),
        *repeated,
        *_other_seeds(rows),
        *_without_queries(runs),
        *_differences(runs),
    ]
    return Group(title, tuple(runs), tuple(keys), tuple(headline_keys(keys)), tuple(rows), tuple(found))


def _of_same_queries(runs: Sequence[Run]) -> list[list[Run]]:
    parts: dict[str | None, list[Run]] = {}
    for alike in _of_same_images(runs).values():
        contents = {run.evaluation.content for run in alike if run.evaluation and run.evaluation.content}
        for run in alike:
            digest, content = _digest(run), run.evaluation.content if run.evaluation else None
            parts.setdefault(f"{digest} {content}" if len(contents) > 1 else digest, []).append(run)
    if len(parts) == 2 and None in parts:
        return [list(runs)]
    return [part for _, part in sorted(parts.items(), key=lambda item: (item[0] is None, runs.index(item[1][0])))]


def _of_same_images(runs: Sequence[Run]) -> dict[str | None, list[Run]]:
    found: dict[str | None, list[Run]] = {}
    for run in runs:
        found.setdefault(_digest(run), []).append(run)
    return found


def _digest(run: Run) -> str | None:
    """Of the images of all queries between images and texts, whether they have a match, and their folds."""
    if run.evaluation is None:
        return None
    digest = hashlib.sha256(",".join(sorted(run.evaluation.queries)).encode())
    for way in ("i2t", "t2i"):
        if way in run.evaluation.queries:
            side = run.evaluation.queries[way]
            for column in (side.groups.astype(np.str_), side.matched, (side.folds * side.matched).astype(np.int64)):
                digest.update("\n".join(map(str, column.tolist())).encode())
    return digest.hexdigest()


def _size(runs: Sequence[Run]) -> list[str]:
    kept = [run.evaluation.queries for run in runs if run.evaluation is not None]
    counts = [f"{int(kept[0][way].matched.sum()):,} {DIRECTIONS[way].lower()}" for way in kept[0]] if kept else []
    return [f"Queries: {', '.join(counts)}."] if counts else []


def _chosen_here(runs: Sequence[Run]) -> list[str]:
    """The best of several noisy epochs flatters the split that it was chosen on."""
    if not (runs[0].split or "").startswith("val") or not any(len(run.history) > 1 for run in runs):
        return []
    return ["The epoch of each run was chosen on this split, so its figures are somewhat better than on new data."]


def _other_seeds(rows: Sequence[Replicates]) -> list[str]:
    """Between rows of different seeds, the seed differs too."""
    stated = [tuple(run.seed for run in row.runs) for row in rows]
    if len({seeds for seeds in stated if None not in seeds}) < 2:
        return []
    seeds = sorted({seed for row in stated for seed in row if seed is not None})
    return [
        f"Not all rows are of the same seeds ({', '.join(map(str, seeds))}): a difference may be that of the seeds."
    ]


def _without_queries(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs if run.evaluation is None]
    if not names:
        return []
    split = runs[0].split
    return [
        f"No evaluation_{split}.npz: {', '.join(names)}. Nothing is tested there, and these rows are never marked; "
        f"`xmodal evaluate RUN --split {split}` keeps the queries."
    ]


def _differences(runs: Sequence[Run]) -> list[str]:
    """What readers would want to know of a comparison, though it stays one."""
    stated: dict[str, list[object]] = {
        "Similarities differ": [run.evaluation.similarity if run.evaluation else None for run in runs],
        "Training data differ (fingerprint)": [_in_provenance(run, "data", "fingerprint") for run in runs],
        "Made by different commits": [_in_provenance(run, "git", "commit") for run in runs],
    }
    notes = []
    for words, values in stated.items():
        counts = Counter(str(value)[:12] for value in values if value)
        if len(counts) > 1:
            notes.append(
                f"{words}: {', '.join(f'{value} ({number} runs)' for value, number in sorted(counts.items()))}."
            )
    return notes


def _in_provenance(run: Run, part: str, key: str) -> object:
    found = (run.provenance or {}).get(part)
    return found.get(key) if isinstance(found, dict) else None
