"""BERT cut before its last blocks: front and tail together are the network, in values, gradients and training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    DebertaV2Config,
    DebertaV2Model,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.protocol import Collating, Counting, Sizing
from xmodal.encoders.weights import seeded
from xmodal.errors import ConfigError
from xmodal.types import FeatureBatch, RaggedFeatures

CAPTIONS = [
    "A dog runs over the grass.",
    "two dogs",
    "A red ball lies on green grass!",
    "the beach is red at night, and nobody is there to see it but the dogs",
    "",
]
TINY = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "vocab_size": 120}
CUTS = [1, 2, 3, "all"]
POOLINGS = ["cls", "mean", "tokens"]


def prepared(**options) -> BertEncoder:
    made = BertEncoder(**{**TINY, **options})
    made.prepare(CAPTIONS, Path("unused"))
    return made


def padded(sets: list[Tensor]) -> FeatureBatch:
    features = RaggedFeatures.from_sets([found.numpy() for found in sets])
    rows = torch.arange(len(sets)).numpy()
    return features.pad(rows, rows)


def through_tail(encoder: BertEncoder, tail: nn.Module, captions: list[str] = CAPTIONS) -> list[Tensor]:
    batch = padded(encoder.encode(captions))
    x, mask = tail(batch.x, batch.mask)
    return [vectors[kept] for vectors, kept in zip(x, mask, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", CUTS)
def test_front_and_tail_are_the_encoder(layers: int | str, pooling: str, attention: str):
    whole = prepared(pooling=pooling)
    cut = prepared(pooling=pooling, trainable_layers=layers)
    cut.network.set_attn_implementation(attention)
    tail = cut.tail().eval()
    assert tail.output_dim == whole.feature_dim == 16
    for found, expected in zip(through_tail(cut, tail), whole.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    [alone] = through_tail(cut, tail, CAPTIONS[:1])  # nothing is padded: no mask at all
    torch.testing.assert_close(alone, whole.encode(CAPTIONS)[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_cut_is_a_hidden_state_of_the_network(layers: int):
    cut = prepared(pooling="cls", trainable_layers=layers)
    assert cut.feature_dim == 16
    assert not cut.needs_float32
    for caption, found in zip(CAPTIONS, cut.encode(CAPTIONS), strict=True):
        states = cut.network(**cut.tokenizer(caption, return_tensors="pt"), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found, states[3 - layers][0], rtol=1e-5, atol=1e-5)


def test_all_keeps_the_token_ids():
    cut = prepared(trainable_layers="all", max_length=6)
    assert cut.feature_dim == 1
    assert cut.needs_float32
    expected = [cut.tokenizer(caption)["input_ids"] for caption in CAPTIONS]
    assert [found.squeeze(1).tolist() for found in cut.encode(CAPTIONS)] == [
        [*ids[:5], ids[-1]] if len(ids) > 6 else ids for ids in expected
    ]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", CUTS)
def test_gradients_reach_every_parameter_of_the_tail_and_nothing_else(layers: int | str, pooling: str):
    cut = prepared(pooling=pooling, trainable_layers=layers)
    tail = cut.tail()
    assert all(parameter.requires_grad for parameter in tail.parameters())
    sum((found**2).sum() for found in through_tail(cut, tail)).backward()
    assert [name for name, parameter in tail.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in cut.network.parameters())
    in_network = {parameter.data_ptr() for parameter in cut.network.parameters()}
    assert not in_network & {parameter.data_ptr() for parameter in tail.parameters()}


def pooled_by_hand(network: nn.Module, inputs: dict, pooling: str) -> Tensor:
    hidden = network(**inputs).last_hidden_state
    kept = [vectors[: int(count)] for vectors, count in zip(hidden, inputs["attention_mask"].sum(dim=1), strict=True)]
    return torch.cat([{"cls": v[:1], "mean": v.mean(dim=0, keepdim=True), "tokens": v}[pooling] for v in kept])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", CUTS)
def test_training_from_the_cut_is_training_the_network(layers: int | str, pooling: str):
    cut = prepared(pooling=pooling, trainable_layers=layers)
    batches = [CAPTIONS[:3], CAPTIONS[2:], CAPTIONS[1:4]]
    cached = [padded(cut.encode(batch)) for batch in batches]
    tail = cut.tail().eval()  # no drop-out
    network = prepared(seed=cut.seed).network
    trained = network if layers == "all" else network.encoder.layer[-layers:]
    trained.requires_grad_(True)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (tail, trained)]
    losses = []
    for batch, features in zip(batches, cached, strict=True):
        x, mask = tail(features.x, features.mask)
        full = pooled_by_hand(network, cut.collate(batch), pooling)
        pair = [vectors.sin().mean() for vectors in (x[mask], full)]
        for loss, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([loss.item() for loss in pair])
    assert all(abs(one - other) < 1e-6 for one, other in losses)
    changed = (tail.network if layers == "all" else tail.blocks).state_dict()
    before = (cut.tail().network if layers == "all" else cut.tail().blocks).state_dict()
    assert any((changed[name] - before[name]).abs().max() > 1e-3 for name in changed)
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(changed[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [2, "all"])
def test_state_and_fingerprint(layers: int | str, tmp_path: Path):
    first = prepared(trainable_layers=layers)
    assert first.fingerprint() == {**prepared().fingerprint(), "trainable_layers": layers}
    torch.save(first.state(), tmp_path / "state")
    second = BertEncoder(**TINY, trainable_layers=layers)
    second.restore(torch.load(tmp_path / "state", weights_only=True))
    assert second.fingerprint() == first.fingerprint()
    for found, expected in zip(through_tail(second, second.tail()), through_tail(first, first.tail()), strict=True):
        assert found.shape == expected.shape
    assert torch.equal(torch.cat(second.encode(CAPTIONS)), torch.cat(first.encode(CAPTIONS)))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layers", [0, 2, "all"])
def test_sizes_collate_and_counts(layers: int | str, pooling: str):
    encoder = prepared(pooling=pooling, trainable_layers=layers, max_length=9)
    assert isinstance(encoder, Sizing)
    assert isinstance(encoder, Collating)
    assert isinstance(encoder, Counting)
    tokens = [min(9, len(encoder.tokenizer(caption)["input_ids"])) for caption in CAPTIONS]
    assert encoder.sizes(CAPTIONS) == tokens
    assert encoder.collate(CAPTIONS)["input_ids"].shape == (5, 9)
    sets = encoder.encode(CAPTIONS)
    for found, expected in zip(encoder.encode(encoder.collate(CAPTIONS)), sets, strict=True):
        assert torch.equal(found, expected)
    assert encoder.most_vectors(CAPTIONS) == sum(map(len, sets))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_autocast_changes_little_and_leaves_float32(pooling: str):
    encoder = prepared(pooling=pooling)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder.encode(CAPTIONS)
    for found, expected in zip(rough, encoder.encode(CAPTIONS), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def folder_with(network: PreTrainedModel, path: Path) -> str:
    """A Hugging Face folder of this network with a tokenizer of word pieces."""
    network.save_pretrained(path)
    prepared().tokenizer.save_pretrained(path)
    return str(path)


SIZES = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(("model", "config"), [(RobertaModel, RobertaConfig), (ElectraModel, ElectraConfig)])
def test_kin_of_bert_is_cut_too(model: type, config: type, tmp_path: Path):
    with seeded(0):
        folder = folder_with(model(config(**SIZES)), tmp_path)
    for pooling in POOLINGS:
        expected = prepared(weights=folder, pooling=pooling).encode(CAPTIONS)
        for layers in (1, 2, "all"):
            cut = prepared(weights=folder, pooling=pooling, trainable_layers=layers)
            for found, whole in zip(through_tail(cut, cut.tail().eval()), expected, strict=True):
                torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"trainable_layers must be a whole number from 0 to 2, or all; found 3"):
        prepared(weights=folder, trainable_layers=3)


@pytest.mark.parametrize(
    ("model", "config", "why"),
    [
        (AlbertModel, AlbertConfig, r"a albert network .*its blocks are not network\.encoder\.layer"),
        (MPNetModel, MPNetConfig, r"a mpnet network .*its blocks take more than hidden states and a mask"),
        (DebertaV2Model, DebertaV2Config, r"a deberta-v2 network .*its blocks take more than hidden states and a mask"),
    ],
)
def test_networks_of_another_make_are_refused_but_train_as_a_whole(model: type, config: type, why: str, tmp_path: Path):
    options = {"relative_attention": True} if config is DebertaV2Config else {}
    with seeded(0):
        folder = folder_with(model(config(**SIZES, **options)), tmp_path)
    with pytest.raises(ConfigError, match=why + r".*Type text_encoder\.trainable_layers=0 or all\."):
        prepared(weights=folder, trainable_layers=1)
    whole = prepared(weights=folder, trainable_layers="all")
    expected = prepared(weights=folder).encode(CAPTIONS)
    for found, vectors in zip(through_tail(whole, whole.tail().eval()), expected, strict=True):
        torch.testing.assert_close(found, vectors, rtol=1e-5, atol=1e-5)


def test_tail_before_prepare():
    with pytest.raises(RuntimeError, match=r"call prepare\(\) or restore\(\) first"):
        BertEncoder(**TINY, trainable_layers=1).tail()
