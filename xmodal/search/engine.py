"""Searching a saved index by sentences and photos, from Python, the command line and the web page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image

from xmodal.config.suggestions import did_you_mean
from xmodal.errors import ConfigError, DataError, FeatureError
from xmodal.models import checkpoint
from xmodal.models.dual_encoder import DualEncoder
from xmodal.reporting.embeddings import evenly, principal_plane
from xmodal.search.arguments import bytes_of, check_list, check_whole, device_of
from xmodal.search.correction import Correction, read_corrections
from xmodal.search.folder import verified
from xmodal.search.gallery import NumberedGallery, as_queries, check_k, read_gallery
from xmodal.search.items_table import IndexedItems
from xmodal.search.manifest import BANK, ITEMS, MODEL, TARGETS, Manifest, Target, read_manifest


class Hit:
    """What was found, and where it stands; what belongs to it is looked up when it is asked for.

    Attributes:
        rank: from 1.
        score: cosine, dot product or negative Euclidean distance; corrected for hubs where that was done.
        number: of the vector, among those of its side.
    """

    __slots__ = ("_engine", "_target", "number", "rank", "score")

    def __init__(self, engine: "SearchEngine", target: Target, rank: int, score: float, number: int) -> None:
        self._engine, self._target = engine, target
        self.rank, self.score, self.number = rank, score, number

    @property
    def id(self) -> str:
        """Of the item: a photo with its captions."""
        return self._engine.items.id_at(self._row)

    @property
    def file(self) -> str | None:
        """Absolute path of the photo; None for a sentence alone, or where the data set was without photos."""
        return self._engine.path_of(self._engine.items.file_at(self._row))

    @property
    def caption(self) -> str | None:
        """The one that was found, where captions were searched."""
        return self._engine.items.caption(self.number) if self._target == "captions" else None

    @property
    def captions(self) -> tuple[str, ...]:
        """All of the item."""
        return self._engine.items.captions_at(self._row)

    @property
    def split(self) -> str:
        return self._engine.items.split_at(self._row)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        names = ("rank", "score", "id", "file", "caption", "captions", "split")
        found = {name: getattr(self, name) for name in names}
        return {**found, "score": round(float(self.score), 6), "captions": list(self.captions)}

    @property
    def _row(self) -> int:
        return self._engine.items.row(self._target, self.number)

    def __repr__(self) -> str:
        return f"Hit(rank={self.rank}, score={self.score:.4f}, id={self.id!r}, caption={self.caption!r})"


class Hits(Sequence[Hit]):
    """What was found for one query, best first; a hit is made when it is asked for.

    Attributes:
        scores, numbers: of all hits.
    """

    __slots__ = ("_engine", "_target", "numbers", "scores")

    def __init__(self, engine: "SearchEngine", target: Target, scores: list[float], numbers: list[int]) -> None:
        self._engine, self._target = engine, target
        self.scores, self.numbers = scores, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> list[Hit]: ...

    def __getitem__(self, place: int | slice) -> Hit | list[Hit]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        rank = 1 + range(len(self))[place]
        return Hit(self._engine, self._target, rank, self.scores[place], self.numbers[place])

    @property
    def ids(self) -> list[str]:
        """Of the items, without a hit being made of each."""
        return self._engine.items.ids_of(self._target, self.numbers)

    def __repr__(self) -> str:
        return f"Hits({list(self)!r})"


@dataclass(frozen=True)
class MapPoints:
    """A sample of both sides on the first two principal components of their space.

    Attributes:
        ids, targets, numbers: the item of each point, its side, and the number of its vector.
        xy: coordinates.
    """

    ids: list[str]
    targets: list[Target]
    numbers: Int[np.ndarray, "n"]
    xy: Float[np.ndarray, "n 2"]


class SearchEngine:
    """A saved index and the model that made it; made by ``open``. Several threads may search at once."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        model: DualEncoder,
        items: IndexedItems,
        galleries: dict[Target, NumberedGallery],
        corrections: dict[Target, Correction],
        root: Path,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.items = items
        self.root = root
        self._model = model
        self._galleries = galleries
        self._corrections = corrections
        self._encoding = Lock()  # encoders are made when they are first used
        self._numbers: dict[tuple[Target, str], Int[np.ndarray, "n"]] = {}

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        checkpoint: str | Path | None = None,
        root: str | Path | None = None,
        device: str = "auto",
        memory_gb: float | None = None,
    ) -> "SearchEngine":
        """Open what ``xmodal index`` built, once its files and its model are found to be those that were written.

        Args:
            checkpoint: where the model is now, where it is not where the index says.
            root: where the photos are now.
            device: that the model encodes queries on; ``auto`` is the GPU where there is one, which an exact index is
                searched on, too.
            memory_gb: clusters of an index that is larger stay on disk; None: three quarters of the main memory.

        Raises:
            ConfigError: a device that is not here, or memory that is no number above 0.
            DataError: no index, a damaged one, or one of another model; no checkpoint.
            FeatureError: an index of another embedding size than the model's.
        """
        folder, given = Path(folder), None if checkpoint is None else Path(checkpoint)
        place, budget = device_of(device), bytes_of(memory_gb)
        while True:
            manifest = verified(folder)
            try:
                engine = cls._opened(folder, manifest, given, place, budget)
            except (DataError, OSError):
                if read_manifest(folder).files == manifest.files:
                    raise
            else:
                if read_manifest(folder).files == manifest.files:  # else another process has changed it meanwhile
                    engine.root = Path(manifest.root) if root is None else Path(root)
                    return engine

    @classmethod
    def _opened(
        cls, folder: Path, manifest: Manifest, given: Path | None, device: torch.device, memory_bytes: int
    ) -> "SearchEngine":
        model = trained_model(manifest, checkpoint_file(folder, manifest, given), device)
        galleries = {
            target: read_gallery(folder / f"{target}.faiss", manifest.similarity, memory_bytes)
            for target in manifest.sides
        }
        for target, gallery in galleries.items():
            _check_gallery(manifest, target, gallery)
            if device.type == "cuda":
                gallery.to_gpu()
        items = IndexedItems.read(folder / ITEMS)
        corrections = read_corrections(folder / BANK) if BANK in manifest.files else {}
        return cls(folder, manifest, model, items, galleries, corrections, Path(manifest.root))

    @property
    def has_correction(self) -> bool:
        """Whether the index holds a query bank."""
        return bool(self._corrections)

    def search_text(
        self,
        texts: Sequence[str],
        k: int = 10,
        *,
        target: Target = "images",
        split: str | None = None,
        corrected: bool | None = None,
    ) -> list[Hits]:
        """The best k photos (or captions) for each sentence.

        Args:
            target: what is searched: ``images`` or ``captions``.
            split: search the items of this split alone.
            corrected: for hubs; None: where the index holds a query bank and the query is of the other side.

        Raises:
            ConfigError: one sentence in place of a list; k below 1 or no whole number, an unknown target or split, a
                correction without a bank.
            FeatureError: the text features of the model were precomputed by an encoder that it does not name.
        """
        self.check(k, target, split, corrected)
        is_across = target == "images"
        return self.search_vectors(
            self.encode_texts(texts), k, target=target, split=split, corrected=self._usual(corrected, target, is_across)
        )

    def search_image(
        self,
        images: Sequence[str | Path | Image],
        k: int = 10,
        *,
        target: Target = "captions",
        split: str | None = None,
        corrected: bool | None = None,
    ) -> list[Hits]:
        """The best k captions (or photos) for each photo, a file or a PIL image; see ``search_text``.

        Raises:
            DataError: a file that can't be decoded.
        """
        self.check(k, target, split, corrected)
        is_across = target == "captions"
        return self.search_vectors(
            self.encode_images(images),
            k,
            target=target,
            split=split,
            corrected=self._usual(corrected, target, is_across),
        )

    def search_vectors(
        self,
        vectors: Float[np.ndarray, "Q E"],
        k: int = 10,
        *,
        target: Target,
        split: str | None = None,
        corrected: bool | None = None,
    ) -> list[Hits]:
        """The same for embeddings; ``corrected`` is False where it is not said."""
        self.check(k, target, split, corrected)
        gallery = self._galleries[target]
        queries = as_queries(vectors, gallery.width, gallery.similarity)
        among = None if split is None else self._of_split(target, split)
        if corrected:
            scores, numbers = self._corrections[target].search(gallery, queries, k, among)
        else:
            scores, numbers = gallery.search(queries, k, among)
        lines = zip(scores.tolist(), numbers.tolist(), strict=True)
        return [Hits(self, target, *(_there(*line) if line[1][-1] < 0 else line)) for line in lines]

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "Q E"]:
        """Embeddings of sentences, as the model gives them."""
        check_list(texts, "texts")
        with self._encoding:
            return self._model.encode_texts(list(texts)).float().numpy()

    def encode_images(self, images: Sequence[str | Path | Image]) -> Float[np.ndarray, "Q E"]:
        """Embeddings of photos, as the model gives them."""
        check_list(images, "images")
        with self._encoding:
            return self._model.encode_images(list(images)).float().numpy()

    def vector(self, target: Target, number: int) -> Float[np.ndarray, "E"]:
        """The embedding of what has this number: out of the index, or encoded anew where that holds codes alone."""
        gallery = self._gallery(target)
        if gallery.is_exact:
            found: Float[np.ndarray, "E"] = gallery.vectors(np.array([number]))[0]
            return found
        if target == "captions":
            return self.encode_texts([self.items.caption(number)])[0]
        file = self.path_of(self.items.file_at(self.items.row("images", number)))
        if file is None:
            raise FeatureError(f"{self.folder}: the photo of vector {number} is not known, and its vector is a code.")
        return self.encode_images([file])[0]

    def rank(
        self, vector: Float[np.ndarray, "E"], target: Target, numbers: Sequence[int], *, split: str | None = None
    ) -> int | None:
        """The rank of the best of some vectors, by uncorrected scores; equal scores of others stand before it.

        None where the index holds codes alone, or where none of the numbers is in the split.
        """
        gallery = self._gallery(target)
        among = None if split is None else self._of_split(target, split)
        wanted = np.array([one for one in numbers if among is None or one in among], dtype=np.int64)
        if not gallery.is_exact or not len(wanted):
            return None
        [query] = as_queries(vector[None], gallery.width, gallery.similarity)
        return 1 + gallery.count_better(query, wanted, among)

    def map_points(self, most: int = 3000) -> MapPoints:
        """Both sides, or an evenly spread sample of them, on a plane."""
        sides = {target: g for target, g in self._galleries.items() if g.is_exact}
        if not sides:
            return MapPoints([], [], np.zeros(0, np.int64), np.zeros((0, 2)))
        drawn = {target: self._drawn(target, most // len(sides)) for target in sides}
        vectors = np.concatenate([sides[target].vectors(numbers) for target, numbers in drawn.items()])
        xy, _ = principal_plane(vectors.astype(np.float64))
        targets = [target for target, numbers in drawn.items() for _ in numbers]
        every = np.concatenate(list(drawn.values()))
        ids = [self.items.id_at(self.items.row(t, n)) for t, n in zip(targets, every.tolist(), strict=True)]
        return MapPoints(ids, targets, every, xy)

    def path_of(self, file: str | None) -> str | None:
        """Where a photo of the table is now."""
        return None if file is None else str(self.root / file)

    def check(self, k: int, target: Target, split: str | None, corrected: bool | None) -> None:
        """Raise ConfigError for what can't be searched, before anything is encoded."""
        if type(k) is not int:
            check_whole(k)
        check_k(k)
        if target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, found {target!r}.")
        self._gallery(target)
        if split is not None and split not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise ConfigError(
                f"The index has no split {split!r}, but {known}.{did_you_mean(split, self.manifest.splits)}"
            )
        if corrected and target not in self._corrections:
            raise ConfigError(
                f"The index holds no query bank to correct {target} with. Build it with one: xmodal index RUN "
                "--query-bank 5000"
            )

    def _usual(self, corrected: bool | None, target: Target, is_across: bool) -> bool:
        """Corrected where nothing else is said: the bank is of queries of the other side."""
        return target in self._corrections and is_across if corrected is None else corrected

    def _gallery(self, target: Target) -> NumberedGallery:
        if target not in self._galleries:
            raise ConfigError(f"The index {self.folder} holds no {target}, but {', '.join(self._galleries)}.")
        return self._galleries[target]

    def _of_split(self, target: Target, split: str) -> Int[np.ndarray, "n"]:
        if (target, split) not in self._numbers:
            self._numbers[target, split] = self.items.numbers(target, split)
        return self._numbers[target, split]

    def _drawn(self, target: Target, most: int) -> Int[np.ndarray, "n"]:
        numbers = self.items.numbers(target)
        return numbers[evenly(len(numbers), most)]


def _there(scores: list[float], numbers: list[int]) -> tuple[list[float], list[int]]:
    """Fewer were found than asked for, and those come first."""
    count = numbers.index(-1)
    return scores[:count], numbers[:count]


def checkpoint_file(folder: Path, manifest: Manifest, given: Path | None) -> Path:
    """The checkpoint of an index: the one that is named, else that in its folder, else where the index says.

    Raises:
        DataError: there is none.
    """
    if given is not None:
        from xmodal.experiment.opened_run import checkpoint_of

        return checkpoint_of(given)
    inside = [folder / MODEL] if MODEL in manifest.files else []
    places = (*inside, Path(manifest.checkpoint), folder / manifest.checkpoint_nearby)
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"The model of the index {folder} is gone: there is no {manifest.checkpoint}. Say where it is now: "
        "--checkpoint RUN_OR_CHECKPOINT (in Python: SearchEngine.open(folder, checkpoint=…))."
    )


def trained_model(manifest: Manifest, file: Path, device: torch.device) -> DualEncoder:
    """The model of a checkpoint, made sure to be the one that made the index.

    Raises:
        DataError: another one.
        FeatureError: one of another embedding size.
    """
    content = checkpoint.read(file)
    found = checkpoint.model_digest(content)
    if found != manifest.model_digest:
        width = checkpoint.embedding_dim(content)
        if width != manifest.embedding_dim:
            raise FeatureError(
                f"{file} embeds in {width} dimensions, the index was made in {manifest.embedding_dim}: it is of "
                "another model. Build an index of this one: xmodal index RUN"
            )
        raise DataError(
            f"{file} is not the model that made the index (digest {found[:12]}…, expected "
            f"{manifest.model_digest[:12]}…): it has been trained since, or is another run, and distances would mean "
            "nothing. Name the right one with --checkpoint, or build the index again: xmodal index RUN"
        )
    return checkpoint.model_of(content, device)


def _check_gallery(manifest: Manifest, target: Target, gallery: NumberedGallery) -> None:
    """That the index file is what the manifest says of it."""
    side = manifest.sides[target]
    if (len(gallery), gallery.width) != (side.count, manifest.embedding_dim):
        raise DataError(
            f"{target}.faiss holds {len(gallery):,} vectors of width {gallery.width}, the index says {side.count:,} of "
            f"width {manifest.embedding_dim}. Build the index again."
        )
