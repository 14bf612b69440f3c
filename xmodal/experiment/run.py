"""One run: build everything, fit, test the best epoch once, leave a complete record."""

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from xmodal.callbacks.gallery import draw_gallery
from xmodal.callbacks.resume import LAST
from xmodal.callbacks.retrieval import RetrievalEvaluation
from xmodal.callbacks.run_record import RunRecord
from xmodal.callbacks.whole_checkpoints import keep_whole
from xmodal.config.values import absolute_paths, resolved
from xmodal.errors import ConfigError, XmodalError
from xmodal.experiment.callbacks import build_callbacks
from xmodal.experiment.earlier_runs import going_on
from xmodal.experiment.examples import INDEX, leave_examples
from xmodal.experiment.features import Dataset, features_of, load_dataset
from xmodal.experiment.figures import flat_figures, record_of
from xmodal.experiment.fitted_model import fitted_model
from xmodal.experiment.launch import require_one_start
from xmodal.experiment.loggers import build_loggers, callbacks_of, columns_of
from xmodal.experiment.parts import Parts, build_parts, query_encoder_config, trainer_of
from xmodal.experiment.premises import check_premises
from xmodal.experiment.provenance import INTERRUPTED, Provenance
from xmodal.experiment.resuming import EarlierRun
from xmodal.experiment.selection import with_exclusions, write_excluded
from xmodal.experiment.summary import print_summary
from xmodal.features.datamodule import PairDataModule
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.models import checkpoint
from xmodal.models.dual_encoder import DualEncoder
from xmodal.models.query_encoders import QueryEncoders
from xmodal.retrieval.evaluate import RetrievalResult
from xmodal.retrieval.record import write_record
from xmodal.retrieval.uncertainty import bootstrap_intervals
from xmodal.tracking import loggers as trackers
from xmodal.tracking.artifacts import keep_artifacts
from xmodal.tracking.wandb_run import wandb_runs

log = logging.getLogger(__name__)

# Lightning's own use of a deprecated name; no user of xmodal can do anything about it.
warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", module="pytorch_lightning")


