"""CLIP and SigLIP: both towers against the library's own forward pass of whole models saved in folders."""

import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from xmodal.encoders.clip import CLIPImageEncoder, CLIPTextEncoder
from xmodal.encoders.protocol import Collating, Counting, Encoder, FineTuned, Sizing
from xmodal.encoders.weights import seeded
from xmodal.encoders.wordpiece import train_vocabulary, wordpiece_tokenizer
from xmodal.errors import ConfigError, WeightsError

CAPTIONS = [
    "a dog runs over the wet grass",
    "two dogs",
    "a child in a red coat climbs a wall near the sea while a man looks on from below",
    "",
    "the sea",
]
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PHOTO = {**TINY, "image_size": 48, "patch_size": 16}


def photos(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 70, 90, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def saved(folder: Path, family: str) -> SimpleNamespace:
    """A whole random model with tokenizer and image processor, as ``save_pretrained`` writes them."""
    vocabulary = train_vocabulary(CAPTIONS, 200)
    tokenizer = wordpiece_tokenizer(vocabulary)
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {**TINY, **special, "vocab_size": len(vocabulary), "max_position_embeddings": 12}
    with seeded(1):
        if family == "clip":
            whole = CLIPModel(
                CLIPConfig(text_config=text, vision_config={**PHOTO, "hidden_size": 40}, projection_dim=24)
            )
            processor = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=48)
        else:
            whole = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=PHOTO))
            processor = SiglipImageProcessor(size={"height": 48, "width": 48})
    for part in (whole.eval(), tokenizer, processor):
        part.save_pretrained(folder)
    return SimpleNamespace(folder=folder, whole=whole, tokenizer=tokenizer, processor=processor, family=family)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return saved(tmp_path_factory.mktemp(request.param), request.param)


def prepared(kind: type, folder: Path | None = None, **settings: object) -> CLIPImageEncoder | CLIPTextEncoder:
    made = kind(weights=None if folder is None else str(folder), **settings)
    made.prepare(CAPTIONS, Path("unused"))
    return made


def random_tower(kind: type, **settings: object) -> CLIPImageEncoder | CLIPTextEncoder:
    small = SMALL | ({"image_size": 32, "patch_size": 16} if kind is CLIPImageEncoder else {"vocab_size": 200})
    return prepared(kind, **small, **settings)


def embeddings(found: object) -> torch.Tensor:
    """Of what the library's ``get_…_features`` returned: a tensor up to version 4, an output with it in 5."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def own_texts(model: SimpleNamespace, captions: list[str]) -> torch.Tensor:
    """One caption at a time, as the library documents it for each of the two."""
    found = []
    for caption in captions:
        if model.family == "siglip":
            ids = model.tokenizer(caption, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
            inputs = {"input_ids": ids["input_ids"]}
        else:
            ids = model.tokenizer(caption, truncation=True, max_length=12, return_tensors="pt")
            inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
        found.append(embeddings(model.whole.get_text_features(**inputs)))
    return torch.cat(found)


def own_images(model: SimpleNamespace, items: list[Image.Image]) -> torch.Tensor:
    return embeddings(model.whole.get_image_features(**model.processor(images=items, return_tensors="pt")))


@torch.inference_mode()
def test_texts_are_the_librarys_own_projected_embeddings(model: SimpleNamespace):
    encoder = prepared(CLIPTextEncoder, model.folder)
    found = encoder.encode(list(CAPTIONS))
    assert [tuple(one.shape) for one in found] == [(1, encoder.feature_dim)] * len(CAPTIONS)
    torch.testing.assert_close(torch.cat(found), own_texts(model, CAPTIONS), rtol=1e-4, atol=1e-5)
    assert encoder.feature_dim == (24 if model.family == "clip" else 32)
    assert torch.equal(torch.cat(encoder.encode(encoder.collate(list(CAPTIONS)))), torch.cat(found))


@torch.inference_mode()
def test_images_are_the_librarys_own_projected_embeddings(model: SimpleNamespace):
    encoder = prepared(CLIPImageEncoder, model.folder)
    batch = [encoder.preprocess(item) for item in photos(3)]
    found = encoder.encode(batch)
    assert [tuple(one.shape) for one in found] == [(1, encoder.feature_dim)] * 3
    torch.testing.assert_close(torch.cat(found), own_images(model, photos(3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat(encoder.encode(encoder.collate(batch))), torch.cat(found))
    assert encoder.feature_dim == prepared(CLIPTextEncoder, model.folder).feature_dim


def test_sizes_are_the_tokens_a_batch_needs(model: SimpleNamespace):
    encoder = prepared(CLIPTextEncoder, model.folder)
    sizes = encoder.sizes(CAPTIONS)
    assert sizes == [encoder.collate([caption])["input_ids"].shape[1] for caption in CAPTIONS]
    assert max(sizes) == 12, "the third caption is cut"
    assert len(set(sizes)) == (1 if model.family == "siglip" else 4)
    assert encoder.most_vectors(CAPTIONS) == len(CAPTIONS)


def test_siglip_attends_to_padding_and_clip_does_not(model: SimpleNamespace):
    """What the tokenizer's padding changes is what each was trained with."""
    encoder = prepared(CLIPTextEncoder, model.folder)
    inputs = encoder.collate(["the sea"])
    assert set(inputs) == ({"input_ids"} if model.family == "siglip" else {"input_ids", "attention_mask"})
    with_longer = encoder.encode(["the sea", CAPTIONS[2]])[0]
    torch.testing.assert_close(with_longer, encoder.encode(["the sea"])[0], rtol=1e-4, atol=1e-5)


