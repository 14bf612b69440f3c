import itertools
import logging
import multiprocessing
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from xmodal.data.items import Items
from xmodal.errors import ConfigError, FeatureError
from xmodal.features.datamodule import PairDataModule
from xmodal.features.live import LiveImages
from xmodal.features.memory import Budget, in_gb, least_buffer
from xmodal.features.readers import SetReader
from xmodal.features.residence import open_features
from xmodal.features.store import FeatureFile, FeatureOrigin, finish_file
from xmodal.features.streaming import PairStream, SetStream, _blocks, read_ahead
from xmodal.types import FeatureBatch, PairBatch, RaggedFeatures


def _marked(lengths: list[int]) -> RaggedFeatures:
    """Sets whose vectors say (their set, their place in it)."""
    return RaggedFeatures.from_sets([np.array([[i, k] for k in range(n)]).reshape(n, 2) for i, n in enumerate(lengths)])


def _on_disk(path: Path, features: RaggedFeatures) -> FeatureFile:
    with h5py.File(path, "w") as file:
        for name, array in (("values", features.values), ("codes", features.codes)):
            if array is not None:
                pieces = {"chunks": (min(3, len(array)), *array.shape[1:]), "fletcher32": True} if len(array) else {}
                file.create_dataset(name, data=array, **pieces)
        origin = FeatureOrigin({}, "d", features.values.dtype.name)
        finish_file(file, origin, list(range(len(features))), features.offsets)
    file = FeatureFile(path)
    file.verify()
    return file


@pytest.mark.parametrize("option", ["group_by_length=true", "captions_together=2"])
def test_batches_are_not_composed_of_features_on_disk(make_items, tmp_path: Path, option: str) -> None:
    images, texts = _marked([2, 1, 3]), _marked([1, 2, 3, 1, 2, 2])
    file = _on_disk(tmp_path / "text.h5", texts)
    key, _, value = option.partition("=")
    options = {key: value == "true" or int(value)}
    needed = in_gb(file.nbytes + images.nbytes)
    with pytest.raises(ConfigError, match=rf"data.{option} needs all features in memory.* at least {needed}, or leave"):
        PairDataModule(make_items([2, 2, 2]), images, file, batch_size=2, **options)
    paths = {"text": tmp_path / "text.h5"}
    opened = open_features(paths, float(needed), 2, {"image": images})
    assert len(
        PairDataModule(make_items([2, 2, 2]), images, opened["text"], batch_size=2, **options).train_dataloader()
    )


def _sets(batch: FeatureBatch) -> list[list[list[float]]]:
    return [x[mask].tolist() for x, mask in zip(batch.x, batch.mask, strict=True)]


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


class Case:
    """Images with captions in any order, their features on disk and in memory."""

    def __init__(self, folder: Path, image_lengths: list[int], text_lengths: list[int], owners: list[int]) -> None:
        self.images, self.texts = _marked(image_lengths), _marked(text_lengths)
        self.image_file = _on_disk(folder / "image.h5", self.images)
        self.text_file = _on_disk(folder / "text.h5", self.texts)
        self.owners = np.array(owners, dtype=np.int64)

    def stream(self, rows: np.ndarray, on_disk: str, batch_size: int, buffer: int, epoch: int = 0) -> PairStream:
        image = self.image_file if "image" in on_disk else SetReader(self.images)
        text = self.text_file if "text" in on_disk else SetReader(self.texts)
        shares = Budget(buffer * 8 // 3 + 3)
        return PairStream(image, text, self.owners[rows], rows, batch_size, shares, seed=3, epoch=epoch)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    images = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    owners = draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=25))
    return images, draw(st.lists(st.integers(0, 4), min_size=len(owners), max_size=len(owners))), owners


