"""Everything out of range is found at once, before data or weights are read."""

import pytest
from omegaconf import OmegaConf

from xmodal.errors import ConfigError
from xmodal.experiment.parts import build_parts, checked_model, query_encoder_config
from xmodal.models.build import with_feature_widths


def changed(workshop, values, *overrides):
    cfg = workshop.compose("parts", *overrides)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def faults_of(cfg):
    with pytest.raises(ConfigError) as raised:
        build_parts(cfg)
    return raised.value.faults


def test_all_faults_of_all_parts_at_once(workshop):
    values = {
        "loss.margin": -1.0,
        "embedding_dim": 0,
        "text_aggregator.hidden_size": 0,
        "model.image_tower.feature_dropout": 1.5,
        "data.batch_size": 0,
        "data.num_workers": -1,
        "data.train_size": 0,
        "data.limit": 0,
        "text_encoder.window": -3,
        "image_encoder.path": "/nowhere/features.npy",
    }
    faults = faults_of(changed(workshop, values, "text_aggregator=lstm"))
    expected = [
        "loss.margin must be positive and finite, found -1.0",
        "embedding_dim must be at least 1, found 0",
        "text_aggregator.hidden_size must be at least 1, found 0",
        "model.image_tower.feature_dropout must lie in [0, 1), found 1.5",
        "data.batch_size must be at least 1, found 0",
        "data.num_workers must be at least 0, found -1",
        "data.train_size must lie between 1 and 1000000, found 0",
        "data.limit must be at least 1",
        "text_encoder.window must be positive, found -3",
        "/nowhere/features.npy doesn't exist",
    ]
    for text in expected:
        assert [fault for fault in faults if text in fault], text
    assert len(faults) == len(set(faults)) == len(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.betas", [2.0, 0.9], r"optimizer: .*beta.*2\.0"),
        ("trainer.accelerator", "abacus", r"trainer: .*abacus"),
        ("trainer.limit_val_batches", 2.5, r"trainer: .*2\.5"),
    ],
)
def test_values_that_torch_and_lightning_refuse_are_found_before_long_work(workshop, key, value, message):
    with pytest.raises(ConfigError, match=message):
        build_parts(changed(workshop, {key: value}))


def test_scheduler_that_torch_refuses(workshop):
    with pytest.raises(ConfigError, match=r"scheduler: Factor should be < 1"):
        build_parts(changed(workshop, {"scheduler.factor": 3.0}, "scheduler=plateau"))


def test_no_projection_needs_one_width_as_far_as_it_is_known(workshop):
    none = {"model.text_tower.projection.num_layers": 0, "model.image_tower.projection.num_layers": 0}
    narrow = changed(workshop, {**none, "embedding_dim": 30, "text_encoder.vector_size": 20})
    (fault,) = faults_of(narrow)  # of the image's file the width is found out when it is read
    assert fault.startswith(
        "model.text_tower.projection.num_layers=0 leaves vectors as they are, 20 wide, but embeddings are to be 30 wide"
    )
    build_parts(changed(workshop, {**none, "embedding_dim": 20, "text_encoder.vector_size": 20}))


@pytest.mark.parametrize("encoder", ["fasttext", "words"])
def test_no_projection_needs_the_width_that_a_file_of_vectors_states(workshop, tmp_path, encoder):
    path = tmp_path / "few.vec"
    path.write_text("2 4\na 1 2 3 4\nb 1 1 1 1\n")
    chosen = [f"text_encoder={encoder}", f"text_encoder.vectors={path}", "model.text_tower.projection.num_layers=0"]
    (fault,) = faults_of(workshop.compose("parts", *chosen))
    assert fault.startswith("model.text_tower.projection.num_layers=0 leaves vectors as they are, 4 wide")
    build_parts(workshop.compose("parts", *chosen, "embedding_dim=4"))


def test_widths_that_only_features_tell_are_a_fault_of_the_configuration_too(workshop):
    cfg = workshop.compose("parts", "model.image_tower.projection.num_layers=0")
    build_parts(cfg)
    with pytest.raises(ConfigError, match=r"^model\.image_tower\.projection\.num_layers=0 .* 108 wide, .* be 16 wide"):
        checked_model(with_feature_widths(cfg, 108, 16))


