"""All figures of a report."""

from collections.abc import Sequence
from dataclasses import replace

from xmodal.errors import DataError
from xmodal.reporting.groups import Group
from xmodal.reporting.loss_figures import loss_plates
from xmodal.reporting.pictures import Picture, Plate
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
    return _with_unique_names(plates), faults


def _with_unique_names(plates: Sequence[Plate]) -> list[Plate]:
    """A number follows where names of groups differ in signs that no name of a file has."""
    taken: dict[str, int] = {}

    def named(picture: Picture) -> Picture:
        taken[picture.name] = number = taken.get(picture.name, 0) + 1
        return picture if number == 1 else replace(picture, name=f"{picture.name}-{number}")

    return [
        replace(plate, pictures=tuple(map(named, plate.pictures)), more=tuple(map(named, plate.more)))
        for plate in plates
    ]
