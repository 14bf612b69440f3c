"""Whole runs on learned words, and on histograms of their characters."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xmodal.commands.extract import run as extract
from xmodal.config.check import check
from xmodal.config.command_line import compose
from xmodal.config.evaluation import EvaluationOptions
from xmodal.errors import ConfigError
from xmodal.experiment.embedded_run import embed_run
from xmodal.experiment.evaluation import evaluate
from xmodal.experiment.parts import build_parts
from xmodal.features.store import FeatureFile
from xmodal.models import checkpoint
from xmodal.tokens import tokenize

WORDS = (
    "text_encoder=words",
    "scheduler=none",
    "text_encoder.vector_size=8",
    "text_encoder.min_count=3",
    "trainer.max_epochs=2",
)
PLAIN_HEADS = ("model.image_tower.feature_dropout=0.0",)
TABLE = "text_tower.tail.table.weight"


@pytest.fixture(scope="module")
def learned(workshop):
    return workshop.run("learned", *WORDS, "text_encoder.word_dropout=0.1", "text_aggregator=lstm")


def content_of(folder: Path, name: str = "best.ckpt") -> dict:
    return checkpoint.read(folder / "checkpoints" / name)


def captions_of(run, role: str) -> list[str]:
    data = run.experiment.datamodule
    return [data.items.captions[row].text for row in data.caption_rows(role)]


def of_validation(run) -> Tensor:
    """Embeddings of the best checkpoint as validation makes them, from the features of the run."""
    model, data = run.experiment.model, run.experiment.datamodule
    model.load_state_dict(content_of(run.folder)["state_dict"])
    rows = data.caption_rows("val")
    with torch.no_grad():
        return model.eval().embed_texts(data.text_features.select(rows).pad(np.arange(len(rows)), rows))


def test_the_words_of_training_captions_are_learned_at_the_rate_of_the_heads(learned):
    experiment, content = learned.experiment, content_of(learned.folder, "last.ckpt")
    words = {word for caption in captions_of(learned, "train") for word in tokenize(caption)}
    encoder = experiment.model.encoders.encoder("text")
    assert set(encoder.vocabulary) <= words
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert group["lr"] == experiment.cfg.optimizer.lr
    initial, table = encoder.tail().table.weight, content["state_dict"][TABLE]
    assert table.shape == (len(encoder.vocabulary) + 1, 8)
    assert bool((table != initial).any(dim=1).all()), "a word, or <unk>, has not learned"
    assert experiment.cfg.text_aggregator.feature_dim == 8
    assert experiment.cfg.text_encoder.seed == experiment.cfg.seed == 42


def test_a_checkpoint_has_the_table_once(learned):
    content = content_of(learned.folder)
    assert not any(isinstance(value, Tensor) for value in content["xmodal"]["states"]["text"].values())
    assert [name for name in content["state_dict"] if name.endswith("table.weight")] == [TABLE]


def test_a_checkpoint_embeds_captions_as_validation_did_and_knows_unseen_words_as_unknown(learned):
    loaded = checkpoint.load(learned.folder / "checkpoints" / "best.ckpt")
    expected = of_validation(learned)
    for size in (256, 7):
        found = loaded.encode_texts(captions_of(learned, "val"), batch_size=size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    sentences = ["a giraffe", "a hippo", "a", "", "?!"]
    found = loaded.encode_texts(sentences)
    assert bool(found.isfinite().all())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[3], found[4])
    assert not torch.allclose(found[0], found[2])
    assert not torch.allclose(found[2], found[3])


def test_an_evaluation_has_the_figures_of_the_run(learned):
    options = EvaluationOptions(bootstrap=0)
    for changes in ([], ["text_encoder.batch_size=5"]):
        found = evaluate(embed_run(learned.folder, options, changes, torch.device("cpu")), options).figures
        for name in ("test/rsum", "test/i2t_mAP", "test/t2i_mAP"):
            assert found[name] == pytest.approx(learned.experiment.metrics[name], abs=1e-3), name


def test_what_is_read_of_a_caption_is_its_numbers(learned):
    batch = next(iter(learned.experiment.datamodule.train_dataloader()))
    assert (batch.text.pooled, batch.text.x.shape[2], batch.text.x.dtype) == (False, 1, torch.float32)
    folder = Path(learned.experiment.cfg.paths.features_dir)
    assert not list(folder.rglob("text-words*")), "there is nothing to store"


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(workshop, stop_after):
    """The table learns from the first epoch on, whatever waits elsewhere."""
    waiting = (*WORDS, *PLAIN_HEADS, "unfreeze_epoch=9")
    whole = workshop.build("whole numbers", *waiting)
    whole.fit()
    stopped, _, _ = workshop.interrupted("stopped numbers", stop_after(epoch=0), *waiting)
    last = stopped.folder / "checkpoints" / "last.ckpt"
    initial = stopped.model.encoders.encoder("text").tail().table.weight
    assert not torch.equal(checkpoint.read(last)["state_dict"][TABLE], initial)
    resumed = workshop.build("resumed numbers", *waiting, f"ckpt_path={last}")
    resumed.fit()
    ends = [content_of(run.folder, "last.ckpt")["state_dict"] for run in (whole, resumed)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(
        ConfigError, match=r"the text encoder, .*vocabulary: \w+… in the checkpoint.*differ: data\.limit"
    ):
        workshop.build("other numbers", *waiting, "data.limit=4", f"ckpt_path={last}")


def test_what_is_said_before_training(workshop, caplog):
    with caplog.at_level("INFO", logger="xmodal"):
        workshop.build("said numbers", *WORDS, "unfreeze_epoch=1", "optimizer.tail_lr_factor=0.0", "data.limit=5")
    assert "distinct words occur at least 3 times (text_encoder.min_count) in 25 training captions" in caplog.text
    assert "text encoder: all of it will be trained" in caplog.text
    assert "at optimizer.lr. Each caption is read as" in caplog.text
    assert "unfreeze_epoch=1 and optimizer.tail_lr_factor=0.0 change nothing: the text encoder learns" in caplog.text
    assert "frozen" not in caplog.text


def test_vectors_of_a_file_start_the_table(workshop, tmp_path):
    """Its width needs no mention, and a checkpoint of the run does without the file."""
    path = tmp_path / "few.vec"
    path.write_text("2 4\na 1 2 3 4\nunicorn 1 1 1 1\n")
    settings = ("text_encoder=words", "scheduler=none", f"text_encoder.vectors={path}", "trainer.max_epochs=1")
    experiment = workshop.build("started", *settings)
    tail, encoder = experiment.model.text_tower.tail, experiment.model.encoders.encoder("text")
    assert tail.table.weight[encoder.vocabulary["a"]].tolist() == [1, 2, 3, 4]
    experiment.fit()
    path.unlink()
    loaded = checkpoint.load(experiment.folder / "checkpoints" / "best.ckpt")
    table = content_of(experiment.folder)["state_dict"][TABLE]
    assert torch.equal(loaded.text_tower.tail.table.weight, table)
    with pytest.raises(ConfigError, match=r"no file .*few\.vec"):
        workshop.build("gone", *settings)
    items, options = experiment.datamodule.items, EvaluationOptions(bootstrap=0)
    of_test = loaded.encode_texts([items.captions[row].text for row in items.caption_rows("test")])
    for changes in ([], [f"text_encoder.vectors={tmp_path / 'moved.vec'}"]):  # which is not looked at
        found = embed_run(experiment.folder, options, changes, torch.device("cpu"))
        torch.testing.assert_close(found.text, of_test, rtol=0, atol=1e-5)


def test_extracting_says_that_there_is_nothing_to_store(workshop, tmp_path, capsys):
    overrides = ["data=scenes", "data.train_size=4", "data.val_size=2", "data.test_size=2", "text_encoder=words"]
    parsed = argparse.Namespace(only="text", overrides=[*overrides, "text_encoder.min_count=1"])
    root = [f"paths.features_dir={tmp_path / 'features'}", f"data.root={workshop.root}/eight", "data.image_size=32"]
    assert extract(parsed, root) == 0
    said = capsys.readouterr().out
    assert "text: 40 items" in said
    assert "vectors of width 1: nothing is stored" in said
    assert not (tmp_path / "features").exists()


def test_settings_that_make_no_sense_are_refused_before_anything_is_read(workshop):
    faults = {
        ("text_encoder.trainable_layers=1",): r"text_encoder\.trainable_layers must be all.*text_encoder=fasttext",
        ("trainer.precision=bf16-true",): r"trainable_layers=all reads numbers of words",
        ("text_encoder.min_count=5000",): r"min_count=5000: no word occurs that often in the 200 training captions",
    }
    for settings, pattern in faults.items():
        with pytest.raises(ConfigError, match=pattern):
            workshop.build("refused", *WORDS, *settings)
    table = f"text_encoder.path={workshop.root}/thumbnails.npy"
    cfg = workshop.compose("maker", "text_encoder=precomputed", table, "text_encoder.made_by=words")
    with pytest.raises(ConfigError, match=r"text_encoder\.made_by=words: with trainable_layers=all"):
        build_parts(cfg)


def test_a_table_that_learns_needs_no_strategy_for_layers_that_wait():
    settings = ["trainer=ddp", "unfreeze_epoch=2", "trainer.max_epochs=2"]
    assert check(compose([*settings, "text_encoder=words"])) == []
    waiting = check(compose([*settings, "text_encoder=words", "image_encoder.trainable_layers=1"]))
    assert [fault.split(":")[0] for fault in waiting] == ["unfreeze_epoch=2"] * 2


def test_histograms_of_characters_from_training_to_a_checkpoint(workshop):
    run = workshop.run("characters", "text_encoder=phoc", "scheduler=none", "trainer.max_epochs=1")
    (file,) = Path(run.experiment.cfg.paths.features_dir).rglob("text-phoc*.h5")
    assert FeatureFile(file).feature_dim == 604
    loaded = checkpoint.load(run.folder / "checkpoints" / "best.ckpt")
    captions = captions_of(run, "val")
    found = loaded.encode_texts([*captions, "", "犬"])
    torch.testing.assert_close(found[:-2], of_validation_pooled(run), rtol=0, atol=1e-4)
    assert torch.equal(found[-2], found[-1])
    options = EvaluationOptions(bootstrap=0)
    figures = evaluate(embed_run(run.folder, options, [], torch.device("cpu")), options).figures
    assert figures["test/rsum"] == pytest.approx(run.experiment.metrics["test/rsum"], abs=1e-3)


def of_validation_pooled(run) -> Tensor:
    """As validation embeds captions that were pooled once."""
    model, data = run.experiment.model, run.experiment.datamodule
    model.load_state_dict(content_of(run.folder)["state_dict"])
    batches = list(data.val_dataloader()[1])
    assert all(batch.pooled for batch in batches)
    with torch.no_grad():
        return torch.cat([model.eval().embed_texts(batch) for batch in batches])
