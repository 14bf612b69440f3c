"""What a run says at its end."""

from pathlib import Path

from rich.console import Console

from xmodal.experiment.figures import figures_table


def print_summary(metrics: dict[str, float], folder: Path) -> None:
    """Print the figures of every evaluated split and where the run's files are."""
    console = Console(soft_wrap=True)
    console.print(figures_table(metrics))
    console.print(f"Run folder: {folder}", highlight=False, markup=False)
    for name in ("metrics.json", "history.csv", "config.yaml", "checkpoints/best.ckpt"):
        console.print(f"  {name}", highlight=False)
    for path in (*sorted(folder.glob("evaluation_*.npz")), *sorted(folder.glob("gallery_*.png"))):
        console.print(f"  {path.name}", highlight=False, markup=False)
