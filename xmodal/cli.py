"""The `xmodal` command.

`xmodal extract` computes the features of an experiment ahead of training; it takes the overrides of `train.py`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from xmodal import __version__
from xmodal.config.command_line import check_command_line, compose, report
from xmodal.errors import ConfigError, XmodalError

USAGE_FAULT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code (2: a fault the user can put right, 130: Ctrl-C)."""
    parsed, overrides = _parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("gensim").setLevel(logging.WARNING)
    try:
        return parsed.run(parsed, [*parsed.overrides, *overrides])
    except ConfigError as error:
        print(report(error.faults), file=sys.stderr)
        return USAGE_FAULT
    except XmodalError as error:
        print(error, file=sys.stderr)
        return USAGE_FAULT
    except KeyboardInterrupt:
        print("Interrupted. Finished chunks are kept: the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED


def extract(parsed: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Encode every image and caption of the configured data set (or one side of it) into the feature store."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xmodal", description="Tools around train.py.")
    parser.add_argument("--version", action="version", version=f"xmodal {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "extract",
        help="compute features ahead of training",
        description="Compute the features of an experiment ahead of training. Takes the overrides of train.py, "
        "for example: xmodal extract data=flickr8k image_encoder=vgg text_encoder=bert",
    )
    command.add_argument("--only", choices=("image", "text"), help="one side alone, as for captions without photos")
    command.add_argument("overrides", nargs="*", help="overrides as for train.py")
    command.set_defaults(run=extract)
    return parser


if __name__ == "__main__":
    sys.exit(main())
