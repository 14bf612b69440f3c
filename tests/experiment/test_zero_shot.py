"""`xmodal evaluate --zero-shot` in this process: two encoders on rendered scenes, without a run."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from xmodal.cli import main
from xmodal.config.command_line import compose
from xmodal.config.evaluation import EvaluationOptions
from xmodal.data.images import read_image
from xmodal.encoders.bert import BertEncoder
from xmodal.encoders.clip import CLIPImageEncoder, CLIPTextEncoder
from xmodal.encoders.fasttext import FastTextEncoder
from xmodal.encoders.timm import TimmEncoder
from xmodal.encoders.vgg import VGGEncoder
from xmodal.encoders.weights import seeded
from xmodal.encoders.wordpiece import train_vocabulary, wordpiece_tokenizer
from xmodal.errors import XmodalError
from xmodal.experiment.features import load_dataset
from xmodal.experiment.parts import Parts, build_parts
from xmodal.experiment.zero_shot import _doubt, embed_zero_shot
from xmodal.features.precomputed import PrecomputedFeatures
from xmodal.retrieval.evaluate import evaluate_retrieval
from xmodal.retrieval.record import read_record

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
PHOTO = {"image_size": 32, "patch_size": 16}
CLIPS = (
    "image_encoder=clip",
    "text_encoder=clip",
    *(f"{side}_encoder.{name}={value}" for side in ("image", "text") for name, value in SMALL.items()),
    *(f"image_encoder.{name}={value}" for name, value in PHOTO.items()),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Settings of a small data set whose features are kept between the tests."""
    folder = tmp_path_factory.mktemp("zero")
    sizes = ("data.train_size=10", "data.val_size=4", "data.test_size=8", "data.image_size=48")
    return ("data=scenes", *sizes, f"paths.output_dir={folder}")


@pytest.fixture(scope="module")
def items(scenes: tuple[str, ...]):
    cfg = compose([*scenes, *CLIPS])
    return load_dataset(cfg, build_parts(cfg)).used


