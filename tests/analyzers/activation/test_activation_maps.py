import pytest
import torch
from torch import nn

from layerlens.analyzers.activation import activation_maps
from layerlens.errors import InputError, LayerNotFound, OptionError, RecordError, SelectionError
from layerlens.probes.run import capture
from tests.cases import CASES, normal


@pytest.mark.parametrize(
    ("name", "layer", "axes"),
    [
        ("cnn", "conv1", ("batch", "unit", "height", "width")),
        ("cnn", "fc", ("batch", "unit")),
        ("mlp", "1", ("batch", "unit")),
        ("hf_vit", "vit.layers.0", ("batch", "unit", "1+height*width")),
        ("hf_bert", "bert.encoder.layer.1.output", ("batch", "unit", "token")),
        ("lstm", "rnn", ("batch", "unit", "time")),
        ("encoder", "encoder.layers.0.linear1", ("batch", "unit", "token")),
        ("hf_resnet", "resnet.encoder", ("batch", "unit", "height", "width")),
        ("hf_gpt2", "", ("batch", "unit", "token")),
    ],
)
def test_units_come_second(name, layer, axes):
    case = CASES[name]
    maps = activation_maps(case.build(), case.example(), layer)
    call = capture(case.build(), case.example(), lambda path, module: path == layer, keep="clone").calls(layer)[0]
    raw = next(t for t in torch.utils._pytree.tree_leaves(call.output) if isinstance(t, torch.Tensor))
    expected = raw if axes[2:] == ("height", "width") else raw.movedim(-1, 1)
    assert torch.equal(maps.values, expected)
    assert maps.axes == axes and maps.layer == layer and maps.units == tuple(range(expected.shape[1]))


def test_a_layer_without_axes_has_those_of_its_neighbours():
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU())
            self.rnn = nn.LSTM(5, 4)

        def forward(self, x):
            return self.rnn(self.block(x).permute(2, 0, 1))[0][-1]

    model, x = Series().eval(), normal(3, 2, 9)
    for layer in ("block", "block.1"):
        maps = activation_maps(model, x, layer)
        assert maps.axes == ("batch", "unit", "time") and maps.values.shape == (3, 5, 7)
    maps = activation_maps(model, x, "rnn")  # time first
    assert maps.axes == ("batch", "unit", "time") and maps.values.shape == (3, 4, 7)
    with torch.no_grad():
        expected = model.rnn(model.block(x).permute(2, 0, 1))[0].permute(1, 2, 0)
    torch.testing.assert_close(maps.values, expected)


def test_channels_last():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = nn.LayerNorm(6), nn.Dropout()

        def forward(self, x):
            return self.drop(self.norm(x.permute(0, 2, 3, 1))).mean(dim=(1, 2))

    for layer in ("norm", "drop"):
        maps = activation_maps(Last(), normal(2, 6, 3, 4), layer)
        assert maps.values.shape == (2, 6, 3, 4) and maps.axes == ("batch", "unit", "height", "width")


def test_a_score_per_sample_and_an_unbatched_sequence():
    class Flat(nn.Module):
        def forward(self, x):
            return x.sum(dim=1)

    assert activation_maps(Flat(), normal(2, 3), "").values.shape == (2, 1)
    maps = activation_maps(nn.Sequential(nn.GRU(3, 4)), normal(5, 3), "0/output")
    assert maps.axes == ("batch", "unit", "time") and maps.values.shape == (1, 4, 5)


def test_units_are_picked():
    case = CASES["cnn"]
    everything = activation_maps(case.build(), case.example(), "conv2")
    some = activation_maps(case.build(), case.example(), "conv2", units=[5, -1, 0])
    assert some.units == (5, 7, 0) and torch.equal(some.values, everything.values[:, [5, 7, 0]])
    assert activation_maps(case.build(), case.example(), "conv2", units=3).units == (3,)


def test_calls_of_a_reused_in_place_layer_are_kept_apart():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    with torch.no_grad():
        first = model.bn1(model.conv1(x)).relu()
        second = (model.bn2(model.conv2(first)) + first).relu()
        third = model.conv3(second)
    for call, expected in enumerate((first, second, third.relu())):
        maps = activation_maps(model, x, "relu", call=call)
        torch.testing.assert_close(maps.values, expected)
        assert maps.call == call
    assert torch.equal(activation_maps(model, x, "relu", call=-1).values, maps.values)
    torch.testing.assert_close(activation_maps(model, x, "conv3").values, third)  # before the in-place ReLU


def test_the_input_is_kept_when_it_is_one_tensor():
    case = CASES["cnn"]
    x = case.example()
    maps = activation_maps(case.build(), x, "conv1")
    assert torch.equal(maps.inputs, x) and maps.inputs is not x
    assert activation_maps(CASES["two_inputs"].build(), CASES["two_inputs"].example(), "conv").inputs is None
    assert activation_maps(CASES["encoder"].build(), CASES["encoder"].example(), "fc").inputs is None


def test_errors():
    cnn, x = CASES["cnn"].build(), CASES["cnn"].example()
    with pytest.raises(SelectionError, match=r"matches 3 layers, one is needed: conv1, conv2, conv3\."):
        activation_maps(cnn, x, nn.Conv2d)
    with pytest.raises(SelectionError, match=r"name one"):
        activation_maps(cnn, x, None)
    with pytest.raises(LayerNotFound, match=r"no layer .conv9. in ResidualNet .*Closest: "):
        activation_maps(cnn, x, "conv9")
    with pytest.raises(RecordError, match=r"'relu' ran 3 times \(calls 0 to 2\); there is no call 3"):
        activation_maps(cnn, x, "relu", call=3)
    with pytest.raises(RecordError, match=r"'conv1' ran once"):
        activation_maps(cnn, x, "conv1", call=1)
    with pytest.raises(OptionError, match=r"there is no unit 8: layer 'conv1' has 8 \(0 to 7\)"):
        activation_maps(cnn, x, "conv1", units=[0, 8])
    with pytest.raises(OptionError, match=r"units=\[\] keeps none"):
        activation_maps(cnn, x, "conv1", units=[])
    early = CASES["early_exit"]
    with pytest.raises(RecordError, match=r"'blocks.4' did not run"):
        activation_maps(early.build(), early.example(), "blocks.4")
    with pytest.raises(InputError, match=r"NaN"):
        activation_maps(cnn, x * float("nan"), "conv1")


def test_a_layer_that_returns_no_tensor_is_an_error():
    class Says(nn.Module):
        def forward(self, x):
            return "text"

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.says = Says()

        def forward(self, x):
            self.says(x)
            return x

    with pytest.raises(RecordError, match=r"'says' returned str"):
        activation_maps(Model(), normal(2, 3), "says")


def test_every_layer_of_every_case_and_the_model_is_given_back(case, hooks_of):
    model = case.build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record = capture(case.build(), case.example())
    for path in record:
        try:
            maps = activation_maps(model, case.example(), path)
        except SelectionError as error:  # several tensors that the model reads
            name = str(error).partition("Name one: '")[2].partition("'")[0]
            maps = activation_maps(model, case.example(), name)
        assert maps.values.ndim >= 2 and len(maps.axes) == maps.values.ndim and maps.axes[0] == "batch"
        assert not maps.values.requires_grad
    assert hooks_of(model) == 0 and all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
