"""The Wikipedia benchmark of image-text pairs with class labels, distributed as features without photos or texts.

N. Rasiwasia et al., A New Approach to Cross-Modal Multimedia Retrieval, ACM Multimedia 2010.
"""

from pathlib import Path

from xmodal.data.faults import Faults
from xmodal.data.items import Caption, ImageItem, Items
from xmodal.errors import ConfigError, DataError

LISTS = {"train": "trainset_txt_img_cat.list", "test": "testset_txt_img_cat.list"}
CATEGORIES = "categories.list"


class WikipediaData:
    """Pairs of an image and a text, in the order of the lists (training pairs, then test pairs), labelled by category.

    There is no published validation split: every ``val_every``-th training pair becomes ``val``.

    Args:
        name: what reports and feature files call the data set.
        root: folder of the three ``.list`` files.
        val_every: at least 2; 0 leaves all training pairs for training.
    """

    def __init__(self, name: str, root: str | Path, val_every: int = 10) -> None:
        if val_every < 0 or val_every == 1:
            raise ConfigError(f"data.val_every must be 0 (no val split) or at least 2, found {val_every}.")
        self.name = name
        self.root = Path(root)
        self.val_every = val_every

    def missing(self) -> list[str]:
        """Sentences about what has to be there before loading and isn't; empty where all is well."""
        absent = [file for file in (*LISTS.values(), CATEGORIES) if not (self.root / file).is_file()]
        if not absent:
            return []
        return [
            f"The data set {self.name} lacks {', '.join(absent)} in {self.root}. Put the files there, or type where "
            f"they are: data.root=/path/to/{self.name}."
        ]

    def load(self) -> Items:
        """Read and check the lists; raises one DataError that names all bad rows."""
        if absent := self.missing():
            raise DataError("\n".join(absent))
        categories = (self.root / CATEGORIES).read_text(encoding="utf-8").split()
        faults = Faults(str(self.root))
        images: list[ImageItem] = []
        captions: list[Caption] = []
        for split, file in LISTS.items():
            lines = (self.root / file).read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, start=1):
                pair = _pair(line, categories)
                if pair is None:
                    kind = f"Rows that are not text id, image id and category 1 … {len(categories)}, with tabs between"
                    faults.add(kind, f"{file} row {number} ({line[:60]!r})")
                    continue
                text_id, image_id, label = pair
                captions.append(Caption(text_id, len(images), ""))
                images.append(ImageItem(image_id, self._split(split, number), None, label))
        _find_duplicates([str(image.image_id) for image in images], "Image ids used more than once", faults)
        _find_duplicates([str(caption.caption_id) for caption in captions], "Text ids used more than once", faults)
        faults.raise_if_any()
        return Items(self.name, tuple(images), tuple(captions))

    def _split(self, split: str, number: int) -> str:
        is_val = split == "train" and self.val_every > 0 and number % self.val_every == 0
        return "val" if is_val else split


def _pair(line: str, categories: list[str]) -> tuple[str, str, str] | None:
    """(text id, image id, category name) of one row; None where it has another form."""
    cells = line.split("\t")
    if len(cells) != 3 or not all(cells) or not cells[2].isdecimal() or not 1 <= int(cells[2]) <= len(categories):
        return None
    return cells[0], cells[1], categories[int(cells[2]) - 1]


def _find_duplicates(ids: list[str], kind: str, faults: Faults) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            faults.add(kind, value)
        seen.add(value)