@pytest.fixture(scope="module")
def vectors(items) -> tuple[np.ndarray, np.ndarray]:
    """What the encoders give, item by item, in the precision of the store."""
    image, text = CLIPImageEncoder(weights=None, **SMALL, **PHOTO), CLIPTextEncoder(weights=None, **SMALL)
    image.prepare([], Path("unused"))
    text.prepare([items.captions[row].text for row in items.caption_rows("train")], Path("unused"))
    photos = [image.encode([image.preprocess(read_image(one.path))])[0] for one in items.images]
    captions = [text.encode([one.text])[0] for one in items.captions]
    return tuple(torch.cat(found).half().float().numpy() for found in (photos, captions))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluated(*words: str) -> dict[str, float]:
    assert main(["evaluate", "--zero-shot", *words, "--json", "figures.json"]) == 0
    return json.loads(Path("figures.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def expected(items, vectors: tuple[np.ndarray, np.ndarray], split: str, **options: object) -> dict[str, float]:
    """Figures of the split by `evaluate_retrieval`, whose own tests compare it with loops."""
    images, captions = items.image_rows(split), items.caption_rows(split)
    sides = (vectors[0][images], vectors[1][captions], images, items.caption_images[captions])
    return evaluate_retrieval(*map(as_tensor, sides[:2]), *sides[2:], **options).metrics


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def test_figures_are_those_of_the_encoders_own_vectors(scenes, items, vectors, capsys):
    found = evaluated(*scenes, *CLIPS, "--bootstrap", "60")
    known = expected(items, vectors, "test")
    assert {name: found[f"test/{name}"] for name in known} == pytest.approx(known, abs=1e-4)
    assert found["test/i2t_R1_low"] <= found["test/i2t_R1"] <= found["test/i2t_R1_high"]
    said = capsys.readouterr()
    assert "image_encoder=clip, text_encoder=clip, zero-shot: test of scenes, 8 images, 40 captions" in said.out
    assert "cosine similarity" in said.out
    record = read_record(Path("zero_shot.scenes.evaluation_test.npz"))
    assert (record.name, record.data_name) == ("test", "scenes")


def test_rank_of_every_query_is_that_of_a_loop(scenes, items, vectors):
    """One plus the captions (of other images) that score no less than the best of the image's own."""
    assert main(["evaluate", *scenes, "--zero-shot", *CLIPS, "--split", "val", "--bootstrap", "0"]) == 0
    images, captions = items.image_rows("val"), items.caption_rows("val")
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in vectors]
    ranks = []
    for image in images:
        scores = {caption: float(unit[0][image] @ unit[1][caption]) for caption in captions}
        best = max(score for caption, score in scores.items() if items.caption_images[caption] == image)
        ranks.append(1 + sum(s >= best - 1e-7 for c, s in scores.items() if items.caption_images[c] != image))
    record = read_record(Path("zero_shot.scenes.evaluation_val.npz"))
    assert record.queries["i2t"].ranks.tolist() == ranks


def test_a_second_time_features_come_from_the_store(scenes, caplog):
    evaluated(*scenes, *CLIPS, "--bootstrap", "0")
    with caplog.at_level(logging.INFO):
        caplog.clear()
        evaluated(*scenes, *CLIPS, "--bootstrap", "0")
    assert "Extracting" not in caplog.text
    assert "Training" not in caplog.text


def test_all_options_of_a_run_are_taken(scenes, items, vectors, capsys):
    quick = ("--bootstrap", "0")
    wide = evaluated(*scenes, *CLIPS, "--gallery", "all", "--index", "flat", *quick)
    assert wide["test_gallery_all/i2t_index_recall@10"] == 100.0
    assert wide["test_gallery_all/i2t_meanR"] >= expected(items, vectors, "test")["i2t_meanR"]
    options = ("--folds", "2", "--rerank", "querybank", "--bank-size", "5", "--record", "kept.npz")
    corrected = evaluated(*scenes, *CLIPS, *options, *quick)
    assert {"test_folds2/rsum", "test_folds2_querybank/rsum"} <= set(corrected)
    assert {path.name for path in Path.cwd().glob("kept*.npz")} == {"kept.npz", "kept_querybank.npz"}
    capsys.readouterr()
    assert main(["compare", "kept.npz", "kept.npz", "--resamples", "50"]) == 0
    assert "i2t_R1" in capsys.readouterr().out


def test_a_set_of_several_vectors_is_its_mean(scenes, items):
    """Words on one side, a file on the other; the caption's vector is the mean of its words'."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(items.images), 8)).astype(np.float32)
    np.save("images.npy", images)
    table = {
        word: rng.normal(size=8).round(3) for one in items.captions for word in re.findall(r"\w+", one.text.lower())
    }
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in table.items()]
    Path("words.vec").write_text("\n".join([f"{len(lines)} 8", *lines]) + "\n")
    found = evaluated(
        *scenes,
        *("image_encoder=precomputed", "image_encoder.path=images.npy"),
        *("text_encoder=fasttext", "text_encoder.vectors=words.vec"),
        *("features.dtype=float32", "--bootstrap", "0"),
    )
    texts = [np.mean([table[w] for w in re.findall(r"\w+", one.text.lower())], axis=0) for one in items.captions]
    known = expected(items, (images, np.stack(texts).astype(np.float32)), "test")
    assert {name: found[f"test/{name}"] for name in known} == pytest.approx(known, abs=1e-4)


def test_two_widths_are_refused_before_anything_is_encoded(scenes, capsys, caplog):
    with caplog.at_level(logging.INFO):
        said = refused(capsys, "--zero-shot", *scenes, *CLIPS, "text_encoder.hidden_size=24", "features.dtype=float32")
    assert "image_encoder makes vectors 16 wide and text_encoder vectors 24 wide" in said
    assert "image_encoder=clip text_encoder=clip" in said
    assert "Extracting" not in caplog.text


def save_model(folder: Path, seed: int, captions: list[str]) -> Path:
    """A whole CLIP with random weights, as ``save_pretrained`` writes it."""
    vocabulary = train_vocabulary(captions, 200)
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    with seeded(seed):
        text = {**tiny, **special, "vocab_size": len(vocabulary), "max_position_embeddings": 20}
        whole = CLIPModel(CLIPConfig(text_config=text, vision_config={**tiny, **PHOTO}, projection_dim=16))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    for part in (whole, wordpiece_tokenizer(vocabulary), processor):
        part.save_pretrained(folder)
    return folder


def test_two_models_of_one_width_are_warned_of(scenes, items, tmp_path, caplog):
    captions = [one.text for one in items.captions]
    first, second = (save_model(tmp_path / f"model{seed}", seed, captions) for seed in (1, 2))
    chosen = ("image_encoder=clip", "text_encoder=clip", f"image_encoder.weights={first}", "--bootstrap", "0")
    evaluated(*scenes, *chosen, f"text_encoder.weights={first}")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    evaluated(*scenes, *chosen, f"text_encoder.weights={second}")
    assert f"image_encoder=clip ({first}) and text_encoder=clip ({second}) do not share a space" in caplog.text


@pytest.mark.parametrize(
    ("image", "text", "doubt"),
    [
        (
            CLIPImageEncoder(),
            CLIPTextEncoder(),
            "image_encoder.weights=null, text_encoder.weights=null: random weights",
        ),
        (CLIPImageEncoder(weights="pretrained"), CLIPTextEncoder(), r"^text_encoder.weights=null: random weights"),
        (TimmEncoder("test_vit"), BertEncoder(weights="pretrained"), r"^image_encoder.weights=null: random weights"),
        (
            TimmEncoder("test_vit", weights="pretrained"),
            BertEncoder(weights="pretrained"),
            r"image_encoder=timm \(test_vit\) and text_encoder=bert \(bert-base-uncased\) do not share a space",
        ),
        (
            VGGEncoder(weights="pretrained"),
            FastTextEncoder(),
            r"image_encoder=vgg \(pretrained\) and text_encoder=fasttext do not share a space",
        ),
        (
            PrecomputedFeatures("images.npy"),
            PrecomputedFeatures("texts.npy", modality="text"),
            r"only where image_encoder=precomputed and text_encoder=precomputed share a space, which files",
        ),
        (CLIPImageEncoder(weights="a/b"), CLIPTextEncoder(weights="a/c"), r"clip \(a/b\) and .* do not share a space"),
        (CLIPImageEncoder(weights="a/b"), CLIPTextEncoder(model="a/b", weights="pretrained"), None),
    ],
)
def test_only_the_towers_of_one_model_are_not_doubted(image, text, doubt):
    found = _doubt(Parts(None, image, text, {}))
    assert (found is None) if doubt is None else re.search(doubt, found)


def test_widths_that_are_known_are_compared_before_photos_are_read_or_words_learned(tmp_path, capsys, caplog):
    """Defaults: VGG's 4096 against FastText's 100."""
    with caplog.at_level(logging.INFO):
        said = refused(capsys, "--zero-shot", f"paths.output_dir={tmp_path}")
    assert "image_encoder makes vectors 4096 wide and text_encoder vectors 100 wide" in said
    assert "Training" not in caplog.text
    assert list(tmp_path.iterdir()) == [], "scenes were not even rendered"


def test_vectors_are_not_learned_for_an_encoder_whose_width_is_another(scenes, tmp_path, capsys, caplog):
    """CLIP's width is that of its weights, so these are loaded first."""
    clip = CLIPS[0], *(word for word in CLIPS[2:] if word.startswith("image"))
    with caplog.at_level(logging.INFO):
        said = refused(capsys, "--zero-shot", *scenes, *clip, "text_encoder=fasttext", f"paths.cache_dir={tmp_path}")
    assert "image_encoder makes vectors 16 wide and text_encoder vectors 100 wide" in said
    assert [path.name for path in tmp_path.iterdir()] == ["images.jsonl"], "FastText keeps what it learned here"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--zero-shot", "outputs/runs/some"), "outputs/runs/some: --zero-shot takes settings alone"),
        (("--zero-shot", "--embeddings", "x.npz"), "choose one of them"),
        (("--zero-shot", "data.limt=4"), "Did you mean 'data.limit'?"),
        (("--zero-shot", "image_encoder=clp"), "image_encoder"),
        (("--zero-shot", "--splt", "test"), "Did you mean '--split'?"),
        (("--zero-shot", "--split", "tset"), "--split must be one of train, val, test, found tset"),
        (("--zero-shot", "--similarity", "dot"), "with --zero-shot type model.similarity=dot"),
        (("--zero-shot", "image_encoder=clip", "image_encoder.weights=/no/where/x"), "no such file or folder"),
        (("data=scenes", "image_encoder=clip"), "the run comes first"),
        ((), "--zero-shot data=… image_encoder=clip text_encoder=clip"),
    ],
)
def test_a_wrong_request_is_explained(words, fault, capsys):
    assert fault in refused(capsys, *words)


def test_values_out_of_range_come_at_once_and_layers_to_train_are_refused(scenes, capsys):
    said = refused(capsys, "--zero-shot", *scenes, *CLIPS, "image_encoder.num_heads=3", "text_encoder.batch_size=0")
    assert "image_encoder.hidden_size must be a multiple of num_heads, found 16 and 3." in said
    assert "text_encoder.batch_size must be positive, found 0." in said
    said = refused(capsys, "--zero-shot", *scenes, *CLIPS, "image_encoder.trainable_layers=all")
    assert "image_encoder.trainable_layers=all: --zero-shot trains nothing" in said


def test_options_that_do_not_go_with_the_data_are_refused(scenes, capsys):
    said = refused(capsys, "--zero-shot", *scenes, *CLIPS, "--folds", "3")
    assert "--folds 3 does not cut 8 images" in said
    for options, settings, fault in (
        ({"rerank": "querybank"}, ["model.similarity=dot"], "needs --inverse-temperature BETA under dot similarity"),
        ({"relevance": "class"}, [], "Relevance by class needs a label for every image"),
    ):
        with pytest.raises(XmodalError, match=fault):
            embed_zero_shot(EvaluationOptions(**options), [*scenes, *CLIPS, *settings], torch.device("cpu"))
