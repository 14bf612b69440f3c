"""The `xmodal` command.

`xmodal extract` computes the features of an experiment ahead of training; it takes the overrides of `train.py`.
`xmodal evaluate` gives figures with intervals for a trained run, or for embeddings made elsewhere; `xmodal compare`
tests whether two runs differ.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from xmodal import __version__
from xmodal.config import evaluation
from xmodal.config.command_line import check_command_line, compose, report
from xmodal.config.evaluation import EvaluationOptions
from xmodal.config.suggestions import did_you_mean
from xmodal.errors import ConfigError, XmodalError

USAGE_FAULT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code (2: a fault the user can put right, 130: Ctrl-C)."""
    parsed, rest = _parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("gensim", "faiss"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return parsed.run(parsed, rest)
    except ConfigError as error:
        print(report(error.faults), file=sys.stderr)
        return USAGE_FAULT
    except XmodalError as error:
        print(error, file=sys.stderr)
        return USAGE_FAULT
    except KeyboardInterrupt:
        print(f"Interrupted. {parsed.interrupted}", file=sys.stderr)
        return INTERRUPTED


def extract(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Encode every image and caption of the configured data set (or one side of it) into the feature store."""
    overrides = [*parsed.overrides, *rest]
    _refuse_flags(overrides)
    check_command_line(overrides)
    cfg = compose(overrides)
    from xmodal.experiment.features import image_features, load_dataset, text_features
    from xmodal.experiment.parts import build_parts

    if not cfg.features.store:
        raise ConfigError("features.store=false: extracting would keep nothing. Leave it out (debug=fast sets it too).")
    modalities = (parsed.only,) if parsed.only else ("image", "text")
    parts = build_parts(cfg, modalities)
    dataset = load_dataset(cfg, parts, modalities)
    for modality in modalities:
        features = {"image": image_features, "text": text_features}[modality](cfg, parts, dataset)
        print(f"{modality}: {len(features)} sets, {len(features.values)} vectors of width {features.feature_dim}")
    return 0


def evaluate(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Figures, with intervals, of a trained run or of a file of embeddings."""
    options = EvaluationOptions(**{field.name: getattr(parsed, field.name) for field in fields(EvaluationOptions)})
    overrides = [*parsed.overrides, *rest]
    of_file = parsed.embeddings is not None
    if faults := [
        *_evaluation_faults(parsed, overrides),
        *options.faults(of_file),
        *evaluation.unwritable(_targets(parsed), _read(parsed, overrides)),
    ]:
        raise ConfigError(faults)
    from xmodal.experiment.evaluation import Targets, evaluate_and_report

    place = parsed.embeddings if of_file else parsed.place
    evaluate_and_report(place, of_file, options, overrides, Targets(parsed.json, parsed.record))
    return 0


def compare(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """A paired test between the queries of two evaluations."""
    if faults := [*_strange(rest, "compare"), *_comparison_faults(parsed)]:
        raise ConfigError(faults)
    from xmodal.experiment import comparison

    found = comparison.compare(parsed.first, parsed.second, parsed.split, parsed.resamples, parsed.seed)
    comparison.print_comparison(found)
    if parsed.json is not None:
        comparison.write_comparison(parsed.json, found)
    return 0


def _refuse_flags(words: Sequence[str]) -> None:
    """Flags of train.py (such as -m) show or multiply configurations; here one is extracted."""
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError(
            [
                f"{flag}: there is no such flag. `xmodal extract` takes settings typed without dashes (key=value), "
                "one configuration at a time, and --only image|text."
                for flag in flags
            ]
        )


def _evaluation_faults(parsed: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """What is wrong with the words of the command line; what is wrong with the options, they know themselves."""
    flags = [word for word in overrides if word.startswith("-")]
    if flags:  # what follows an unknown flag can't be told from settings
        return _strange(flags, "evaluate")
    if parsed.embeddings is not None:
        given = [*([str(parsed.place)] if parsed.place else []), *overrides]
        return [f"{' '.join(given)}: --embeddings takes a file alone, without a run or settings."] if given else []
    if parsed.place is None:
        return ["Say what to evaluate: a run folder, a checkpoint (.ckpt), or --embeddings FILE.npz."]
    if "=" in str(parsed.place) and not parsed.place.exists():
        return [f"{parsed.place}: the run comes first, then its settings: xmodal evaluate RUN {parsed.place}"]
    return []


def _comparison_faults(parsed: argparse.Namespace) -> list[str]:
    least = {"--resamples": (parsed.resamples, evaluation.FEWEST_RESAMPLES), "--seed": (parsed.seed, 0)}
    faults = [f"{flag} must be at least {low}, found {value}." for flag, (value, low) in least.items() if value < low]
    taken = {file: what for run in (parsed.first, parsed.second) for file, what in evaluation.files_of_run(run).items()}
    taken |= {file: "an evaluation" for run in (parsed.first, parsed.second) for file in run.glob("evaluation_*.npz")}
    return faults + evaluation.unwritable({"--json": parsed.json}, taken)


def _targets(parsed: argparse.Namespace) -> dict[str, Path | None]:
    """The files that `xmodal evaluate` is to write, by their flags; a correction has a record of its own."""
    targets = {"--json": parsed.json, "--record": parsed.record}
    if parsed.record is not None and parsed.rerank is not None and parsed.record.name:
        targets[f"--rerank {parsed.rerank}:"] = evaluation.with_suffix(parsed.record, f"_{parsed.rerank}")
    return targets


def _read(parsed: argparse.Namespace, overrides: Sequence[str]) -> dict[Path, str]:
    """The files that `xmodal evaluate` reads, and what to call them."""
    place = parsed.place if parsed.embeddings is None else parsed.embeddings
    named = {Path(value): f"the file of {key}" for key, _, value in (line.partition("=") for line in overrides)}
    files = {file: what for file, what in named.items() if file.is_file()}
    return files | ({} if place is None else evaluation.files_of_run(place))


def _strange(words: Sequence[str], command: str) -> list[str]:
    """A fault for each word that the command knows nothing of."""
    known = [flag for action in _commands()[command] for flag in action]
    return [f"{word}: `xmodal {command}` has no such option.{did_you_mean(word, known)}" for word in words]


def _commands() -> dict[str, list[Sequence[str]]]:
    """The flags of every command."""
    [commands] = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: [action.option_strings for action in parser._actions] for name, parser in commands.choices.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xmodal", description="Tools around train.py.")
    parser.add_argument("--version", action="version", version=f"xmodal {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_extract(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    return parser


def _add_extract(commands: Any) -> None:
    command = commands.add_parser(
        "extract",
        help="compute features ahead of training",
        description="Compute the features of an experiment ahead of training. Takes the overrides of train.py, "
        "for example: xmodal extract data=flickr8k image_encoder=vgg text_encoder=bert",
    )
    command.add_argument("--only", choices=("image", "text"), help="one side alone, as for captions without photos")
    command.add_argument("overrides", nargs="*", help="overrides as for train.py")
    command.set_defaults(run=extract, interrupted="Finished chunks are kept: the same command goes on from there.")


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="retrieval figures with intervals, of a run or of embeddings made elsewhere",
        description="Evaluate a trained run on a split of its data set, or the embeddings in a file. For example: "
        "xmodal evaluate outputs/runs/flickr8k/RUN --split val data.root=/where/it/is/now",
    )
    command.add_argument("place", nargs="?", type=Path, metavar="RUN", help="a run folder, or a checkpoint (.ckpt)")
    command.add_argument("overrides", nargs="*", help="settings that differ from the run's, such as data.root=…")
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
        run=evaluate, interrupted="Figures printed are complete; features extracted so far are kept for the next time."
    )


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
        "the current folder)",
    )
    add("--device", choices=evaluation.DEVICES, default="auto", help="(default: auto, the GPU where there is one)")


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="test whether two runs differ",
        description="Test whether two runs differ on the same queries. Both must have been evaluated.",
    )
    command.add_argument(
        "first", type=Path, metavar="RUN_A", help="a run folder, its best.ckpt, or an evaluation_*.npz"
    )
    command.add_argument("second", type=Path, metavar="RUN_B", help="the same of the other one")
    command.add_argument(
        "--split", metavar="NAME", help="of folders: such as val, or test_folds5 (default: test, or the only one)"
    )
    command.add_argument("--resamples", type=int, default=10_000, metavar="N", help="of the images (default: 10000)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (default: 0)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the differences")
    command.set_defaults(run=compare, interrupted="Nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