def _check_batch(batch: PairBatch, case: Case) -> list[int]:
    """Caption rows of a batch, all of it compared with a naive loop; sets without vectors can't say who they are."""
    assert torch.equal(batch.image.image_ids, batch.text.image_ids)
    ids = batch.image.image_ids.tolist()
    for side, features in ((batch.image, case.images), (batch.text, case.texts)):
        longest = max(1, int(side.mask.sum(dim=1).max()))
        assert side.x.shape == (len(ids), longest, 2)
        assert side.x.dtype == torch.float32
        assert not side.x[~side.mask].any()
        assert features.feature_dim == 2
    rows = []
    for image, text, owner in zip(_sets(batch.image), _sets(batch.text), ids, strict=True):
        assert image == case.images[owner].tolist()
        row = int(text[0][0]) if text else -1 - owner
        assert row < 0 or (text == case.texts[row].tolist() and case.owners[row] == owner)
        rows.append(row)
    return rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=_cases(),
    on_disk=st.sampled_from(["image", "text", "image text"]),
    batch_size=st.integers(1, 7),
    buffer=st.sampled_from([250, 700, 10**6]),
    data=st.data(),
)
def test_each_pair_comes_once_in_full_batches(
    lengths: tuple, on_disk: str, batch_size: int, buffer: int, data: st.DataObject, tmp_path: Path
) -> None:
    case = Case(tmp_path, *lengths)
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(case.owners), max_size=len(case.owners))))
    rows = rows if len(rows) else np.arange(len(case.owners))
    stream = case.stream(rows, on_disk, batch_size, buffer)
    batches = list(stream)
    sizes = [len(batch.image.x) for batch in batches]
    assert len(batches) == len(stream) == -(-len(rows) // batch_size)
    assert all(size == batch_size for size in sizes[:-1])
    found = [row for batch in batches for row in _check_batch(batch, case)]
    wanted = [row if case.texts.lengths[row] else -1 - int(case.owners[row]) for row in rows.tolist()]
    assert Counter(found) == Counter(wanted)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    random = np.random.default_rng(0)
    owners = random.permutation(np.repeat(np.arange(40), 5)).tolist()
    return Case(tmp_path, random.integers(1, 4, 40).tolist(), random.integers(1, 6, 200).tolist(), owners)


def _order(stream: PairStream) -> list[int]:
    return [int(row) for batch in stream for row in batch.text.x[:, 0, 0]]


def test_the_order_is_shuffled_and_depends_on_seed_and_epoch_alone(case: Case) -> None:
    rows = np.arange(200)
    stream = case.stream(rows, "image text", 16, 3000)
    first, second = _order(stream), _order(stream)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first != second
    torch.manual_seed(9)
    np.random.seed(9)  # the global generator must not matter
    again = case.stream(rows, "image text", 16, 3000)
    again.sampler.set_epoch(1)
    assert _order(again) == second
    assert _order(case.stream(rows, "image text", 16, 3000, epoch=1)) == second
    blocks = [case.owners[block] for block in stream.sampler.blocks]
    assert len(blocks) > 16
    assert all(np.ptp(block) <= len(set(block.tolist())) for block in blocks)  # neighbours
    assert np.corrcoef(np.arange(200), case.owners[first])[0, 1] < 0.5


def test_buffers_stay_within_their_share(case: Case) -> None:
    stream = case.stream(np.arange(200), "image text", 16, 3000)
    buffers = stream.sampler.buffers()
    assert len(buffers) > 3
    for pairs in buffers:
        images = case.images.select(np.unique(case.owners[pairs]))
        assert images.values.nbytes + case.texts.select(pairs).values.nbytes <= 3000


def test_one_image_with_all_captions_is_parted(tmp_path: Path) -> None:
    case = Case(tmp_path, [2, 1], [1] * 300, [0] * 299 + [1])
    stream = case.stream(np.arange(300), "image text", 8, 2000)
    assert len(stream.sampler.blocks) > 20
    assert sorted(_order(stream)) == list(range(300))


def test_a_set_larger_than_a_buffer_is_an_error_that_names_the_least_memory(tmp_path: Path) -> None:
    case = Case(tmp_path, [1000] * 4, [1] * 4, [0, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"too small to stream.*has to hold 0.000008534 GB") as error:
        case.stream(np.arange(4), "image", 1, 1000)
    least = float(re.search(r"at least (0\.\d+)", str(error.value)).group(1))
    shares = Budget(round(least * 1e9))
    stream = PairStream(case.image_file, SetReader(case.texts), case.owners, np.arange(4), 1, shares, seed=0)
    assert len(list(stream)) == 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    block=st.integers(1, 200),
    data=st.data(),
)
def test_a_gallery_comes_in_order_whatever_the_pieces(
    lengths: list[int], batch_size: int, block: int, data: st.DataObject, tmp_path: Path
) -> None:
    features = _marked(lengths)
    file = _on_disk(tmp_path / "f.h5", features)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), unique=True)), dtype=np.int64)
    stream = SetStream(file, rows, rows + 100, batch_size, block)
    batches = list(stream)
    assert len(batches) == len(stream)
    for number, batch in enumerate(batches):
        chosen = rows[number * batch_size : (number + 1) * batch_size]
        padded = features.pad(chosen, chosen + 100)
        assert all(torch.equal(one, other) for one, other in zip(batch[:3], padded[:3], strict=True))


