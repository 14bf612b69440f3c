"""What W&B shows figures over, and which of them its summary leaves to us.

Left alone, W&B takes the last value of everything into the summary, that is, the figures of the last epoch. Here the
summary has those of the best one: see `xmodal.tracking.best_epoch`.
"""

from typing import Any

EPOCH, STEP = "epoch", "trainer/global_step"
WAYS = ("i2t", "t2i", "i2i", "t2t")  # image → text …


def define_metrics(run: Any) -> None:
    """Figures of validation over epochs, those of training over steps, none of them put into the summary by W&B.

    Patterns do not overlap: which of two W&B takes is not defined.
    """
    for axis in (EPOCH, STEP):
        run.define_metric(axis, hidden=True)
    for pattern in ("val/*", *(f"{way}/val_*" for way in WAYS)):
        run.define_metric(pattern, step_metric=EPOCH, summary="none")
    run.define_metric("train/*", step_metric=STEP, summary="none")
    run.define_metric("lr-*", step_metric=STEP)
