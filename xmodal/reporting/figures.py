"""All figures of a report."""

from collections.abc import Sequence

from xmodal.errors import DataError
from xmodal.reporting.groups import Group
from xmodal.reporting.loss_figures import loss_plates
from xmodal.reporting.pictures import Plate
from xmodal.reporting.rank_figures import rank_plates
from xmodal.reporting.recall_figures import recall_plates
from xmodal.reporting.space_figures import space_plates

_MAKERS = (recall_plates, loss_plates, rank_plates, space_plates)


def plates_of(groups: Sequence[Group]) -> tuple[list[Plate], list[str]]:
    """The plates of every group, and what keeps others from being drawn; a sentence each."""
    plates: list[Plate] = []
    faults: list[str] = []
    for group in groups:
        for make in _MAKERS:
            try:
                plates += make(group)
            except DataError as fault:
                faults.append(f"{group.title}: {fault}")
    return plates, faults
