"""A trained model's embeddings of its own data set, in the splits that an evaluation needs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError
from xmodal.experiment.embedded import Embedded
from xmodal.experiment.features import load_dataset
from xmodal.experiment.gallery import Gallery, split_of
from xmodal.experiment.opened_run import BEST, SavedRun, typed_keys
from xmodal.experiment.selection import left_out

# settings of the data that do not change which items there are
_PLACE_AND_LOADING = {
    "root",
    "image_folder",
    "batch_size",
    "num_workers",
    "default_weights",
    "relevance",
    "group_by_length",
    "captions_together",
}


def embed_run(place: Path, options: EvaluationOptions, overrides: Sequence[str], device: torch.device) -> Embedded:
    """What an evaluation of a run needs: its model, its data set with the overrides, and the embeddings of both sides.

    Features come from the store where they are there.

    Raises:
        DataError: no checkpoint, a split that does not exist, or items without labels where classes count.
        ConfigError: faults of the overrides, files that are not where the configuration says, a number of folds that
            does not divide that of the images, or a correction that needs its temperature said.
        FeatureError: features of another width than the model's.
        WeightsError: an encoder other than the one that the model was trained with.
    """
    saved = SavedRun.read(place, overrides, device, options.relevance)
    cfg = saved.cfg
    if fault := options.temperature_fault(cfg.model.similarity):
        raise ConfigError(fault)
    parts = saved.parts()
    dataset = load_dataset(cfg, parts)
    split = split_of(dataset.used, options)
    chosen = Gallery.of(dataset.used, split, options.gallery == "all")
    if fault := options.folds_fault(len(chosen.images)):  # before anything is encoded
        raise ConfigError(fault)
    run = saved.opened(parts, dataset)
    usual = saved.saved_config["data"].get("relevance", "instance")
    name = replace(options, relevance=cfg.data.relevance).name(split, usual)
    return Embedded(
        name=name,
        data_name=run.items.name,
        description=f"{saved.file}: {chosen.description(run.items.name, split)}{left_out(dataset.excluded)}, "
        f"{run.model.similarity} similarity",
        similarity=run.model.similarity,
        record=None if _other_items(overrides) else _record(saved.file, name),
        image=run.images(chosen.images),
        text=run.texts(chosen.captions),
        image_ids=chosen.images,
        text_image_ids=run.items.caption_images[chosen.captions],
        names=run.items.image_ids,
        content=run.items.content(chosen.images, chosen.captions),
        image_queries=chosen.image_queries,
        text_queries=chosen.text_queries,
        ks=tuple(cfg.callbacks.retrieval.get("ks", (1, 5, 10))),
        sizes=run.model.objective.sizes,
        normalize=run.model.objective.normalize,
        **(chosen.labels(run.items) if cfg.data.relevance == "class" else {}),
        **(run.banks(options) if options.rerank else {}),
    )


def _other_items(overrides: Sequence[str]) -> bool:
    """Whether other items are evaluated than those of the run, such as the first few of them."""
    keys = [key.split(".") for key in typed_keys(overrides)]
    return any(key[0] == "data" and key[1] not in _PLACE_AND_LOADING for key in keys)


def _record(file: Path, name: str) -> Path:
    """In the run's folder for its best checkpoint; beside any other, under its name."""
    folder = file.parent.parent
    if file.name == BEST and (folder / "config.yaml").is_file():
        return folder / f"evaluation_{name}.npz"
    return file.with_name(f"{file.stem}.evaluation_{name}.npz")
