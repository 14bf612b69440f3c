"""Faster R-CNN cut inside its box head, and trained as a whole on square photos."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xmodal.encoders.faster_rcnn import FasterRCNNEncoder
from xmodal.types import FeatureBatch, RaggedFeatures

SIZE = 64
SMALL = {"min_size": SIZE, "max_size": 2 * SIZE, "num_regions": 5}


def photo(width: int = SIZE, height: int = SIZE, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def whole(request: pytest.FixtureRequest) -> FasterRCNNEncoder:
    """Random weights made decisive, so that photos have several detections, and not all the same number."""
    made = FasterRCNNEncoder(version=request.param, seed=1, **SMALL)
    made.prepare([], Path("unused"))
    state = made.network.state_dict()
    for name in ("rpn.head.bbox_pred.weight", "rpn.head.cls_logits.weight"):
        state[name] *= 0.01
    state["roi_heads.box_predictor.cls_score.weight"] *= 4.0
    made.network.rpn._post_nms_top_n["testing"] = 40  # each goes through the box head: 1000 would take seconds
    return made


def cut_at(whole: FasterRCNNEncoder, layers: int | str, **options) -> FasterRCNNEncoder:
    """An encoder with other parameters over the same network, which takes a second to make."""
    made = FasterRCNNEncoder(version=whole.version, seed=1, **SMALL, **options, trainable_layers=layers)
    made._prepared = whole.network
    return made


def padded(sets: list[Tensor]) -> FeatureBatch:
    rows = np.arange(len(sets))
    return RaggedFeatures.from_sets([found.numpy() for found in sets]).pad(rows, rows)


def encoded(encoder: FasterRCNNEncoder, shots: list[Image.Image]) -> list[Tensor]:
    return encoder.encode([encoder.preprocess(shot) for shot in shots])


def through(tail: nn.Module, features: FeatureBatch) -> list[Tensor]:
    x, mask = tail(features.x, features.mask)
    return [vectors[kept] for vectors, kept in zip(x, mask, strict=True)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert list(map(len, found)) == list(map(len, expected))
    scale = float(torch.cat(expected).abs().max())
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("box_geometry", [False, True])
def test_tails_are_the_encoder(whole: FasterRCNNEncoder, box_geometry: bool):
    frozen = cut_at(whole, 0, box_geometry=box_geometry)
    shots = [photo(seed=1), photo(width=SIZE + 20, seed=2), photo(seed=3)]
    expected = encoded(frozen, shots)
    for layers in (1, 2) if whole.version == 1 else (1,):
        cut = cut_at(whole, layers, box_geometry=box_geometry)
        sets = encoded(cut, shots)
        width = 1024 if (whole.version, layers) == (1, 1) else 12544
        assert {found.shape[1] for found in sets} == {cut.feature_dim} == {width + 5 * box_geometry}
        assert cut.most_vectors(shots) == 15 >= sum(map(len, sets))
        tail = cut.tail().eval()
        assert tail.output_dim == frozen.feature_dim
        assert_same(through(tail, padded(sets)), expected)
        assert cut.fingerprint() == {**frozen.fingerprint(), "trainable_layers": layers}


@pytest.mark.parametrize("box_geometry", [False, True])
def test_whole_detector_on_squares_is_the_encoder(whole: FasterRCNNEncoder, box_geometry: bool):
    shots = [photo(seed=1), photo(seed=2)]
    cut, frozen = (cut_at(whole, layers, box_geometry=box_geometry) for layers in ("all", 0))
    pixels = encoded(cut, shots)
    assert [tuple(found.shape) for found in pixels] == [(1, 3 * SIZE * SIZE)] * 2
    assert cut.feature_dim == 3 * SIZE * SIZE
    assert cut.most_vectors(shots) == 2
    assert_same(through(cut.tail(), padded(pixels)), encoded(frozen, shots))


def test_whole_detector_squashes_photos(whole: FasterRCNNEncoder):
    cut = cut_at(whole, "all")
    wide = photo(width=3 * SIZE, height=SIZE)
    squashed = cut.preprocess(wide)
    assert squashed.shape == (3, SIZE, SIZE)
    assert torch.equal(squashed, cut.preprocess(wide.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    assert cut.sizes([wide, photo()]) == [0, 0]


@pytest.mark.parametrize("layers", [1, "all"])
def test_gradients_reach_every_parameter_of_the_tail_and_nothing_else(whole: FasterRCNNEncoder, layers: int | str):
    cut = cut_at(whole, layers)
    tail = cut.tail().requires_grad_(True).train()
    statistics = {name: tensor.clone() for name, tensor in tail.named_buffers()}
    features = padded(encoded(cut, [photo(seed=1), photo(seed=2)]))
    torch.cat(through(tail, features)).sum().backward()
    assert [name for name, parameter in tail.named_parameters() if parameter.grad is None] == []
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in tail.named_buffers())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in cut.network.parameters())
    assert not {p.data_ptr() for p in tail.parameters()} & {p.data_ptr() for p in cut.network.parameters()}
    if layers == "all":
        assert any(name.startswith("network.rpn.") for name in tail.state_dict())
        assert not any("rpn" in name or "predictor" in name for name, _ in tail.named_parameters())


def test_training_from_the_cut_is_training_the_box_head(whole: FasterRCNNEncoder):
    layers = 2 if whole.version == 1 else 1
    cut, shots = cut_at(whole, layers), [photo(seed=1), photo(width=SIZE + 20, seed=2)]
    tail, features = cut.tail().eval(), padded(encoded(cut, shots))
    network = deepcopy(whole.network)
    head = network.roi_heads.box_head
    trained = nn.ModuleList([head.fc6, head.fc7] if whole.version == 1 else [head[-2]]).requires_grad_(True)
    with torch.no_grad():  # boxes are those of the detector before training
        pooled = torch.cat([regions_by_hand(network, cut.preprocess(shot)) for shot in shots])
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (tail, trained)]
    for _ in range(3):
        outputs = (torch.cat(through(tail, features)), head(pooled))
        for found, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            found.sin().mean().backward()
            optimizer.step()
    before = dict(cut.tail().named_parameters())
    for (name, found), expected in zip(tail.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(found, before[name])


def regions_by_hand(network: nn.Module, image: Tensor) -> Tensor:
    scaled, _ = network.transform([image])
    maps = network.backbone(scaled.tensors)
    [found] = network([image])  # boxes in pixels of the original photo
    height, width = scaled.image_sizes[0]
    factor = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
    assert len(found["boxes"])
    return network.roi_heads.box_roi_pool(maps, [found["boxes"] * factor], scaled.image_sizes)


def test_boxes_follow_the_backbone_as_it_is_trained(whole: FasterRCNNEncoder):
    cut = cut_at(whole, "all", box_geometry=True)
    tail, features = cut.tail(), padded(encoded(cut, [photo(seed=1)]))
    before = through(tail, features)[0][:, 1024:]
    with torch.no_grad():
        for parameter in tail.network.backbone.fpn.parameters():
            parameter.mul_(-0.5)
    after = through(tail, features)[0][:, 1024:]
    assert before.shape != after.shape or not torch.allclose(before, after)


def test_sizes_tell_photos_of_one_shape_from_their_headers(tmp_path: Path):
    encoder = FasterRCNNEncoder()
    shapes = {"a.png": (40, 30), "b.png": (30, 40), "c.png": (40, 30)}
    for name, (width, height) in shapes.items():
        photo(width, height).save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    photo(30, 40).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "damaged.png").write_bytes(b"no photo")
    names = [*shapes, "turned.jpg", "damaged.png", "absent.png"]
    a, b, c, turned, damaged, absent = encoder.sizes([tmp_path / name for name in names])
    assert a == c == turned != b
    assert damaged == absent == 0
    assert encoder.sizes([photo(40, 30), str(tmp_path / "b.png")]) == [a, b]


def test_autocast_changes_little_and_leaves_float32(whole: FasterRCNNEncoder, monkeypatch: pytest.MonkeyPatch):
    strict = cut_at(whole, 0)
    monkeypatch.setattr(strict.network.roi_heads, "score_thresh", 1.0)  # the whole image: no box to choose
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [rough] = encoded(strict, [photo()])
    [exact] = encoded(strict, [photo()])
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
