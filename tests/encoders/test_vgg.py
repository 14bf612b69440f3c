"""VGG: fc7 against torchvision's own forward pass, weights from seed, path, cache and nowhere."""

import logging
import pickle
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import VGG16_Weights, vgg16

from xmodal.encoders.protocol import Encoder
from xmodal.encoders.vgg import VGGEncoder
from xmodal.encoders.weights import seeded
from xmodal.errors import ConfigError, WeightsError
from xmodal.types import FeatureBatch, RaggedFeatures


def photos(count: int, width: int = 300, height: int = 260) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> VGGEncoder:
    made = VGGEncoder(weights=None, seed=3)
    made.prepare([], tmp_path_factory.mktemp("cache"))
    return made


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole torchvision VGG-16 of seed 3, under the name that torchvision gives its own file."""
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with seeded(3):
        network = vgg16(weights=None)
    file = folder / VGG16_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(network.state_dict(), file)
    return file


@torch.inference_mode()
def test_is_fc7_after_relu_of_torchvision(encoder: VGGEncoder):
    with seeded(3):
        plain = vgg16(weights=None).eval()
    batch = [encoder.preprocess(photo) for photo in photos(2)]
    maps = plain.avgpool(plain.features(torch.stack(batch))).flatten(1)
    expected = plain.classifier[:5](maps)
    sets = encoder.encode(batch)
    assert [tuple(found.shape) for found in sets] == [(1, 4096)] * 2
    torch.testing.assert_close(torch.cat(sets), expected, rtol=1e-4, atol=1e-5)
    assert (torch.cat(sets) >= 0).all()
    assert all(found.dtype == torch.float32 and found.device.type == "cpu" for found in sets)


def test_a_photo_does_not_depend_on_its_batch(encoder: VGGEncoder):
    batch = [encoder.preprocess(photo) for photo in photos(3)]
    together = torch.cat(encoder.encode(batch))
    alone = torch.cat([encoder.encode([photo])[0] for photo in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_preprocess_is_torchvisions_and_travels_without_the_network(encoder: VGGEncoder):
    [photo] = photos(1, width=500, height=333)
    assert torch.equal(encoder.preprocess(photo), VGG16_Weights.IMAGENET1K_V1.transforms()(photo))
    assert len(pickle.dumps(encoder.preprocess)) < 1000


def test_is_an_encoder_and_frozen(encoder: VGGEncoder):
    assert isinstance(encoder, Encoder)
    assert encoder.feature_dim == 4096
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


def test_random_weights_are_said_and_leave_the_global_random_state(caplog, tmp_path: Path):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        VGGEncoder(weights=None).prepare([], tmp_path)
    assert torch.equal(torch.rand(2), expected)
    assert "VGG-16 uses random weights (seed 0), because image_encoder.weights=null." in caplog.text


def test_path_and_cache_give_the_same_features_as_the_seed(
    encoder: VGGEncoder, weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(weights_file.parents[2]))
    by_path, by_name = VGGEncoder(weights=str(weights_file)), VGGEncoder(weights="pretrained")
    for other in (by_path, by_name):
        other.prepare([], tmp_path)
        assert other.fingerprint() == encoder.fingerprint()
    assert set(by_name.state()) == {"probe"}  # the name suffices


def test_state_of_a_path_needs_no_file(encoder: VGGEncoder, weights_file: Path, tmp_path: Path):
    first = VGGEncoder(weights=str(weights_file))
    first.prepare([], tmp_path)
    torch.save(first.state(), tmp_path / "state.pt")
    second = VGGEncoder(weights="/gone/with/the/disk.pth")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.fingerprint() == encoder.fingerprint()


def test_state_of_a_seed_is_small_and_notices_another_seed(encoder: VGGEncoder):
    state = encoder.state()
    assert sum(tensor.nbytes for tensor in state.values()) < 10_000
    second = VGGEncoder(weights=None, seed=3)
    second.restore(state)
    assert second.fingerprint() == encoder.fingerprint()
    with pytest.raises(WeightsError, match="weights of VGG-16 are not those that the checkpoint was trained with"):
        VGGEncoder(weights=None, seed=4).restore(state)


def test_weights_of_another_depth_are_refused(weights_file: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"vgg16.*\.pth does not fit VGG with 36 tensors; .*features"):
        VGGEncoder(depth=19, weights=str(weights_file)).prepare([], tmp_path)


def test_absent_path_is_found_before_anything_loads(tmp_path: Path):
    path = str(tmp_path / "none.pth")
    assert "none.pth" in VGGEncoder(weights=path).check()[0]
    assert VGGEncoder(weights="pretrained").check() == VGGEncoder(weights=None).check() == []
    with pytest.raises(WeightsError, match=r"no file .*none\.pth"):
        VGGEncoder(weights=path).prepare([], tmp_path)


def test_pretrained_without_network_names_three_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: no download even where there is a network
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"vgg16.*can't be had(?s:.*)network:(?s:.*)a path:(?s:.*)weights=null"):
        VGGEncoder(weights="pretrained").prepare([], tmp_path)
    assert time.monotonic() - start < 30


def test_parameters_out_of_range():
    with pytest.raises(ConfigError, match=r"image_encoder\.depth must be one of \[16, 19\], found 13"):
        VGGEncoder(depth=13)
    with pytest.raises(ConfigError, match=r"image_encoder\.batch_size must be positive, found 0"):
        VGGEncoder(batch_size=0)


def test_encode_before_prepare():
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
        VGGEncoder().fingerprint()


def share(encoder: VGGEncoder, layers: int | str) -> VGGEncoder:
    """An encoder that is cut elsewhere, over the same network: another half gigabyte is not needed."""
    made = VGGEncoder(weights=None, seed=3, trainable_layers=layers)
    made._prepared = encoder.network
    return made


def padded(sets: list[torch.Tensor]) -> FeatureBatch:
    rows = np.arange(len(sets))
    return RaggedFeatures.from_sets([found.numpy() for found in sets]).pad(rows, rows)


SHAPES = {
    1: (1, 4096),
    2: (1, 25088),
    3: (196, 512),
    5: (196, 512),
    6: (784, 512),
    14: (224 * 224, 64),
    "all": (1, 150528),
}


def test_shapes_at_the_cut_are_known_without_weights():
    for layers, (count, width) in SHAPES.items():
        cut = VGGEncoder(trainable_layers=layers)
        assert (cut.most_vectors(["a.jpg"] * 3), cut.feature_dim) == (3 * count, width)


@pytest.mark.parametrize("layers", [1, 2, 3, 6, "all"])
def test_front_and_tail_are_the_encoder(encoder: VGGEncoder, layers: int | str):
    cut = share(encoder, layers)
    batch = [cut.preprocess(photo) for photo in photos(2)]
    sets = cut.encode(batch)
    assert [tuple(found.shape) for found in sets] == [SHAPES[layers]] * 2
    tail = cut.tail().eval()
    features = padded(sets)
    with torch.inference_mode():
        x, mask = tail(features.x, features.mask)
    assert tail.output_dim == 4096
    assert mask.tolist() == [[True], [True]]
    torch.testing.assert_close(x, torch.stack(encoder.encode(batch)), rtol=1e-5, atol=1e-5)


def test_the_cut_lies_before_the_weighted_layer(encoder: VGGEncoder):
    network, [photo] = encoder.network, photos(1)
    image = encoder.preprocess(photo)[None]
    with torch.inference_mode():
        fc6 = network.classifier[:2](network.avgpool(network.features(image)).flatten(1))
        conv5_2 = network.features[:28](image)  # then conv5_3, ReLU, pooling
    torch.testing.assert_close(share(encoder, 1).encode([image[0]])[0], fc6, rtol=1e-5, atol=1e-5)
    [grid] = share(encoder, 3).encode([image[0]])
    assert isinstance(network.features[28], torch.nn.Conv2d)
    torch.testing.assert_close(grid.T.reshape(512, 14, 14), conv5_2[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(share(encoder, "all").encode([image[0]])[0].reshape(3, 224, 224), image[0])


def test_training_from_the_cut_is_training_the_network(encoder: VGGEncoder):
    cut = share(encoder, 1)
    whole = deepcopy(encoder.network)
    fc7 = whole.classifier[3].requires_grad_(True)
    batch = [cut.preprocess(photo) for photo in photos(2)]
    tail, features = cut.tail().eval(), padded(cut.encode(batch))  # no drop-out
    assert not {p.data_ptr() for p in tail.parameters()} & {p.data_ptr() for p in cut.network.parameters()}
    optimizers = [torch.optim.SGD(part.parameters(), lr=1.0) for part in (tail, fc7)]
    for _ in range(2):
        outputs = (tail(features.x, features.mask)[0].squeeze(1), whole(torch.stack(batch)))
        for found, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            (found**2).mean().backward()
            optimizer.step()
    assert [name for name, parameter in tail.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad is None for parameter in cut.network.parameters())
    trained = list(tail.parameters())
    for found, expected, before in zip(trained, fc7.parameters(), cut.tail().parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(found, before)


def test_collate_autocast_and_fingerprint(encoder: VGGEncoder):
    batch = [encoder.preprocess(photo) for photo in photos(2)]
    expected = torch.cat(encoder.encode(batch))
    assert torch.equal(torch.cat(encoder.encode(encoder.collate(batch))), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = torch.cat(encoder.encode(batch))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.1, atol=0.1 * float(expected.max()))
    assert share(encoder, 2).fingerprint() == {**encoder.fingerprint(), "trainable_layers": 2}