def test_both_are_encoders_before_and_after_they_are_prepared(model: SimpleNamespace):
    for kind in (CLIPImageEncoder, CLIPTextEncoder):
        for encoder in (kind(), prepared(kind, model.folder)):
            for capability in (Encoder, Collating, Counting, FineTuned):
                assert isinstance(encoder, capability)
        assert not encoder.network.training
        assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    assert isinstance(CLIPTextEncoder(), Sizing)


def test_preprocess_is_the_models_own_and_travels_without_the_network(model: SimpleNamespace):
    encoder = prepared(CLIPImageEncoder, model.folder)
    own = model.processor(images=photos(1), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pickle.loads(pickle.dumps(encoder.preprocess))(photos(1)[0]), own)
    assert len(pickle.dumps(encoder.preprocess)) < 3000


@pytest.mark.parametrize("kind", [CLIPImageEncoder, CLIPTextEncoder])
def test_state_of_a_folder_needs_no_folder(kind: type, model: SimpleNamespace, tmp_path: Path):
    first = prepared(kind, model.folder)
    torch.save(first.state(), tmp_path / "state.pt")
    second = kind(weights="/gone/with/the/disk")
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.fingerprint() == first.fingerprint()
    batch = [first.preprocess(item) for item in (photos(2) if kind is CLIPImageEncoder else CAPTIONS)]
    assert torch.equal(torch.cat(second.encode(batch)), torch.cat(first.encode(batch)))


@pytest.mark.parametrize("kind", [CLIPImageEncoder, CLIPTextEncoder])
def test_state_of_a_seed_is_small_and_notices_another_seed(kind: type):
    first = random_tower(kind, seed=3)
    state = first.state()
    assert "weights" not in state
    small = {**SMALL, **({"image_size": 32, "patch_size": 16} if kind is CLIPImageEncoder else {"vocab_size": 200})}
    second = kind(weights=None, seed=3, **small)
    second.restore(state)
    assert second.fingerprint() == first.fingerprint()
    assert random_tower(kind, seed=4).fingerprint() != first.fingerprint()
    with pytest.raises(WeightsError, match="_encoder clip are not those that the checkpoint was trained with"):
        kind(weights=None, seed=4, **small).restore(state)


def test_random_towers_share_a_width_and_say_that_they_are_random(caplog):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        image, text = random_tower(CLIPImageEncoder), random_tower(CLIPTextEncoder)
    assert torch.equal(torch.rand(2), expected)
    assert image.feature_dim == text.feature_dim == 32
    assert "CLIP uses random weights for photos (seed 0), because image_encoder.weights=null." in caplog.text
    assert "word pieces learned from the training captions, because text_encoder.weights=null." in caplog.text
    batch = [image.preprocess(item) for item in photos(2)]
    assert batch[0].shape == (3, 32, 32)
    assert torch.cat(image.encode(batch)).std(dim=0).min() > 0, "photos differ"
    assert len({tuple(found.flatten().tolist()) for found in text.encode(list(CAPTIONS))}) == len(CAPTIONS)


def test_the_random_text_tower_pools_the_end_of_the_caption():
    """Words behind the separator, which padding stands for, change nothing; words before it do."""
    encoder = random_tower(CLIPTextEncoder)
    hidden = encoder.network.text_model(**encoder.tokenizer("the sea", return_tensors="pt")).last_hidden_state
    expected = encoder.network.text_projection(hidden[:, -1])
    torch.testing.assert_close(encoder.encode(["the sea", CAPTIONS[2]])[0], expected, rtol=1e-4, atol=1e-5)


def test_images_trained_from_pixels_are_those_of_the_frozen_tower(model: SimpleNamespace):
    frozen = prepared(CLIPImageEncoder, model.folder)
    live = prepared(CLIPImageEncoder, model.folder, trainable_layers="all")
    batch = [live.preprocess(item) for item in photos(2)]
    pixels = torch.stack(live.encode(batch))
    assert pixels.shape == (2, 1, live.feature_dim) == (2, 1, 3 * 48 * 48)
    tail = live.tail()
    assert tail.output_dim == frozen.feature_dim
    found, mask = tail(pixels, torch.tensor([[True], [True]]))
    torch.testing.assert_close(found, torch.stack(frozen.encode(batch)), rtol=1e-4, atol=1e-5)
    assert mask.tolist() == [[True], [True]]
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in tail.parameters())
    assert sum(float(parameter.grad.abs().sum()) for parameter in tail.parameters()) > 0
    assert not any(parameter.requires_grad for parameter in live.network.parameters())
    assert live.fingerprint() == frozen.fingerprint() | {"trainable_layers": "all"}