def test_no_more_than_two_values_exist_at_a_time() -> None:
    class Value:
        alive = most = 0

        def __init__(self) -> None:
            Value.alive += 1
            Value.most = max(Value.most, Value.alive)
            time.sleep(0.002)

        def __del__(self) -> None:
            Value.alive -= 1

    for value in read_ahead(lambda key: Value(), range(20)):
        time.sleep(0.001)
        del value
    assert Value.most == 2
    assert Value.alive == 0


def test_reading_goes_on_while_a_value_is_used() -> None:
    begun = threading.Event()

    def read(key: int) -> int:
        if key == 1:
            begun.set()
        return key

    values = read_ahead(read, [0, 1])
    assert next(values) == 0
    assert begun.wait(5)
    values.close()
    assert not _threads()


def test_what_goes_wrong_while_reading_ahead_reaches_the_user(case: Case) -> None:
    path = case.image_file.path
    with h5py.File(path) as file:
        place = file["values"].id.get_chunk_info(9).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    case.image_file.close()
    with pytest.raises(FeatureError, match=r"'values' in .*image.h5 can't be read .*Delete it and run again"):
        list(case.stream(np.arange(200), "image", 16, 3000))
    assert not _threads()


@pytest.mark.parametrize("leave", ["close", "forget", "begin again"])
def test_leaving_early_ends_the_thread(case: Case, leave: str) -> None:
    stream = case.stream(np.arange(200), "image text", 16, 3000)
    running = iter(stream)
    next(running)
    assert len(_threads()) == 1
    if leave == "close":
        stream.close()
    elif leave == "begin again":
        assert len(_order(stream)) == 200
    else:
        del running, stream
        assert not _threads()


