"""The small table at the end of a run."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

_COLUMNS = ("R1", "R5", "R10", "medR", "meanR", "mAP")
_DIRECTIONS = {"i2t": "image → text", "t2i": "text → image"}


def print_summary(metrics: dict[str, float], folder: Path) -> None:
    """Print the figures of every evaluated split and where the run's files are."""
    console = Console(soft_wrap=True)
    console.print(_table(metrics))
    console.print(f"Run folder: {folder}", highlight=False)
    for name in ("metrics.json", "history.csv", "config.yaml", "checkpoints/best.ckpt"):
        console.print(f"  {name}", highlight=False)
    for picture in sorted(folder.glob("gallery_*.png")):
        console.print(f"  {picture.name}", highlight=False)


def _table(metrics: dict[str, float]) -> Table:
    table = Table(title="Retrieval (R@K and mAP in percent)")
    for heading in ("split", "direction", "R@1", "R@5", "R@10", "medR", "meanR", "mAP", "rsum"):
        table.add_column(heading, justify="left" if heading in ("split", "direction") else "right")
    for split in ("val", "test"):
        for direction, words in _DIRECTIONS.items():
            if f"{split}/{direction}_R1" in metrics:
                figures = [f"{metrics[f'{split}/{direction}_{column}']:.1f}" for column in _COLUMNS]
                rsum = f"{metrics[f'{split}/rsum']:.1f}" if direction == "i2t" else ""
                table.add_row(split, words, *figures, rsum)
    return table
