"""Every aggregator and every option of a tower, as ONNX: equal to torch for sets of any number and length."""

import numpy as np
import onnxruntime
import pytest
import torch

from xmodal.config.sources import ConfigSource
from xmodal.errors import ConfigError, DataError
from xmodal.export.exportable import exportable
from xmodal.export.graph import write_graph
from xmodal.export.parity import TOLERANCE, tower_deviation
from xmodal.export.samples import random_batches
from xmodal.models.tower import Tower

GROUPS = ConfigSource().groups()
NEEDED = {"transformer": ["image_aggregator.hidden_size=16"], "gru": ["image_aggregator.hidden_size=16"]}
ALONE = {name: [f"image_aggregator={name}", *NEEDED.get(name, [])] for name in GROUPS["image_aggregator"]}
BOTH_WAYS = [f"image_aggregator.{setting}" for setting in ("num_layers=2", "bidirectional=true")]
POOLED = {
    f"gru, both ways, with {name}": [
        *ALONE["gru"],
        *BOTH_WAYS,
        "image_aggregator.directions=mean",
        f"image_aggregator/pooling={name}",
    ]
    for name in GROUPS["image_aggregator/pooling"]
}
VARIANTS = {
    "gru without ends": [*ALONE["gru"], "image_aggregator.boundaries=false"],
    "lstm, both ways": [*ALONE["lstm"], *BOTH_WAYS],
    "transformer with positions, gpo": [
        *ALONE["transformer"],
        *(f"image_aggregator.{setting}" for setting in ("positions=sinusoidal", "norm_first=true")),
        "image_aggregator/pooling=gpo",
    ],
    "learned positions, fewer than vectors": [
        *ALONE["transformer"],
        *(f"image_aggregator.{setting}" for setting in ("positions=learned", "max_positions=5")),
    ],
    "vectors projected with batch norm": [
        *("image_aggregator=gpo", "model/image_tower/vector_projection=mlp"),
        *(f"model.image_tower.vector_projection.{setting}=true" for setting in ("batch_norm", "residual")),
    ],
    "batch norm, residual, no standardizer, no unit length": [
        *(f"model.image_tower.projection.{setting}=true" for setting in ("batch_norm", "residual")),
        *(f"model.image_tower.{setting}=false" for setting in ("standardize", "normalize")),
    ],
}
CASES = ALONE | VARIANTS


def exported(tower: Tower, file) -> float:
    batches = random_batches(tower)
    axes = {"features": ("batch", "length", batches[0][0].shape[2]), "mask": ("batch", "length")}
    write_graph(exportable(tower), batches[0], axes, ["embeddings"], file)
    return tower_deviation(file, tower, batches)[1]


@pytest.mark.parametrize("name", CASES)
def test_a_tower_gives_the_embeddings_of_torch(name, make_model, tmp_path):
    tower, file = make_model(*CASES[name]).image_tower, tmp_path / "image_tower.onnx"
    assert exported(tower, file) <= TOLERANCE
    given = {part.name: part.shape for part in onnxruntime.InferenceSession(file).get_inputs()}
    assert given == {"features": ["batch", "length", 6], "mask": ["batch", "length"]}


class Together(torch.nn.Module):
    """Towers side by side: one graph of all takes less time than one of each."""

    def __init__(self, towers):
        super().__init__()
        self.towers = torch.nn.ModuleList(towers)

    def forward(self, x, mask):
        return torch.cat([tower(x, mask) for tower in self.towers], dim=1)


@pytest.mark.slow
def test_every_pooling_of_states_gives_what_torch_gives(make_model, tmp_path):
    towers, file = [make_model(*case).image_tower for case in POOLED.values()], tmp_path / "image_tower.onnx"
    batches, together = random_batches(towers[0]), Together(towers).eval()
    axes = {"features": ("batch", "length", 6), "mask": ("batch", "length")}
    write_graph(exportable(together), batches[0], axes, ["embeddings"], file)
    width, deviation = tower_deviation(file, together, batches)
    assert width == 8 * len(POOLED) > 40
    assert deviation <= TOLERANCE


def test_batches_are_of_many_lengths_with_empty_sets_and_gaps(make_model):
    batches = random_batches(make_model().image_tower)
    masks = [mask for _, mask in batches]
    assert {mask.shape[1] for mask in masks} == {1, 4, 7, 9, 23}
    assert len({mask.shape[0] for mask in masks}) > 3
    assert any(not mask.any(dim=1).all() for mask in masks)
    assert any((~mask[:, :-1] & mask[:, 1:]).any() for mask in masks)
    assert all(x[~mask].isnan().all() and x[mask].isfinite().all() for x, mask in batches)


def test_another_tower_is_told_from_the_file(make_model, tmp_path):
    file, batches = tmp_path / "image_tower.onnx", random_batches(make_model().image_tower)
    exported(make_model().image_tower, file)
    other = make_model().image_tower
    with torch.no_grad():
        other.projection.layers[-1].bias[0] += 0.01
    with pytest.raises(DataError, match=r"image_tower\.onnx gives other numbers .* up to \d\.\de-0\d, and 1e-04"):
        tower_deviation(file, other, batches)


def test_the_copy_leaves_the_tower_as_it_was(make_model):
    tower = make_model("image_aggregator=gru", "image_aggregator/pooling=gpo").image_tower
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    x, mask = torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    expected = tower(x, mask)
    exportable(tower)
    np.testing.assert_array_equal(tower(x, mask).detach(), expected.detach())
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


class Deciding(torch.nn.Module):
    """An aggregator that chooses its steps by what it sees."""

    output_dim = 6

    def forward(self, x, mask):
        return x.nan_to_num().sum(dim=1) if float(x.nan_to_num().sum()) > 0 else x.nan_to_num().amax(dim=1)


def test_a_tower_that_onnx_cannot_say_is_refused_in_a_sentence(make_model, tmp_path):
    tower = make_model().image_tower
    tower.aggregator = Deciding()
    with pytest.raises(ConfigError, match=r"image_tower can't be exported to ONNX: .*--safetensors DIR$"):
        exported(tower, tmp_path / "image_tower.onnx")
    assert not any(tmp_path.iterdir())
