"""`xmodal evaluate`: figures with intervals for a trained run, encoders as they are, or embeddings made elsewhere."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from xmodal.commands.options import unknown
from xmodal.config import evaluation
from xmodal.config.command_line import check_command_line
from xmodal.config.evaluation import EvaluationOptions, Subject
from xmodal.errors import ConfigError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="retrieval figures with intervals, of a run, of encoders as they are, or of embeddings made elsewhere",
        description="Evaluate a trained run on a split of its data set, two encoders without any training, or the "
        "embeddings in a file. For example: xmodal evaluate outputs/runs/flickr8k/RUN --split val "
        "data.root=/where/it/is/now",
    )
    command.add_argument("place", nargs="?", type=Path, metavar="RUN", help="a run folder, or a checkpoint (.ckpt)")
    command.add_argument("overrides", nargs="*", help="settings that differ from the run's, such as data.root=…")
    command.add_argument(
        "--zero-shot",
        action="store_true",
        help="instead of a run: photos and captions as two encoders of one space give them, with settings as for "
        "train.py: data=… image_encoder=clip text_encoder=clip",
    )
    command.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="instead of a run: an .npz with image_embeddings, text_embeddings, image_ids, text_image_ids, and perhaps "
        "image_labels, text_labels, bank_images, bank_texts",
    )
    _add_protocol(command)
    _add_outcome(command)
    command.set_defaults(
        run=run,
        parser=command,
        interrupted="Figures printed are complete; features extracted so far are kept for the next time.",
    )


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Figures, with intervals, of a trained run, of two encoders, or of a file of embeddings."""
    options = EvaluationOptions(**{field.name: getattr(parsed, field.name) for field in fields(EvaluationOptions)})
    place, overrides = _words(parsed, rest)
    subject = _subject(parsed)
    if faults := [
        *_evaluation_faults(parsed, place, overrides),
        *options.faults(subject),
        *evaluation.unwritable(_targets(parsed), _read(place, overrides)),
    ]:
        raise ConfigError(faults)
    from xmodal.experiment.evaluation import Targets, evaluate_and_report

    evaluate_and_report(subject, place, options, overrides, Targets(parsed.json, parsed.record))
    return 0


def _subject(parsed: argparse.Namespace) -> Subject:
    if parsed.embeddings is not None:
        return "file"
    return "encoders" if parsed.zero_shot else "run"


def _words(parsed: argparse.Namespace, rest: Sequence[str]) -> tuple[Path | None, list[str]]:
    """What is evaluated (None: encoders), and the settings; of those without a run, the first stands in its place."""
    overrides = [*parsed.overrides, *rest]
    if parsed.embeddings is not None:
        return parsed.embeddings, [*([str(parsed.place)] if parsed.place else []), *overrides]
    if parsed.zero_shot:
        return None, [*([str(parsed.place)] if parsed.place else []), *overrides]
    return parsed.place, overrides


def _add_protocol(command: argparse.ArgumentParser) -> None:
    """What is a query, what is searched, what counts as found."""
    add = command.add_argument_group("what is evaluated").add_argument
    add("--split", metavar="NAME", help="train, val or test (default: test where there is one); any name for a file")
    add("--protocol", choices=evaluation.PROTOCOLS, help="the full split (default), or the mean over equal folds of it")
    add("--folds", type=int, metavar="N", help=f"number of folds (default: {evaluation.FOLDS}); implies that protocol")
    add(
        "--gallery",
        choices=evaluation.GALLERIES,
        help="search the split (default), all splits together, or take queries and gallery from train",
    )
    add("--relevance", choices=evaluation.RELEVANCES, help="what matches: the pair, or any item of the class")
    add("--similarity", choices=evaluation.SIMILARITIES, help="of --embeddings (default: cosine)")
    add("--rerank", choices=evaluation.RERANKINGS, help="also figures with this hubness correction")
    add("--bank-size", type=int, metavar="N", help="images, and captions, in its bank (default: all of train)")
    add("--inverse-temperature", type=float, metavar="BETA", help="of the correction")


def _add_outcome(command: argparse.ArgumentParser) -> None:
    """What is computed beside the figures, and where everything goes."""
    add = command.add_argument_group("what comes out").add_argument
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples for 95%% intervals, 0: none (default 1000)")
    add("--seed", type=int, default=0, metavar="N", help="of the resamples and of --bank-size (default: 0)")
    add("--index", metavar="NAME", help='also the recall of this FAISS index: flat, hnsw, ivf_pq, "hnsw ef_search=16"')
    add("--json", type=Path, metavar="FILE", help="write the figures, by the names of metrics.json")
    add(
        "--record",
        type=Path,
        metavar="FILE",
        help="where to keep the rank of every query, for xmodal compare (default: the run's folder; for --embeddings "
        "and --zero-shot the current folder)",
    )
    add("--device", choices=evaluation.DEVICES, default="auto", help="(default: auto, the GPU where there is one)")


def _evaluation_faults(parsed: argparse.Namespace, place: Path | None, overrides: Sequence[str]) -> list[str]:
    """What is wrong with the words of the command line; what is wrong with the options, they know themselves."""
    flags = [word for word in overrides if word.startswith("-")]
    if flags:  # what follows an unknown flag can't be told from settings
        return unknown(flags, parsed.parser)
    if parsed.embeddings is not None and parsed.zero_shot:
        return ["--zero-shot encodes a data set, --embeddings reads a file: choose one of them."]
    if parsed.embeddings is not None:
        said = f"{' '.join(overrides)}: --embeddings takes a file alone, without a run or settings."
        return [said] if overrides else []
    if parsed.zero_shot:
        return _zero_shot_faults(overrides)
    if place is None:
        return [
            "Say what to evaluate: a run folder, a checkpoint (.ckpt), --embeddings FILE.npz, or --zero-shot data=… "
            "image_encoder=clip text_encoder=clip."
        ]
    if "=" in str(place) and not place.exists():
        return [f"{place}: the run comes first, then its settings: xmodal evaluate RUN {place}"]
    return []


def _zero_shot_faults(overrides: Sequence[str]) -> list[str]:
    if strange := [word for word in overrides if "=" not in word]:
        return [f"{' '.join(strange)}: --zero-shot takes settings alone (key=value, as for train.py), without a run."]
    try:
        check_command_line(overrides)
    except ConfigError as error:
        return list(error.faults)
    return []


def _targets(parsed: argparse.Namespace) -> dict[str, Path | None]:
    """The files that `xmodal evaluate` is to write, by their flags; a correction has a record of its own."""
    targets = {"--json": parsed.json, "--record": parsed.record}
    if parsed.record is not None and parsed.rerank is not None and parsed.record.name:
        targets[f"--rerank {parsed.rerank}:"] = evaluation.with_suffix(parsed.record, f"_{parsed.rerank}")
    return targets


def _read(place: Path | None, overrides: Sequence[str]) -> dict[Path, str]:
    """The files that `xmodal evaluate` reads, and what to call them."""
    named = {Path(value): f"the file of {key}" for key, _, value in (line.partition("=") for line in overrides)}
    files = {file: what for file, what in named.items() if file.is_file()}
    return files | ({} if place is None else evaluation.files_of_run(place))