def test_faults_of_a_vector_projection(workshop):
    cfg = changed(workshop, {}, "model/image_tower/vector_projection=mlp", "model.image_tower.element_dropout=2.0")
    OmegaConf.update(cfg, "model.image_tower.vector_projection.dropout", 3.0)
    OmegaConf.update(cfg, "model.image_tower.vector_projection.output_dim", 0)
    OmegaConf.update(cfg, "model.text_tower.projection.hidden_dim", 0)
    key = "model.image_tower.vector_projection"
    assert set(faults_of(cfg)) == {
        f"{key}.dropout must lie in [0, 1), found 3.0.",
        f"{key}.output_dim must be at least 1, found 0.",
        "model.image_tower.element_dropout must lie in [0, 1), found 2.0.",
        "model.text_tower.projection.hidden_dim must be at least 1, or null for embedding_dim; found 0.",
    }


def test_faults_of_an_aggregator_and_of_its_pooling_are_named_by_their_own_keys(workshop):
    chosen = ["text_aggregator=gru", "text_aggregator/pooling=gpo", "image_aggregator=transformer"]
    values = {"hidden_size": 0, "pooling.hidden_size": -1, "pooling.temperature": 0.0}
    settings = {f"text_aggregator.{key}": value for key, value in values.items()}
    settings |= {"image_aggregator.hidden_size": 9, "image_aggregator.num_heads": 2}
    assert set(faults_of(changed(workshop, settings, *chosen))) == {
        "text_aggregator.hidden_size must be at least 1, found 0",
        "text_aggregator.pooling.hidden_size must be at least 1, found -1",
        "text_aggregator.pooling.temperature must be a number above 0, found 0.0",
        "image_aggregator.hidden_size=9 must be a multiple of num_heads=2",
    }


def test_callbacks_are_constructed_before_long_work_and_leave_nothing_behind(workshop):
    values = {
        "callbacks.averaging.decay": 1.5,
        "callbacks.health.patience": 0,
        "callbacks.health.max_similarity": 2.0,
        "callbacks.retrieval.ks": [0],
        "callbacks.checkpoint.mode": "most",
    }
    faults = faults_of(changed(workshop, values, "callbacks/averaging=ema"))
    expected = [
        "callbacks.averaging.decay must lie in [0, 1), found 1.5",
        "callbacks.health.patience must be at least 1, found 0",
        "callbacks.health.max_similarity must lie between 0 and 1, found 2.0",
        "callbacks.retrieval.ks must be cut-offs K of recall@K, whole numbers of at least 1, found 0",
        "callbacks.checkpoint: `mode` can be",
    ]
    assert len(faults) == len(expected)
    for text in expected:
        assert [fault for fault in faults if fault.startswith(text)], (text, faults)
    negative = changed(workshop, {"callbacks.averaging.start_epoch": -1}, "callbacks/averaging=swa")
    assert faults_of(negative)[0].startswith("callbacks.averaging.start_epoch must be an epoch")
    build_parts(workshop.compose("of callbacks", "callbacks=early_stopping", "callbacks/averaging=ema"))
    assert not (workshop.root / "of callbacks").exists()


def test_callbacks_that_a_run_needs_are_asked_for_all_at_once(workshop):
    absent = ["callbacks.retrieval=null", "callbacks.record=null", "callbacks.health=null"]
    assert [fault.split(":")[0] for fault in faults_of(workshop.compose("parts", *absent))] == [
        "callbacks.retrieval can't be left out",
        "callbacks.record can't be left out",
    ]


def test_encoder_of_new_items(workshop):
    cfg = workshop.compose("parts")
    assert query_encoder_config(cfg, "image") is None
    assert query_encoder_config(cfg, "text")["_target_"] == "xmodal.encoders.fasttext.FastTextEncoder"
    named = workshop.compose("parts", "image_encoder.made_by=vgg")
    assert query_encoder_config(named, "image") == {
        "_target_": "xmodal.encoders.vgg.VGGEncoder",
        "depth": 16,
        "weights": None,
        "seed": 0,
        "trainable_layers": 0,
        "batch_size": 32,
    }


def test_maker_that_would_be_trained_here_can_not_have_made_the_file(workshop, tmp_path):
    chosen = ["text_encoder=precomputed", f"text_encoder.path={workshop.root / 'thumbnails.npy'}"]
    with pytest.raises(ConfigError, match=r"text_encoder\.made_by=fasttext: vectors=null would be trained"):
        build_parts(workshop.compose("parts", *chosen, "text_encoder.made_by=fasttext"))


def test_a_device_that_is_not_there_and_a_precision_that_it_lacks(workshop):
    for key, value, message in (
        ("device", "cuda:97", r"features\.device=cuda:97: this machine has no such device\. Choices: auto, cpu"),
        ("precision", "float16", r"features\.precision=float16 is for GPUs, and encoders run on the CPU here"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_parts(changed(workshop, {"features.device": "cpu"} | {f"features.{key}": value}))