class Recorder(pl.LightningModule):
    """Trains one number and remembers which captions came in which epoch."""

    def __init__(self, stop: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.orders: dict[int, list[int]] = {}
        self.galleries: list[tuple[int, list[int]]] = []
        self.stop = stop

    def training_step(self, batch: PairBatch) -> torch.Tensor:
        self.orders.setdefault(self.current_epoch, []).extend(batch.text.x[:, 0, 0].int().tolist())
        if self.stop:
            raise KeyboardInterrupt
        return (self.weight * batch.image.x).sum()

    def validation_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int) -> None:
        self.galleries.append((dataloader_idx, batch.image_ids.tolist()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def make_module(make_items: Callable[..., Items], tmp_path: Path) -> Callable[..., PairDataModule]:
    counts = [3, 5, 0, 2, 7] * 6
    numbers = itertools.count()

    def make(on_disk: bool = True, **settings: object) -> PairDataModule:
        splits = ["val" if row % 5 == 3 else "train" for row in range(len(counts))]
        sides = [_marked([1 + i % 3 for i in range(len(counts))]), _marked([1 + k % 4 for k in range(sum(counts))])]
        if on_disk:
            sides = [_on_disk(tmp_path / f"{next(numbers)}.h5", features) for features in sides]
        given = {"batch_size": 8, "seed": 5, "memory_gb": 2e-5} | settings
        return PairDataModule(make_items(counts, splits=splits), *sides, **given)

    return make


def _fit(module: PairDataModule, folder: Path, epochs: int, stop: bool = False, ckpt_path=None, **options) -> Recorder:
    recorder = Recorder(stop)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return recorder


def test_lightning_trains_from_disk_and_resumes_in_the_same_order(make_module, tmp_path: Path) -> None:
    whole = _fit(make_module(), tmp_path, 3)
    rows = make_module(on_disk=False).caption_rows("train").tolist()
    assert all(sorted(order) == rows for order in whole.orders.values())
    assert len({tuple(order) for order in whole.orders.values()}) == 3
    in_memory = _fit(make_module(on_disk=False), tmp_path, 3)
    assert whole.galleries == in_memory.galleries
    _fit(make_module(), tmp_path, 2)
    resumed = _fit(make_module(), tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.orders == {2: whole.orders[2]}


@pytest.mark.parametrize("options", [{"limit_train_batches": 2}, {"max_steps": 3}, {"val_check_interval": 3}])
def test_an_epoch_that_is_left_early_leaves_no_thread(make_module, tmp_path: Path, options: dict) -> None:
    recorder = _fit(make_module(), tmp_path, 2, **options)
    assert recorder.orders
    assert not _threads()


def test_an_interrupt_leaves_no_thread(make_module, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        _fit(make_module(), tmp_path, 2, stop=True)
    assert not _threads()


def test_workers_are_not_used_for_features_in_a_file(make_module, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        stream = make_module(num_workers=3).train_dataloader()
    assert isinstance(stream, PairStream)
    assert "data.num_workers=3 is not used: a thread reads" in caplog.text


def test_a_budget_that_leaves_nothing_names_what_is_needed(make_module) -> None:
    with pytest.raises(ConfigError, match=r"features.memory_gb=1e-06 is too small.*largest batches of 8 .*at least"):
        make_module(memory_gb=1e-6).train_dataloader()


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 10**13), buffer=st.integers(0, 10**9), rest=st.integers(0, 10**9))
def test_the_least_memory_is_rounded_up_and_enough(size: int, buffer: int, rest: int) -> None:
    assert size <= round(float(in_gb(size)) * 1e9) <= size * 1.00001 + 1
    asked = Budget(rest, rest, 0, min(2**23, rest // 5)).enough_for(buffer)
    memory = round(float(in_gb(asked)) * 1e9)
    assert Budget(memory, rest, 0, min(2**23, memory // 5) if rest > 4 else 0).buffer >= buffer


@settings(max_examples=100, deadline=None)
@given(
    owners=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    images=st.lists(st.integers(0, 1000), min_size=6, max_size=6),
    texts=st.lists(st.integers(0, 300), min_size=40, max_size=40),
    more=st.integers(0, 3000),
)
def test_from_the_least_buffer_on_every_block_fits(owners: list, images: list, texts: list, more: int) -> None:
    rows = np.array(owners)
    image_bytes, text_bytes = np.array(images)[rows], np.array(texts)[: len(rows)]
    buffer = least_buffer(int(image_bytes.max()), int((image_bytes + text_bytes).max()) + 64) + more
    blocks, sizes = _blocks(image_bytes, text_bytes, rows, buffer)
    assert sizes.max() <= buffer
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(rows)))


@pytest.mark.parametrize(("batch_size", "places"), [(4, 3), (40, 2)])  # 40: rather all in memory than such batches
def test_more_memory_never_makes_a_run_impossible(
    make_items: Callable[..., Items], tmp_path: Path, batch_size: int, places: int
) -> None:
    sides = {"image": _marked([30] * 40), "text": _marked([1 + k % 2 for k in range(80)])}
    paths = {side: _on_disk(tmp_path / f"{side}.h5", features).path for side, features in sides.items()}
    items, ends, kinds = make_items([2] * 40), [], set()
    for memory in range(500, 16000, 250):
        opened = open_features(paths, memory / 1e9, batch_size)
        module = PairDataModule(items, opened["image"], opened["text"], batch_size, memory_gb=memory / 1e9)
        kinds.add(tuple(type(opened[side]).__name__ for side in ("image", "text")))
        try:
            ends.append(len(list(module.train_dataloader())) == 80 // batch_size)
        except ConfigError as error:
            ends.append(False)
            least = float(re.search(r"at least (0\.\d+)", str(error)).group(1))
    assert ends == sorted(ends)
    assert memory > least * 1e9
    assert ends.index(True) == next(i for i, memory in enumerate(range(500, 16000, 250)) if memory >= least * 1e9)
    assert len(kinds) == places  # both read, one held, both held


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_beside_photos_that_are_decoded_is_read_batch_by_batch(
    make_items: Callable[..., Items], tmp_path: Path, num_workers: int
) -> None:
    colours = [10 * row for row in range(12)]
    for row, colour in enumerate(colours):
        Image.new("RGB", (2, 2), (colour, 0, 0)).save(tmp_path / f"{row}.png")
    photos = LiveImages([tmp_path / f"{row}.png" for row in range(12)], pil_to_tensor, 12)
    texts, items = _marked([k % 4 for k in range(36)]), make_items([3] * 12, splits=["train"] * 9 + ["val"] * 3)
    file = _on_disk(tmp_path / "text.h5", texts)
    module = PairDataModule(items, photos, file, batch_size=4, num_workers=num_workers, seed=1, memory_gb=1e-5)
    held = PairDataModule(items, photos, texts, batch_size=4, seed=1)
    for found, expected in zip(module.train_dataloader(), held.train_dataloader(), strict=True):
        assert found.image.x[:, 0, 0].tolist() == [colours[row] for row in found.image.image_ids]
        assert all(torch.equal(one, other) for one, other in zip(found.text[:3], expected.text[:3], strict=True))
    for gallery, expected_gallery in zip(module.val_dataloader(), held.val_dataloader(), strict=True):
        for found, expected in zip(gallery, expected_gallery, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found[:3], expected[:3], strict=True))


def _rank(rank: int, port: int, results: multiprocessing.Queue, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    image, text = FeatureFile(folder / "image.h5"), FeatureFile(folder / "text.h5")
    owners = np.repeat(np.arange(20), 5)
    stream = PairStream(image, text, owners, np.arange(100), 9, Budget(8000), seed=3)
    results.put((rank, len(stream), [batch.text.x[:, 0, 0].int().tolist() for batch in stream]))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_batches_of_one_order(tmp_path: Path) -> None:
    case = Case(tmp_path, [1] * 20, [1 + k % 3 for k in range(100)], np.repeat(np.arange(20), 5).tolist())
    whole = PairStream(case.image_file, case.text_file, case.owners, np.arange(100), 9, Budget(8000), seed=3)
    alone = [batch.text.x[:, 0, 0].int().tolist() for batch in whole]
    assert len(alone) == 12
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, results, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = {rank: (count, batches) for rank, count, batches in (results.get(timeout=60) for _ in ranks)}
    for process in ranks:
        process.join(60)
    assert found == {0: (6, alone[0::2]), 1: (6, alone[1::2])}


@pytest.fixture
def three_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("xmodal.features.streaming._processes", lambda: (1, 3))
    return


@pytest.mark.usefixtures("three_processes")
def test_surplus_batches_are_left_out_and_too_few_are_an_error(case: Case) -> None:
    stream = case.stream(np.arange(200), "image", 16, 3000)  # 13 batches, four for each process
    assert [len(batch.image.x) for batch in stream] == [16] * 4
    with pytest.raises(ConfigError, match=r"3 processes can't share 2 batches of data.batch_size=100 \(200 pairs\)"):
        case.stream(np.arange(200), "image", 100, 3000)
