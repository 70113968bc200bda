import pytest
import torch
from torch import nn

from layerlens import Lens, activation_maps, latent_traversal, layer_maps
from layerlens.errors import InputError, OptionError, RecordError
from tests.cases import CASES, normal
from tests.snapshot import Snapshot


def generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.ConvTranspose2d(5, 8, 4), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        ).double()


@pytest.mark.parametrize("move", ["set", "add"])
def test_every_output_is_that_of_the_changed_latent(move):
    model, z = generator().eval(), normal(1, 5, 1, 1).double()
    found = latent_traversal(model, z, [3, -5], steps=(-1.0, 0.5), move=move, batch_size=3)
    assert found.names == ("latent 3", "latent 0") and found.outputs.shape == (2, 2, 3, 8, 8)
    for row, index in enumerate((3, 0)):
        for column, step in enumerate((-1.0, 0.5)):
            other = z.clone()
            other[0, index] = step if move == "set" else other[0, index] + step
            assert torch.allclose(found.outputs[row, column], model(other)[0], atol=1e-13)
    assert torch.allclose(found.base, model(z)[0], atol=1e-13)


def test_the_effect_of_a_linear_decoder_is_the_length_of_its_columns():
    model = nn.Linear(4, 6, bias=False).double()
    found = latent_traversal(model, normal(1, 4).double(), steps=(-1.0, 1.0))
    lengths = model.weight.detach().norm(dim=0) / 6**0.5  # the steps have standard deviation 1
    assert torch.allclose(found.effect, lengths, atol=1e-12)
    assert [name for name, _ in found.strongest(4)] == [f"latent {k}" for k in lengths.argsort(descending=True)]
    assert found.row(2) == found.row("latent 2") == 2


def test_directions_and_a_whole_vae():
    class Vae(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(3, 4)

        def forward(self, x):
            raise AssertionError("only the decoder is wanted")

    model, z, ways = Vae().double(), normal(1, 3).double(), torch.eye(3).double()[:2] * 2
    found = latent_traversal(model, z, ways, steps=(0.5,), move="add", forward=lambda vae, z: (vae.decoder(z), None))
    expected = model.decoder(z + 0.5 * ways).detach()
    assert found.names == ("direction 0", "direction 1") and torch.allclose(found.outputs[:, 0], expected, atol=1e-13)


def test_the_model_comes_back_and_the_lens_binds_it():
    model, z = generator().train(), normal(1, 5, 1, 1).double()
    before = Snapshot(model, z)
    found = Lens(model).latent_traversal(z, 2)
    before.check()
    assert found.outputs.shape == (1, 7, 3, 8, 8) and found.steps.tolist() == [-3, -2, -1, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("z", "options", "error", "text"),
    [
        (torch.ones(2, 5, 1, 1), {}, InputError, "must be one floating-point latent"),
        (torch.ones(1, 5, 1, 1), {"dimensions": 5}, OptionError, r"dimensions=5 of a latent with 5 values \(0 to 4\)"),
        (torch.ones(1, 5, 1, 1), {"dimensions": []}, OptionError, "dimensions="),
        (torch.ones(1, 5, 1, 1), {"dimensions": torch.ones(1, 4)}, OptionError, r"directions must be \(direction, 5\)"),
        (torch.ones(1, 5, 1, 1), {"steps": ()}, OptionError, "changes nothing"),
        (torch.ones(1, 5, 1, 1), {"move": "shift"}, OptionError, "unknown move"),
        (torch.ones(1, 5, 1, 1), {"forward": lambda model, z: z.sum()}, InputError, "a tensor .batch, .... is needed"),
    ],
)
def test_what_cannot_be_is_said(z, options, error, text):
    with pytest.raises(error, match=text):
        latent_traversal(generator().float(), z, **options)
    with pytest.raises(OptionError, match="there is no direction 'latent 9'"):
        latent_traversal(generator().float(), torch.ones(1, 5, 1, 1)).row(9)


# -- feature maps by layer ---------------------------------------------------------------------------------------------


def test_the_maps_of_all_layers_are_those_of_each():
    model, x = CASES["cnn"].build(), CASES["cnn"].example()
    paths = [path for path, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.ReLU))]
    several = layer_maps(model, x, paths, units=[0, 1])
    assert [(maps.layer, maps.call) for maps in several]
    for maps in several:
        alone = activation_maps(model, x, maps.layer, units=[0, 1], call=maps.call)
        assert torch.equal(maps.values, alone.values) and maps.axes == alone.axes and torch.equal(maps.inputs, x)


def test_a_layer_that_runs_twice_has_two_maps_and_the_model_comes_back():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(self.fc(x))

    model, x = Twice().train(), normal(2, 3)
    before = Snapshot(model, x)
    found = Lens(model).layer_maps(x, "fc")
    before.check()
    assert [maps.call for maps in found] == [0, 1]
    assert torch.equal(found[1].values, model.fc(model.fc(x)).detach())
    with pytest.raises(RecordError, match="none of the 1 layers ran"):
        layer_maps(model, x, "spare")


@pytest.mark.slow
def test_faces():
    from tests.real_models import face_generator

    model, z = face_generator(), normal(1, 100, 1, 1)
    found = latent_traversal(model, z, range(8))
    assert found.outputs.shape == (8, 7, 3, 64, 64) and bool((found.effect > 0.01).all())
    assert [maps.values.shape[-1] for maps in layer_maps(model, z, nn.ConvTranspose2d)] == [4, 8, 16, 32, 64]
