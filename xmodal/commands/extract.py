"""`xmodal extract`: the features of an experiment, computed ahead of training."""

import argparse
from collections.abc import Sequence
from typing import Any

from xmodal.config.command_line import check_command_line, compose
from xmodal.errors import ConfigError


def add(commands: Any) -> None:
    command = commands.add_parser(
        "extract",
        help="compute features ahead of training",
        description="Compute the features of an experiment ahead of training. Takes the overrides of train.py, "
        "for example: xmodal extract data=flickr8k image_encoder=vgg text_encoder=bert",
    )
    command.add_argument("--only", choices=("image", "text"), help="one side alone, as for captions without photos")
    command.add_argument("overrides", nargs="*", help="overrides as for train.py")
    command.set_defaults(
        run=run, parser=command, interrupted="Finished chunks are kept: the same command goes on from there."
    )


def run(parsed: argparse.Namespace, rest: Sequence[str]) -> int:
    """Encode every image and caption of the configured data set (or one side of it) into the feature store."""
    overrides = [*parsed.overrides, *rest]
    _refuse_flags(overrides)
    check_command_line(overrides)
    cfg = compose(overrides)
    if not cfg.features.store:
        raise ConfigError("features.store=false: extracting would keep nothing. Leave it out (debug=fast sets it too).")
    from xmodal.commands.feature_files import described
    from xmodal.experiment.features import load_dataset, made_features
    from xmodal.experiment.parts import build_parts
    from xmodal.features.shards import Place

    modalities = (parsed.only,) if parsed.only else ("image", "text")
    parts = build_parts(cfg, modalities)
    dataset = load_dataset(cfg, parts, modalities)
    for modality in modalities:
        made = made_features(cfg, parts, dataset, (modality,))[modality]
        if Place.of_this_process().rank == 0:  # of those that torchrun started, one speaks
            print(f"{modality}: {described(made)}", flush=True)
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
