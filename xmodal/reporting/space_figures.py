"""The space of embeddings: both modalities on a plane, and the similarities of a sample."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator

from xmodal.reporting.embeddings import Sample, comparable, evenly, principal_plane, read_sample, similarities
from xmodal.reporting.groups import Group
from xmodal.reporting.names import slug
from xmodal.reporting.pictures import Picture, Plate
from xmodal.reporting.ranking import best_with, which_run
from xmodal.reporting.style import COLUMN, MUTED, SERIES

_MOST_PAIRS = 250
_MOST_COMPARED = 40
_SIZE = (COLUMN, 3.0)


def space_plates(group: Group) -> Iterator[Plate]:
    """Of the best run that keeps a sample of its embeddings.

    Raises:
        DataError: the file is damaged.
    """
    file = f"embeddings_{group.runs[0].split}.npz"
    run = best_with(group, file)
    if run is None:
        return
    sample = read_sample(run.folder / file)
    pictures = (_plane(sample, group), _matrix(sample, group))
    caption = f"Embeddings of {which_run(group, run)}. {_about_plane(sample)} {_about_matrix(sample)}"
    yield Plate("space", group.title, "The embedding space", caption, pictures)


def _about_plane(sample: Sample) -> str:
    pairs = len(evenly(len(sample.image), _MOST_PAIRS))
    return (
        f"Left: {pairs} images and one caption of each on the first two principal components of both together; a thin "
        "line joins what belongs together. Distances on a plane are not those of the space."
    )


def _about_matrix(sample: Sample) -> str:
    matrix = similarities(sample)
    rows = evenly(len(matrix), _MOST_COMPARED)
    small = matrix[np.ix_(rows, rows)]
    first = int((small.argmax(axis=1) == np.arange(len(small))).sum())
    return (
        f"Right: {sample.similarity} similarity of {len(small)} images (rows) with one caption of each (columns), in "
        f"the order of the first component; matches lie on the diagonal: {np.diag(small).mean():z.2f} on average, "
        f"{_elsewhere(small)} elsewhere. For {first} of {len(small)} images the match is the greatest in its row."
    )


def _elsewhere(matrix: np.ndarray) -> str:
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    return f"{others.mean():z.2f}" if len(others) else "nothing"


def _plane(sample: Sample, group: Group) -> Picture:
    rows = evenly(len(sample.image), _MOST_PAIRS)
    image, text = (side[rows] for side in comparable(sample))
    places, held = principal_plane(np.concatenate([image, text]))
    places = places.round(6)
    of_images, of_texts = places[: len(rows)], places[len(rows) :]

    def draw(axes: Axes) -> None:
        lines = np.stack([of_images, of_texts], axis=1)
        axes.add_collection(LineCollection(list(lines), colors=MUTED, linewidths=0.4, alpha=0.3, zorder=1))
        for side, number, marker, name in ((of_images, 0, "o", "images"), (of_texts, 1, "^", "captions")):
            axes.scatter(
                side[:, 0], side[:, 1], s=9, color=SERIES[number], marker=marker, lw=0, alpha=0.85, label=name, zorder=2
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"first component, {100 * held[0]:.0f} % of the variance")
        axes.set_ylabel(f"second, {100 * held[1]:.0f} %")
        axes.set_title("Images and captions")
        axes.legend(loc="upper right", frameon=False, fontsize=7, handletextpad=0.2, borderpad=0.1, markerscale=1.5)

    return Picture(f"{slug(group.title)}_projection", "Images and captions on their principal plane", draw, _SIZE)


def _matrix(sample: Sample, group: Group) -> Picture:
    rows = evenly(len(sample.image), _MOST_COMPARED)
    image, text = (side[rows] for side in comparable(sample))
    places, _ = principal_plane(np.concatenate([image, text]))
    order = rows[np.argsort(places[: len(rows), 0].round(6), kind="stable")]
    matrix = similarities(sample)[np.ix_(order, order)]

    def draw(axes: Axes) -> None:
        drawn = axes.imshow(matrix, cmap="cividis", interpolation="nearest")
        bar = axes.figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.03)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4)
        bar.ax.tick_params(length=0)
        axes.set(xticks=[], yticks=[], xlabel="captions", ylabel="images")
        axes.set_title(f"{sample.similarity.capitalize()} similarity")
        axes.spines[:].set_visible(False)

    return Picture(f"{slug(group.title)}_similarity", "Similarities of a sample", draw, _SIZE)
