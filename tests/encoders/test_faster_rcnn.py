"""Faster R-CNN: regions pooled by hand, photos with few or no detections, the published file format."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)

from xmodal.encoders.faster_rcnn import FasterRCNNEncoder
from xmodal.encoders.protocol import Encoder
from xmodal.encoders.weights import seeded
from xmodal.errors import ConfigError, WeightsError

SMALL = {"min_size": 128, "max_size": 256}


def photo(width: int = 160, height: int = 120, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def detecting(state: dict[str, Tensor], classes: float = 4.0, boxes: float = 1.0) -> dict[str, Tensor]:
    """Random weights made decisive, so that scores pass the threshold and boxes move.

    The activations of a random network are of another scale than a trained one's: its proposals are tamed as well.
    """
    changed = {name: tensor.clone() for name, tensor in state.items()}
    for name in ("rpn.head.bbox_pred.weight", "rpn.head.cls_logits.weight"):
        changed[name] *= 0.01
    changed["roi_heads.box_predictor.cls_score.weight"] *= classes
    changed["roi_heads.box_predictor.bbox_pred.weight"] *= boxes
    return changed


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that detect something, in the form and under the name of torchvision's published COCO file.

    That form: frozen batch norms (no counters), and the names which older versions gave to two convolutions.
    """
    with seeded(1):
        state = detecting(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict())
    published = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        older = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for blocks in ("inner_blocks", "layer_blocks"):
            for level in range(4):
                older = older.replace(f"fpn.{blocks}.{level}.0.", f"fpn.{blocks}.{level}.")
        published[older] = tensor
    assert "backbone.fpn.inner_blocks.0.weight" in published
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url.rsplit("/", 1)[1]
    torch.save(published, file)
    return file


@pytest.fixture(scope="module")
def encoder(weights_file: Path, tmp_path_factory: pytest.TempPathFactory) -> FasterRCNNEncoder:
    made = FasterRCNNEncoder(weights=str(weights_file), **SMALL)
    made.prepare([], tmp_path_factory.mktemp("cache"))
    return made


def prepared(weights_file: Path | None, **options) -> FasterRCNNEncoder:
    made = FasterRCNNEncoder(weights=None if weights_file is None else str(weights_file), **SMALL, **options)
    made.prepare([], Path("unused"))
    return made


@torch.inference_mode()
def pool_by_hand(encoder: FasterRCNNEncoder, image: Tensor, boxes: Tensor) -> Tensor:
    """Vectors (n, 1024) of boxes given in pixels of the original photo, one box at a time."""
    network = encoder.network
    scaled, _ = network.transform([image])
    height, width = scaled.image_sizes[0]
    factor = torch.tensor([width / image.shape[2], height / image.shape[1]] * 2)
    maps = network.backbone(scaled.tensors)
    vectors = [
        network.roi_heads.box_head(network.roi_heads.box_roi_pool(maps, [box[None] * factor], scaled.image_sizes))
        for box in boxes
    ]
    return torch.cat(vectors)


@torch.inference_mode()
def test_vectors_are_those_of_torchvisions_detections(
    encoder: FasterRCNNEncoder, weights_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(weights_file.parents[2]))
    plain = fasterrcnn_resnet50_fpn(
        weights=FasterRCNN_ResNet50_FPN_Weights.COCO_V1, box_detections_per_img=36, **SMALL
    ).eval()
    image = encoder.preprocess(photo())
    [detections] = plain([image])  # boxes in pixels of the original photo
    assert 1 < len(detections["boxes"]) <= 36
    assert (detections["scores"].diff() <= 0).all()
    [found] = encoder.encode([image])
    torch.testing.assert_close(found, pool_by_hand(encoder, image, detections["boxes"]), rtol=1e-3, atol=1e-3)


def test_pretrained_by_name_is_the_same_as_its_file(
    encoder: FasterRCNNEncoder, weights_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(weights_file.parents[2]))
    by_name = FasterRCNNEncoder(weights="pretrained", **SMALL)
    by_name.prepare([], Path("unused"))
    assert by_name.fingerprint() == encoder.fingerprint()
    assert by_name.fingerprint()["batch_norm_eps"] == 0.0


def test_most_regions_and_their_order(encoder: FasterRCNNEncoder, weights_file: Path):
    image = encoder.preprocess(photo())
    [all_regions] = encoder.encode([image])
    [three] = prepared(weights_file, num_regions=3).encode([image])
    assert len(all_regions) > 3
    torch.testing.assert_close(three, all_regions[:3], rtol=1e-3, atol=1e-3)


