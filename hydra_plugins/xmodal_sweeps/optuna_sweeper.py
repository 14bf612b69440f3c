"""The sweeper of ``hydra/sweeper=optuna``: asks a study for settings, has them run, and tells it their figures."""

import logging
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from xmodal.experiment.study import Search

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """See ``conf/hydra/sweeper/optuna.yaml``, which states every parameter.

    A job that fails is a failed trial, and the search goes on.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        direction: str,
        study_name: str | None,
        storage: str | None,
        seed: int | None,
        sampler: Callable[..., Any],
        params: Mapping[str, str] | None,
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.direction = direction
        self.study_name = study_name
        self.storage = storage
        self.seed = seed
        self.sampler = sampler
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run what the study lacks; the best of it is said, and kept in ``optimization_results.yaml``.

        Args:
            arguments: the command line's settings and lists.
        """
        from xmodal.config.command_line import report  # imported here: every program of Hydra's loads its plugins
        from xmodal.errors import ConfigError

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        try:
            search = self._search(arguments)
        except ConfigError as error:
            print(report(error.faults), file=sys.stderr)
            sys.exit(2)
        self._run(search, folder)
        if (best := search.best()) is not None:
            settings = " ".join(f"{key}={value}" for key, value in best["best_params"].items())
            log.info("The best so far, %s %g: %s", self.config.optimized_metric, best["best_value"], settings)
            OmegaConf.save(OmegaConf.create(best), folder / "optimization_results.yaml")
        if len(sweeps := search.sweeps()) > 1:
            log.info("Trials of earlier sweeps belong to the study, too. All of them:\n  %s", _report_of(sweeps))

    def _search(self, arguments: list[str]) -> "Search":
        from xmodal.experiment.search_space import name_of, space_of
        from xmodal.experiment.study import Search, direction_of, open_study, seeded, storage_of

        stated, metric = [f"{key}={values}" for key, values in self.params.items()], self.config.optimized_metric
        space, fixed = space_of([*stated, *arguments], self.hydra_context.config_loader)
        name = self.study_name or name_of(metric, space, fixed)
        storage = storage_of(self.storage, Path(self.config.paths.output_dir) / "optuna", name)
        study = open_study(name, storage, direction_of(metric, self.direction), self.config.resume)
        study.sampler = seeded(self.sampler, self.seed, study)
        log.info("Study %s: %s %s", name, study.direction.name.lower(), metric)
        return Search(study, space, fixed)

    def _run(self, search: "Search", folder: Path) -> None:
        made = _first_free(folder)
        for remaining in range(self.n_trials - search.completed, 0, -self.n_jobs):
            asked = [search.ask(folder) for _ in range(min(self.n_jobs, remaining))]
            jobs = [search.overrides(trial) for trial in asked]
            self.validate_batch_is_legal(jobs)
            returns = self.launcher.launch(jobs, initial_job_idx=made)
            made += len(jobs)
            for trial, figure in zip(asked, _figures(returns), strict=True):
                search.tell(trial, figure)


def _report_of(sweeps: Sequence[Path]) -> str:
    return shlex.join(["xmodal", "report", *map(str, sweeps)])


def _first_free(folder: Path) -> int:
    """The number of the next job: what trials of before left in a folder that is gone on with stays."""
    return 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=-1)


def _figures(returns: Sequence[JobReturn]) -> list[float]:
    """What the jobs returned; NaN of one that failed."""
    values = [job.return_value if job.status == JobStatus.COMPLETED else None for job in returns]
    return [math.nan if value is None else float(value) for value in values]