@dataclass
class Experiment:
    """A run that is ready to fit; `build` makes one from a configuration."""

    cfg: DictConfig
    folder: Path
    datamodule: PairDataModule
    model: DualEncoder
    trainer: pl.Trainer
    record: RunRecord
    retrieval: RetrievalEvaluation
    metrics: dict[str, float]
    provenance: Provenance

    @classmethod
    def build(cls, cfg: DictConfig) -> "Experiment":
        """Read and check data, encode what has not been encoded yet, make model, loggers and trainer.

        Raises:
            XmodalError: whatever is wrong with configuration, data, features or weights, before training starts.
        """
        folder = run_folder(cfg)
        continued = going_on(cfg)  # looked for before this run has a provenance of its own
        provenance = Provenance.begin(cfg, folder)
        try:
            return cls._built(continued, folder, provenance)
        except BaseException as error:
            provenance.end_by(error)
            raise

    @classmethod
    def _built(cls, cfg: DictConfig, folder: Path, provenance: Provenance) -> "Experiment":
        cfg = absolute_paths(cfg.copy())
        parts = build_parts(cfg)
        planned = trainer_of(cfg)
        require_one_start(cfg, planned.num_devices)
        earlier = EarlierRun.of(cfg)
        if earlier is not None:
            cfg = earlier.taken_up(cfg)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        dataset = load_dataset(cfg, parts)
        provenance.tell_data(dataset.used)
        check_premises(cfg, dataset.used, planned.num_devices * planned.num_nodes)  # before features are made
        if earlier is not None:
            earlier.check_trained(cfg, parts, dataset)
        cfg = with_exclusions(cfg, dataset.excluded)
        datamodule = build_datamodule(cfg, parts, dataset)
        cfg, model = fitted_model(cfg, parts, datamodule)
        model.encoders = _query_encoders(cfg, parts)
        if getattr(rank_zero_only, "rank", 0) == 0:  # of several processes; there is no trainer yet
            OmegaConf.save(OmegaConf.create(model.encoders.config), folder / "config.yaml")
            write_excluded(folder, dataset.excluded)
        callbacks = build_callbacks(cfg, folder)
        record, retrieval = callbacks["record"], callbacks["retrieval"]
        assert isinstance(record, RunRecord)
        assert isinstance(retrieval, RetrievalEvaluation)
        loggers = build_loggers(cfg, folder)
        trackers.log_config(loggers, model.encoders.config, columns_of(cfg, folder, provenance))
        behind = [*callbacks.values(), *callbacks_of(loggers, record, retrieval)]
        trainer = instantiate(cfg.trainer, callbacks=behind, logger=loggers, default_root_dir=str(folder))
        keep_whole(trainer)
        return cls(cfg, folder, datamodule, model, trainer, record, retrieval, {}, provenance)

    def fit(self) -> None:
        """Train; on Ctrl-C say how to go on and leave with exit code 130.

        Raises:
            XmodalError: not a single step was made, so that there is no model.
        """
        with self._tracked():
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.cfg.ckpt_path, weights_only=True)
            is_kept = self._best.exists()
            self.trainer.strategy.barrier()  # all processes have looked before one of them makes it
            if not is_kept:
                self._take_last_for_best()
        epoch = checkpoint.read(self._best)["epoch"]
        figures = {name: value for name, value in self.record.row_of(epoch).items() if "/" in name}
        self.metrics = {**self.metrics, **figures, "best_epoch": epoch}

    def test(self) -> None:
        """Evaluate the best checkpoint once on ``test``; where there is none, say so and evaluate it on ``val``.

        Writes the figures at once, then ``evaluation_<split>.npz``, then their intervals and the picture.
        """
        has_test = self.cfg.test and self.datamodule.items.has_split("test")
        if not has_test:
            reason = "test=false" if not self.cfg.test else f"{self.datamodule.items.name} has no test split"
            log.info("%s: only the figures on val are reported.", reason)
        role = "test" if has_test else "val"
        with self._tracked():
            result = self._evaluate(role)
            if self.trainer.is_global_zero:  # every process has evaluated the whole gallery
                self.record.write_metrics(self.metrics)  # before resampling and drawing, which may be interrupted
                self._keep_queries(role, result)
                self._add_intervals(role, result)
                self._draw(role)
                self._leave_examples(role)

    def finish(self) -> float | None:
        """Write metrics.json, end the trackers, print the table; returns ``optimized_metric`` of the best epoch."""
        if self.trainer.is_global_zero:
            self.record.write_metrics(self.metrics)
        self.provenance.end("finished")
        try:
            self._keep_artifacts()
            trackers.finish(self.trainer.loggers, self.metrics)
        except Exception as error:  # of a tracker or its server: the run has its figures all the same
            log.warning("The tracker did not get all of the run (%s: %s).", type(error).__name__, error)
        if self.trainer.is_global_zero:
            print_summary(self.metrics, self.folder)
        return self.metrics.get(self.cfg.optimized_metric)

    @property
    def _best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    def _evaluate(self, role: str) -> RetrievalResult:
        """Add the figures of the best checkpoint on ``val`` or ``test`` to the metrics."""
        self.retrieval.keeps_embeddings = True
        run = self.trainer.test if role == "test" else self.trainer.validate
        run(self.model, self.datamodule, ckpt_path=str(self._best), verbose=False, weights_only=True)
        found = {k: round(float(v), 5) for k, v in self.trainer.callback_metrics.items() if k.startswith(f"{role}/")}
        assert self.retrieval.retrieved is not None
        result = self.retrieval.retrieved.result
        self.metrics |= found | flat_figures(role, result)  # the trainer rounds to float32
        return result

    def _keep_queries(self, role: str, result: RetrievalResult) -> None:
        """Leave the rank of every query, for comparisons with runs to come."""
        items = self.datamodule.items
        content = items.content(items.image_rows(role), items.caption_rows(role))
        kept = record_of(role, items.name, self.model.similarity, result, items.image_ids, content)
        write_record(self.folder / f"evaluation_{role}.npz", kept)

    def _add_intervals(self, role: str, result: RetrievalResult) -> None:
        if self.cfg.bootstrap:
            intervals = bootstrap_intervals(result.queries, self.cfg.bootstrap)
            self.metrics |= flat_figures(role, replace(result, intervals=intervals))
            self.record.write_metrics(self.metrics)

    def _take_last_for_best(self) -> None:
        """Training ended before its first validation (``trainer.max_steps``, ``trainer.max_time``)."""
        last = self._best.with_name(LAST)
        if not last.exists():
            raise XmodalError(
                "Training ended before there were weights to keep: raise trainer.max_epochs, max_steps or max_time; "
                "or, where callbacks.health.stop ended it, lower optimizer.lr."
            )
        log.info("No epoch was validated: the parameters as they are now are taken for the best.")
        if self.trainer.is_global_zero:
            shutil.copy2(last, self._best)
        self.trainer.strategy.barrier()
        self._evaluate("val")

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """On any failure the trackers are told; on Ctrl-C the user is told how to go on."""
        try:
            yield
        except SystemExit as ending:  # Lightning's answer to Ctrl-C
            self._leave_interrupted(ending)
        except BaseException as error:
            self.provenance.end_by(error)
            trackers.finish(self.trainer.loggers, {}, exit_code=1)
            raise

    def _draw(self, role: str) -> None:
        if self.retrieval.retrieved is None:
            return
        path = self.folder / f"gallery_{role}.png"
        draw_gallery(self.datamodule.items, self.retrieval.retrieved, path, f"{self.datamodule.items.name}, {role}")
        trackers.log_picture(self.trainer.loggers, f"{role}/gallery", path, self.trainer.global_step)

    def _leave_examples(self, role: str) -> None:
        items, similarity, loggers = self.datamodule.items, self.model.similarity, self.trainer.loggers
        leave_examples(self.folder, role, items, self.retrieval, similarity, loggers)

    def _keep_artifacts(self) -> None:
        kept = ("identity", "data", "git", "versions")
        known = {**{name: self.provenance.stated[name] for name in kept}, "similarity": self.model.similarity}
        for logger in wandb_runs(self.trainer.loggers):
            if logger.keeps_artifacts:
                metadata = {**known, "embedding_dim": self.cfg.embedding_dim, "figures": self.metrics}
                keep_artifacts(logger, self._best, self.folder / INDEX, metadata)

    def _leave_interrupted(self, ending: SystemExit) -> None:
        if not self.trainer.interrupted:
            self.provenance.end("failed", ending)
            raise SystemExit(1)
        self.provenance.end("interrupted")
        trackers.finish(self.trainer.loggers, {}, exit_code=INTERRUPTED)
        last = self._best.with_name(LAST)
        if self.provenance.stated["sweep"] is not None:
            log.info("Interrupted, and the sweep ends.")  # which says how it goes on
        elif last.exists():
            print(f"Interrupted. To go on, add to the same command: ckpt_path={last}", file=sys.stderr)
        else:
            print("Interrupted before the first training step; features extracted so far are kept.", file=sys.stderr)
        raise SystemExit(INTERRUPTED)


