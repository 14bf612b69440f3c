"""Train and evaluate image↔text retrieval: compose → check → build → fit → test.

`python train.py --help` lists the choices; every value of `conf/` can be set on the command line.
"""

import errno
import sys
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from xmodal.config.command_line import check_command_line, report, words_of_help
from xmodal.config.sources import CONF_DIR
from xmodal.errors import ConfigError, XmodalError
from xmodal.experiment.earlier_runs import finished_run, take_over
from xmodal.experiment.launch import one_run, words_for_this_process, words_of_job
from xmodal.experiment.sweep import INTERRUPTED, job_of_sweep, whole_sweep


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; returns the figure `optimized_metric` of the best epoch, for sweepers."""
    with one_run():
        return job_of_sweep(run, cfg)


def run(cfg: DictConfig) -> float | None:
    """Build, fit, test; what the user can put right is said without a traceback."""
    if (earlier := finished_run(cfg)) is not None:
        return take_over(cfg, earlier)
    from xmodal.experiment.run import Experiment  # brings torch, which --help and a misspelt key must not wait for

    try:
        experiment = Experiment.build(cfg)
        experiment.fit()
        experiment.test()
        return experiment.finish()
    except ConfigError as error:
        stop(report(error.faults))
    except XmodalError as error:
        stop(str(error))
    except KeyboardInterrupt:  # in training, Experiment.fit answers it itself
        stop("Interrupted. What was finished (features, checkpoints, figures) is kept.", exit_code=INTERRUPTED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        stop(f"No space left for {cfg.paths.output_dir}. What was written before is kept: make room, then go on.")


def stop(message: str, exit_code: int = 2) -> NoReturn:
    """Say what is wrong, without a traceback, and leave (2: a fault that the user can put right)."""
    print(message, file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    try:
        sys.argv[1:] = words_of_help(words_of_job(sys.argv[1:]))
        check_command_line(sys.argv[1:])
        sys.argv[1:] = words_for_this_process(sys.argv[1:])
    except ConfigError as error:
        stop(report(error.faults))
    with whole_sweep(sys.argv[1:]):
        main()