def test_texts_trained_from_tokens_are_those_of_the_frozen_tower(model: SimpleNamespace):
    frozen = prepared(CLIPTextEncoder, model.folder)
    live = prepared(CLIPTextEncoder, model.folder, trainable_layers="all")
    assert (live.feature_dim, live.needs_float32, frozen.needs_float32) == (1, True, False)
    sets = live.encode(list(CAPTIONS))
    assert [len(one) for one in sets] == live.sizes(CAPTIONS)
    assert live.most_vectors(CAPTIONS) == sum(map(len, sets))
    assert all(one.dtype == torch.float32 and one.shape[1] == 1 for one in sets)
    longest = max(map(len, sets))
    x, mask = torch.zeros(len(sets), longest, 1), torch.zeros(len(sets), longest, dtype=torch.bool)
    for row, one in enumerate(sets):
        x[row, : len(one)], mask[row, : len(one)] = one, True
    tail = live.tail()
    found, kept = tail(x, mask)
    torch.testing.assert_close(found, torch.stack(frozen.encode(list(CAPTIONS))), rtol=1e-4, atol=1e-5)
    assert kept.all()
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in tail.parameters())


def test_a_model_is_found_by_name_in_the_cache_and_else_not(
    model: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The cache as the Hub's client lays it out."""
    folder = tmp_path / f"models--somebody--{model.family}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "abc").symlink_to(model.folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = f"somebody/{model.family}"
    encoder = CLIPImageEncoder(model=name, weights="pretrained")
    encoder.prepare([], tmp_path)
    assert encoder.fingerprint() == prepared(CLIPImageEncoder, model.folder).fingerprint()
    assert set(encoder.state()) == {"probe"}  # the name suffices
    expected = r"somebody/else .*can't be had: .*HF_HUB_OFFLINE is set(?s:.*)network:(?s:.*)a path:(?s:.*)weights=null"
    with pytest.raises(WeightsError, match=expected):
        CLIPTextEncoder(weights="somebody/else").prepare([], tmp_path)


def test_models_of_another_kind_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    BertModel(BertConfig(vocab_size=50, **TINY)).save_pretrained(tmp_path / "bert")
    with pytest.raises(WeightsError, match=r"/bert is a bert model; expected CLIP or SigLIP"):
        prepared(CLIPTextEncoder, tmp_path / "bert")
    with pytest.raises(
        WeightsError, match=r"can't load .*/empty: .*; expected a folder that save_pretrained\(\) wrote"
    ):
        prepared(CLIPImageEncoder, tmp_path / "empty")


def test_a_tower_that_lacks_tensors_is_refused(tmp_path: Path):
    """A file with the image tower alone has no text tower."""
    made = saved(tmp_path, "clip")
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**PHOTO, "hidden_size": 40}, projection_dim=24))
    state = vision.state_dict()
    save_file(state, made.folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors of its text tower: text_model"):
        prepared(CLIPTextEncoder, tmp_path)
    encoder = prepared(CLIPImageEncoder, tmp_path)
    assert torch.equal(encoder.network.state_dict()["visual_projection.weight"], state["visual_projection.weight"])


def test_loading_one_tower_does_not_report_the_other(model: SimpleNamespace, capfd):
    prepared(CLIPTextEncoder, model.folder)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    assert logging.getLogger("transformers").level != logging.ERROR


def test_parameters_out_of_range_are_told_together():
    with pytest.raises(ConfigError) as raised:
        CLIPImageEncoder(hidden_size=30, num_heads=4, num_layers=0, image_size=50, trainable_layers=1, batch_size=0)
    assert len(raised.value.faults) == 5
    assert "image_encoder.hidden_size must be a multiple of num_heads, found 30 and 4." in raised.value.faults
    assert "image_encoder.image_size must be a multiple of patch_size, found 50 and 32." in raised.value.faults
    with pytest.raises(ConfigError, match=r"text_encoder\.vocab_size must be at least 100, found 9"):
        CLIPTextEncoder(vocab_size=9)
    assert "no folder /not/there/at/all" in CLIPTextEncoder(weights="/not/there/at/all").check()[0]
    assert CLIPImageEncoder(weights="pretrained").check() == CLIPTextEncoder(weights="a/name").check() == []


def test_use_before_prepare():
    for act in (CLIPImageEncoder().fingerprint, CLIPTextEncoder().fingerprint):
        with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
            act()
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
        CLIPImageEncoder().preprocess(photos(1)[0])