def build_datamodule(cfg: DictConfig, parts: Parts, dataset: Dataset) -> PairDataModule:
    """Items and features of the run."""
    features = features_of(cfg, parts, dataset)
    return PairDataModule(
        dataset.used,
        features["image"],
        features["text"],
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        relevance=cfg.data.get("relevance", "instance"),
        memory_gb=cfg.features.memory_gb,
        group_by_length=cfg.data.get("group_by_length", False),
        captions_together=cfg.data.get("captions_together", 1),
    )


def run_folder(cfg: DictConfig) -> Path:
    """The folder that Hydra made for this job; outside a Hydra job, ``paths.output_dir/runs/manual``."""
    folder = (
        Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.initialized()
        else Path(cfg.paths.output_dir) / "runs" / "manual"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _query_encoders(cfg: DictConfig, parts: Parts) -> QueryEncoders:
    config = resolved(cfg)
    config["query_encoders"] = {side: query_encoder_config(cfg, side) for side in ("image", "text")}
    prepared = {side: e for side, e in parts.encoders.items() if not isinstance(e, PrecomputedFeatures)}
    for side, maker in parts.makers.items():
        maker.prepare([], Path(cfg.paths.cache_dir))
        _compare_widths(side, maker.feature_dim, cfg.model[f"{side}_tower"].feature_dim)
    return QueryEncoders(config, prepared | parts.makers)


def _compare_widths(side: str, found: int, expected: int) -> None:
    if found != expected:
        raise ConfigError(
            f"{side}_encoder.made_by: the encoder gives vectors of width {found}, but the precomputed features have "
            f"width {expected}. Name the encoder that made them."
        )