def test_fewer_detections_give_fewer_vectors(encoder: FasterRCNNEncoder, weights_file: Path):
    image = encoder.preprocess(photo())
    [every] = encoder.encode([image])
    scores = _scores(encoder, image)
    threshold = float((scores[1] + scores[2]) / 2)
    assert scores[1] > scores[2]
    [two] = prepared(weights_file, score_threshold=threshold).encode([image])
    torch.testing.assert_close(two, every[:2], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def _scores(encoder: FasterRCNNEncoder, image: Tensor) -> Tensor:
    return encoder.network([image])[0]["scores"]


@pytest.mark.parametrize("box_geometry", [False, True])
def test_no_detection_gives_the_whole_image(weights_file: Path, box_geometry: bool):
    strict = prepared(weights_file, score_threshold=1.0, box_geometry=box_geometry)
    image = strict.preprocess(photo())
    [found] = strict.encode([image])
    whole = torch.tensor([[0.0, 0.0, 160.0, 120.0]])
    torch.testing.assert_close(found[:, :1024], pool_by_hand(strict, image, whole), rtol=1e-4, atol=1e-4)
    assert found[0, 1024:].tolist() == ([0, 0, 1, 1, 1] if box_geometry else [])


@torch.inference_mode()
def test_geometry_is_relative_to_the_photo(encoder: FasterRCNNEncoder, weights_file: Path):
    located = prepared(weights_file, box_geometry=True)
    image = located.preprocess(photo(width=200, height=100))
    [found] = located.encode([image])
    boxes = located.network([image])[0]["boxes"].tolist()
    expected = [
        [x1 / 200, y1 / 100, x2 / 200, y2 / 100, (x2 - x1) * (y2 - y1) / (200 * 100)] for x1, y1, x2, y2 in boxes
    ]
    assert located.feature_dim == found.shape[1] == 1029
    torch.testing.assert_close(found[:, 1024:], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, :1024], encoder.encode([image])[0], rtol=1e-3, atol=1e-3)


def test_a_photo_does_not_depend_on_its_batch(encoder: FasterRCNNEncoder):
    shots = [photo(seed=1), photo(width=120, height=160, seed=2), photo(seed=3)]
    batch = [encoder.preprocess(shot) for shot in shots]
    together = encoder.encode(batch)
    for image, found in zip(batch, together, strict=True):
        torch.testing.assert_close(found, encoder.encode([image])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("version", [1, 2])
def test_random_weights(version: int, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        random = prepared(None, version=version, seed=2)
    assert torch.equal(torch.rand(2), expected)
    assert "Faster R-CNN uses random weights (seed 2), because image_encoder.weights=null." in caplog.text
    [found] = random.encode([random.preprocess(photo())])
    assert found.shape[0] >= 1
    assert found.shape[1] == random.feature_dim == 1024
    assert torch.isfinite(found).all()
    assert found.abs().max() < 65_504  # fits float16
    model = {1: fasterrcnn_resnet50_fpn, 2: fasterrcnn_resnet50_fpn_v2}[version]
    with seeded(2):
        plain = model(weights=None, weights_backbone=None)
    assert all(torch.equal(random.network.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())


def test_state_of_a_path_needs_no_file(encoder: FasterRCNNEncoder, tmp_path: Path):
    torch.save(encoder.state(), tmp_path / "state.pt")
    second = FasterRCNNEncoder(weights="/gone/with/the/disk.pth", **SMALL)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.fingerprint() == encoder.fingerprint()
    image = encoder.preprocess(photo())
    assert torch.equal(second.encode([image])[0], encoder.encode([image])[0])


def test_own_number_of_classes_is_read_from_the_file(tmp_path: Path):
    with seeded(0):
        network = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "five.pt")
    five = prepared(tmp_path / "five.pt")
    assert five.network.roi_heads.box_predictor.cls_score.out_features == 5
    assert five.fingerprint()["batch_norm_eps"] == 1e-5  # a file with counters: not frozen


def test_weights_of_another_version_are_refused(weights_file: Path):
    with pytest.raises(WeightsError, match=r"fasterrcnn.*\.pth does not fit FasterRCNN .*(missing|wrong shape)"):
        prepared(weights_file, version=2)


def test_pretrained_without_network_names_three_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"fasterrcnn(?s:.*)network:(?s:.*)a path:(?s:.*)weights=null"):
        FasterRCNNEncoder(weights="pretrained").prepare([], tmp_path)


def test_is_an_encoder_that_workers_can_use(encoder: FasterRCNNEncoder):
    assert isinstance(encoder, Encoder)
    assert len(pickle.dumps(encoder.preprocess)) < 1000
    assert encoder.check() == []
    assert "none.pt" in FasterRCNNEncoder(weights="none.pt").check()[0]


def test_all_parameters_out_of_range_are_named():
    with pytest.raises(ConfigError) as caught:
        FasterRCNNEncoder(3, None, 0, 0, 1.5, 0.0, False, 900, 800, 0, 0)
    assert len(caught.value.faults) == 6
    assert "image_encoder.version must be one of [1, 2], found 3." in caught.value.faults
    assert "image_encoder.score_threshold must lie in [0, 1], found 1.5." in caught.value.faults
