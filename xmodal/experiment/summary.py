"""What a run says at its end."""

from pathlib import Path

from xmodal.experiment.figures import console, figures_table


def print_summary(metrics: dict[str, float], folder: Path) -> None:
    """Print the figures of every evaluated split and where the run's files are."""
    screen = console()
    screen.print(figures_table(metrics))
    screen.print(f"Run folder: {folder}", highlight=False, markup=False)
    for name in ("metrics.json", "history.csv", "config.yaml", "checkpoints/best.ckpt"):
        screen.print(f"  {name}", highlight=False)
    for path in (
        *folder.glob("excluded.json"),
        *sorted(folder.glob("evaluation_*.npz")),
        *sorted(folder.glob("gallery_*.png")),
    ):
        screen.print(f"  {path.name}", highlight=False, markup=False)
