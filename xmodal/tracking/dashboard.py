"""The standard dashboard of a W&B project, defined in code: a workspace with a section for every question.

Needs the extra ``dashboards`` (wandb-workspaces). Nothing here imports torch.
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from xmodal.errors import XmodalError
from xmodal.tracking.axes import EPOCH, STEP

DIRECTIONS = {"i2t": "Image → text", "t2i": "Text → image"}
_PARTS = ("image_encoder", "text_encoder", "image_aggregator", "text_aggregator", "loss", "embedding_dim")
_FIGURES = ("test/rsum", "test/i2t_R1", "test/t2i_R1", "val/rsum", "best_epoch")
_RECALL = {"R1": "R@1", "R5": "R@5", "R10": "R@10"}
_MOST_RUNS = 50  # lines per chart


def standard_dashboard(
    entity: str, project: str, name: str = "xmodal", group: str | None = None, monitor: str = "val/rsum"
) -> workspaces.Workspace:
    """The workspace, which nobody has been sent yet.

    Runs stand in the order of what was monitored, the best first, with parts and main figures as columns. What no
    section shows follows in sections that W&B makes itself.

    Args:
        entity: team or user.
        project: of the runs.
        name: of the saved view.
        group: the sweep to show; None: all runs.
        monitor: the figure that runs are ordered by.
    """
    chosen = [workspaces.Metric("Group") == group] if group is not None else []
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            _overview(monitor),
            *(_direction(way, title) for way, title in DIRECTIONS.items()),
            _training(),
            _space(),
        ],
        settings=workspaces.WorkspaceSettings(group_by_prefix="first", max_runs=_MOST_RUNS),
        runset_settings=workspaces.RunsetSettings(
            filters=chosen,
            order=[workspaces.Ordering(workspaces.Summary(monitor), ascending=False)],
            pinned_columns=[
                *(f"config:{part}.value" for part in _PARTS),
                *(f"summary:{figure}" for figure in _FIGURES),
            ],
        ),
        auto_generate_panels=True,
    )


def spec_of(dashboard: workspaces.Workspace) -> dict[str, Any]:
    """What is sent to W&B: plain values."""
    sent: dict[str, Any] = dashboard._model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return sent


def save(dashboard: workspaces.Workspace) -> str:
    """Save it as a new view of the project; returns its address.

    Raises:
        XmodalError: W&B can't be reached, does not take the key, or knows no such project.
    """
    try:
        return str(dashboard.save().url)
    except Exception as error:  # W&B's are of several modules, which change from version to version
        raise XmodalError(
            f"The dashboard of {dashboard.entity}/{dashboard.project} was not saved: {type(error).__name__}: {error}. "
            "Check --entity and --project, the key (`wandb login`) and the network; --json FILE needs none of them."
        ) from error


def _overview(monitor: str) -> workspaces.Section:
    columns = [reports.ParallelCoordinatesPlotColumn(metric=reports.Config(part)) for part in _PARTS]
    columns.append(reports.ParallelCoordinatesPlotColumn(metric=reports.SummaryMetric(monitor)))
    size, rsum = reports.Config("embedding_dim"), reports.SummaryMetric("test/rsum")
    panels = [
        _over(EPOCH, f"{monitor} over the epochs", [monitor]),
        reports.BarPlot(title="rsum on test", metrics=["test/rsum"], max_bars_to_show=_MOST_RUNS),
        reports.ScatterPlot(title="rsum on test against embedding size", x=size, y=rsum, log_x=True),
        reports.ParallelCoordinatesPlot(title=f"Parts and {monitor}", columns=columns),
    ]
    return _section("Overview", panels, columns=2, pinned=True)


def _direction(way: str, title: str) -> workspaces.Section:
    """Recall over the epochs, where matches stand, and what was retrieved."""
    recalls = [_over(EPOCH, f"{shown}, validation (%)", [f"{way}/val_{figure}"]) for figure, shown in _RECALL.items()]
    panels = [
        *recalls,
        _over(EPOCH, "Median rank, validation", [f"{way}/val_medR"]),
        _over(EPOCH, "mAP, validation (%)", [f"{way}/val_mAP"]),
        _over(EPOCH, "Ranks of matches, log10, validation", [f"{way}/val_log10_rank"]),
        reports.BarPlot(title="R@1 on test (%)", metrics=[f"test/{way}_R1"], max_bars_to_show=_MOST_RUNS),
        reports.WeavePanelSummaryTable(table_name=f"{way}/test_retrieved"),
    ]
    return _section(title, panels)


def _training() -> workspaces.Section:
    panels = [
        _over(EPOCH, "Loss of training and validation", ["train/loss", "val/loss"]),
        _over(STEP, "Loss of single steps", ["train/loss_step"]),
        reports.LinePlot(title="Learning rate", x=STEP, metric_regex="^lr-"),
        _over(EPOCH, "Pairs per second", ["train/pairs_per_second"]),
        reports.MediaBrowser(title="What was retrieved", media_keys=["test/gallery", "val/gallery"], num_columns=1),
    ]
    return _section("Training", panels)


def _space() -> workspaces.Section:
    sides = ("image", "text")
    panels = [
        _over(EPOCH, "Alignment", ["val/alignment"]),
        _over(EPOCH, "Uniformity", [f"val/{side}_uniformity" for side in sides]),
        _over(EPOCH, "Effective rank", [f"val/{side}_effective_rank" for side in sides]),
        _over(EPOCH, "Mean similarity within a side", [f"val/{side}_similarity" for side in sides]),
    ]
    return _section("Space of the embeddings", panels, is_open=False)


def _section(
    name: str, panels: Sequence[Any], columns: int = 3, pinned: bool = False, is_open: bool = True
) -> workspaces.Section:
    rows = -(-len(panels) // columns)
    layout = workspaces.SectionLayoutSettings(columns=columns, rows=rows)
    return workspaces.Section(name=name, panels=list(panels), is_open=is_open, pinned=pinned, layout_settings=layout)


def _over(axis: str, title: str, figures: Sequence[str]) -> reports.LinePlot:
    return reports.LinePlot(title=title, x=axis, y=list(figures), max_runs_to_show=_MOST_RUNS)
