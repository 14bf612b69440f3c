"""A checkpoint is the whole model: what it gives back without the folders of its run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.errors import ConfigError, DataError, FeatureError, WeightsError
from xmodal.models import checkpoint

SENTENCES = ["a small red circle left of a striped blue square", "two green triangles", "nothing known: xyzzy"]


@pytest.fixture(scope="module")
def best(plain_run, tmp_path_factory):
    """The checkpoint alone, in a folder without anything else."""
    alone = tmp_path_factory.mktemp("alone") / "model.ckpt"
    shutil.copy2(plain_run.folder / "checkpoints" / "best.ckpt", alone)
    return alone


def without_folders(path: Path, target: Path) -> Path:
    """The same checkpoint, its configuration naming folders that do not exist."""
    content = torch.load(path, weights_only=True)
    config = content["xmodal"]["config"]
    for name in config["paths"]:
        config["paths"][name] = str(target.parent / "removed" / name)
    config["data"]["root"] = str(target.parent / "removed")
    torch.save(content, target)
    return target


def state_of(experiment, path):
    experiment.model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return experiment.model


def test_content_is_plain_and_readable_without_running_code(best):
    content = torch.load(best, weights_only=True)
    assert content["xmodal"]["config"]["embedding_dim"] == 16
    assert content["xmodal"]["config"]["loss"]["margin"] == 0.2
    assert "image_tower.standardizer.mean" in content["state_dict"]


def test_statistics_are_those_of_the_training_split(best, plain_run):
    model, datamodule = checkpoint.load(best), plain_run.experiment.datamodule
    rows = datamodule.image_rows("train")
    values = np.concatenate([datamodule.image_features[int(row)] for row in rows]).astype(np.float64)
    np.testing.assert_allclose(model.image_tower.standardizer.mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.image_tower.standardizer.deviation, values.std(axis=0), rtol=1e-4)


def test_sentences_have_the_embeddings_of_training_time(best, plain_run, tmp_path):
    trained = state_of(plain_run.experiment, best)
    loaded = checkpoint.load(without_folders(best, tmp_path / "moved.ckpt"))
    torch.testing.assert_close(loaded.encode_texts(SENTENCES), trained.encode_texts(SENTENCES), rtol=0, atol=1e-5)


def test_sentences_have_the_embeddings_that_validation_used(best, plain_run, data_of):
    datamodule, loaded = data_of(plain_run.experiment), checkpoint.load(best)
    rows = datamodule.caption_rows("val")[:10]
    texts = [datamodule.items.captions[row].text for row in rows]
    batch = datamodule.text_features.pad(rows, rows)
    with torch.no_grad():
        stored = loaded.embed_texts(batch)
    # features are stored in half precision
    torch.testing.assert_close(loaded.encode_texts(texts), stored, rtol=0, atol=5e-3)


def test_loaded_model_is_in_evaluation_mode_and_encoding_keeps_the_mode(best):
    model = checkpoint.load(best)
    assert not model.training
    model.train()
    first, second = model.encode_texts(SENTENCES), model.encode_texts(SENTENCES, batch_size=1)
    torch.testing.assert_close(first, second)
    assert model.training


def test_no_sentences_have_no_embeddings(best):
    assert checkpoint.load(best).encode_texts([]).shape == (0, 16)


def test_new_photo_needs_the_name_of_the_encoder(best, workshop):
    with pytest.raises(FeatureError, match=r"thumbnails\.npy.*image_encoder\.made_by=<encoder>"):
        checkpoint.load(best).encode_images([Image.new("RGB", (32, 32))])


def test_model_made_without_a_checkpoint_says_where_encoders_come_from(plain_run):
    from xmodal.models.build import build_model

    model = build_model(plain_run.experiment.cfg)
    with pytest.raises(RuntimeError, match=r"xmodal\.models\.checkpoint\.load"):
        model.encode_texts(SENTENCES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read as a checkpoint"),
        (b"no checkpoint at all", "can't be read as a checkpoint"),
        (None, "There is no checkpoint"),
    ],
)
def test_damaged_or_absent_checkpoint(tmp_path, content, message):
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        checkpoint.load(path)


def test_truncated_checkpoint(best, tmp_path):
    path = tmp_path / "half.ckpt"
    path.write_bytes(best.read_bytes()[: best.stat().st_size // 2])
    with pytest.raises(DataError, match="can't be read as a checkpoint"):
        checkpoint.load(path)


def test_checkpoint_of_another_program(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(DataError, match="was not written by xmodal"):
        checkpoint.load(tmp_path / "other.ckpt")


def test_word_vectors_of_a_file_travel_in_the_checkpoint(workshop, tmp_path):
    file = tmp_path / "tiny.vec"
    words = ["red", "blue", "green", "circle", "square", "triangle", "a", "of", "left"]
    random = np.random.default_rng(0)
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in random.normal(size=12))}" for word in words]
    file.write_text("\n".join([f"{len(words)} 12", *lines]) + "\n", encoding="utf-8")
    run = workshop.run("vectors", f"text_encoder.vectors={file}", "trainer.max_epochs=1", "test=false")
    best = run.folder / "checkpoints" / "best.ckpt"
    expected = state_of(run.experiment, best).encode_texts(["a red circle", "blue square of"])
    file.unlink()
    loaded = checkpoint.load(without_folders(best, tmp_path / "moved.ckpt"))
    torch.testing.assert_close(loaded.encode_texts(["a red circle", "blue square of"]), expected, rtol=0, atol=1e-5)


def test_other_weights_than_those_of_training_are_refused(workshop, tmp_path):
    file = tmp_path / "tiny.vec"
    file.write_text("2 3\nred 1 2 3\ncircle 0 1 0\n", encoding="utf-8")
    run = workshop.run(
        "large-vectors",
        f"text_encoder.vectors={file}",
        "text_encoder.embed_limit_mb=0.0",
        "trainer.max_epochs=1",
        "test=false",
    )
    file.write_text("2 3\nred 9 2 3\ncircle 0 1 0\n", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"tiny\.vec are not those that the checkpoint was trained with"):
        checkpoint.load(run.folder / "checkpoints" / "best.ckpt").encode_texts(["red"])


def test_seeded_encoder_that_gives_other_weights_is_refused(workshop, tmp_path):
    run = bert_run(workshop)
    content = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    content["xmodal"]["fingerprints"]["text"] = '{"weights": "0000"}'
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"trained with: .*0000.*\n.*found now"):
        checkpoint.load(tmp_path / "other.ckpt").encode_texts(["red"])


def bert_run(workshop):
    """BERT with random weights and word pieces learned from the captions; run once."""
    if "bert" not in workshop.finished:
        sizes = ("hidden_size=32", "num_layers=1", "num_heads=2", "vocab_size=200")
        workshop.finished["bert"] = workshop.run(
            "bert",
            "text_encoder=bert",
            *(f"text_encoder.{size}" for size in sizes),
            "trainer.max_epochs=1",
            "test=false",
        )
    return workshop.finished["bert"]


def test_random_bert_comes_back_with_its_word_pieces(workshop, tmp_path):
    run = bert_run(workshop)
    best = run.folder / "checkpoints" / "best.ckpt"
    expected = state_of(run.experiment, best).encode_texts(SENTENCES)
    loaded = checkpoint.load(without_folders(best, tmp_path / "moved.ckpt"))
    torch.testing.assert_close(loaded.encode_texts(SENTENCES), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_photos_are_encoded_from_files_and_pictures(workshop, tmp_path):
    run = workshop.run(
        "vgg", "image_encoder=vgg", "data.limit=2", "trainer.max_epochs=1", "test=false", "features.store=false"
    )
    loaded = checkpoint.load(without_folders(run.folder / "checkpoints" / "best.ckpt", tmp_path / "moved.ckpt"))
    photo = run.experiment.datamodule.items.images[0].path
    picture = Image.open(photo)
    see_through = picture.convert("RGBA")
    found = loaded.encode_images([photo, str(photo), picture, see_through])
    expected = loaded.embed_images(run.experiment.datamodule.image_features.pad(np.array([0]), np.array([0])))
    torch.testing.assert_close(found, expected.expand(4, -1), rtol=0, atol=1e-4)
    with pytest.raises(DataError, match=r"absent\.jpg"):
        loaded.encode_images([tmp_path / "absent.jpg"])


@pytest.mark.slow
def test_named_maker_of_precomputed_features_encodes_photos(workshop, tmp_path):
    maker = "image_encoder.made_by='frcnn min_size=64 max_size=64'"
    with pytest.raises(ConfigError, match=r"made_by.*width 1024.*width 108"):
        workshop.build("made-by", maker)
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).random((66, 1024), dtype=np.float32))
    wide = workshop.run(
        "made-by-wide",
        f"image_encoder.path={tmp_path / 'wide.npy'}",
        maker,
        "trainer.max_epochs=1",
        "test=false",
    )
    embedding = checkpoint.load(wide.folder / "checkpoints" / "best.ckpt").encode_images([Image.new("RGB", (32, 32))])
    assert embedding.shape == (1, 16)
    assert torch.isfinite(embedding).all()
