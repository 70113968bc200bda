"""Edits of whole layers and of parts, by hand-made oracles."""

import pytest
import torch
from torch import nn

from layerlens import Lens, capture, errors
from layerlens.edits import add, mean, patch, replace, resample, scale, zero
from tests.snapshot import Snapshot


class Twice(nn.Module):
    """Runs one layer twice: h = f(x), y = f(h) + x."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(self.f(x)) + x


class Tokens(nn.Module):
    """(batch, token, 6) through two layers that keep the shape."""

    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.mix(x))


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return Tokens().double().eval(), torch.randn(3, 5, 6, dtype=torch.float64)


def expected(model, x, change):
    with torch.no_grad():
        return model.out(change(model.mix(x)))


PARTS = {
    "units": ({"units": [0, -1]}, (slice(None), slice(None), [0, 5])),
    "positions": ({"positions": [1, -1]}, (slice(None), [1, 4])),
    "samples": ({"samples": 2}, (2,)),
    "slices": ({"units": [*range(2), *range(-2, 0)]}, (slice(None), slice(None), [0, 1, 4, 5])),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("edit", "new"),
    [
        (zero, lambda h: torch.zeros_like(h)),
        (lambda **part: scale(-0.5, **part), lambda h: h * -0.5),
        (lambda **part: replace(3.0, **part), lambda h: torch.full_like(h, 3)),
        (lambda **part: add(torch.arange(6.0), **part), lambda h: h + torch.arange(6.0)),
        (mean, lambda h: h.mean(0, keepdim=True).expand_as(h)),
    ],
)
def test_a_part_is_changed_and_no_more(tokens, part, edit, new):
    model, x = tokens
    options, index = PARTS[part]

    def change(h):
        h = h.clone()
        h[index] = new(h)[index]
        return h

    before = Snapshot(model, x)
    found = Lens(model).run(x, edits={"mix": edit(**options)})
    before.check()
    torch.testing.assert_close(found, expected(model, x, change), rtol=0, atol=0)


def test_parts_and_masks_hold_together(tokens):
    model, x = tokens
    mask = torch.zeros(5, 1, dtype=torch.bool)
    mask[:2] = True
    found = Lens(model).run(x, edits={"mix": zero(samples=[0, 1], units=3, mask=mask)})

    def change(h):
        h = h.clone()
        h[:2, :2, 3] = 0
        return h

    torch.testing.assert_close(found, expected(model, x, change), rtol=0, atol=0)


def test_one_call_of_a_layer_that_runs_twice():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(2, 4)
    lens = Lens(model)
    with torch.no_grad():
        first = model.f(model.f(x) * 0) + x
        second = model.f(model.f(x)) * 0 + x
    torch.testing.assert_close(lens.run(x, edits={"f#0": zero()}), first)
    torch.testing.assert_close(lens.run(x, edits={"f#1": zero()}), second)
    torch.testing.assert_close(lens.run(x, edits={"f#0": zero(), "f#1": scale(1)}), first)
    torch.testing.assert_close(lens.run(x, edits={"f": [scale(2), scale(0)]}), lens.run(x, edits={"f": zero()}))
    with pytest.raises(errors.OptionError, match="two edits name layer 'f'"):
        lens.run(x, edits={"f": zero(), "f#1": zero()})
    with pytest.raises(errors.OptionError, match=r"never made.*f#2"):
        lens.run(x, edits={"f#2": zero()})


def test_patching_every_layer_from_another_run_gives_the_other_run(tokens):
    model, x = tokens
    lens = Lens(model)
    other = lens.capture(x.flip(0) * 2, "mix")
    torch.testing.assert_close(lens.run(x, edits={"mix": patch(other)}), lens.run(x.flip(0) * 2), rtol=0, atol=0)
    half = lens.run(x, edits={"mix": patch(other, positions=[0, 1])})
    torch.testing.assert_close(half[:, :2], lens.run(x.flip(0) * 2)[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(half[:, 2:], lens.run(x)[:, 2:], rtol=0, atol=0)
    one = lens.capture(x[:1], "mix")
    torch.testing.assert_close(lens.run(x, edits={"mix": patch(one)}), lens.run(x[:1]).expand(3, 5, 2))
    with pytest.raises(errors.OptionError, match="call 0 of layer 'mix' is not in the record"):
        lens.run(x, edits={"mix": patch(lens.capture(x, "mix#1"))})
    with pytest.raises(errors.OptionError, match="does not fit what layer 'mix' returned"):
        lens.run(x, edits={"mix": patch(lens.capture(x[:2, :3], "mix"))})
    with pytest.raises(errors.RecordError, match="not in this record"):
        lens.run(x, edits={"mix": patch(lens.capture(x, "out"))})


def test_resampling_gives_no_sample_its_own(tokens):
    model, x = tokens
    lens = Lens(model)
    for seed in range(8):
        mixed = lens.run(x, edits={"mix": resample(seed)})
        plain = lens.run(x)
        taken = [[bool(torch.equal(a, b)) for b in plain] for a in mixed]
        assert all(sum(row) == 1 for row in taken)
        assert not any(taken[n][n] for n in range(3))
        assert torch.equal(mixed, lens.run(x, edits={"mix": resample(seed)}))
    for change in (resample(), mean()):
        with pytest.raises(errors.OptionError, match="one"):
            lens.run(x[:1], edits={"mix": change})


def test_an_lstm_has_its_batch_second():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4)
    x = torch.randn(5, 2, 3)  # (time, batch, feature)
    part = zero(samples=1, positions=[0, -1])
    with pytest.raises(errors.SelectionError, match=r"'h_n' cannot be changed alike.*Name one: '/output', '/h_n'"):
        capture(model, x, [""], edits={"": part})
    record = capture(model, x, [""], edits={"/output": part})
    output, (hidden, _) = record[""]
    with torch.no_grad():
        plain, (state, _) = model(x)
    plain = plain.clone()
    plain[[0, -1], 1] = 0
    torch.testing.assert_close(output, plain)
    torch.testing.assert_close(hidden, state)


def test_what_does_not_fit_is_told(tokens):
    model, x = tokens
    lens = Lens(model)
    for change, message in [
        (zero(units=6), r"no unit 6 in layer 'mix': it has 6 \(0 to 5\)"),
        (zero(samples=3), "no sample 3"),
        (zero(positions=[5]), "no position 5"),
        (zero(heads=(0, 3)), r"layer 'mix' has no heads.*For a slice of units give units=range"),
        (zero(heads=0), "layer 'mix' has no heads"),
        (zero(mask=torch.ones(7, dtype=torch.bool)), "mask bool .* does not fit"),
        (zero(mask=torch.ones(6)), "mask must be a boolean tensor"),
        (replace(torch.ones(7)), "does not fit what layer 'mix' returned"),
        (zero(units=True), "no unit True"),
    ]:
        before = Snapshot(model, x)
        with pytest.raises(errors.OptionError, match=message):
            lens.run(x, edits={"mix": change})
        before.check()
    pictures = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with pytest.raises(errors.OptionError, match="several axes of tokens"):
        Lens(pictures).run(torch.ones(1, 1, 4, 4), edits={"0": zero(positions=0)})
    with pytest.raises(TypeError, match="unit"):
        zero(unit=3)


class Overflow(nn.Module):
    """Makes an infinity of each 1."""

    def forward(self, x):
        return 1 / (1 - x)


def test_zero_also_silences_what_is_not_finite():
    model = nn.Sequential(Overflow(), nn.Identity())
    assert Lens(model).run(torch.tensor([[1.0, 0.0]]), edits={"0": zero(units=0)}).tolist() == [[0.0, 1.0]]


def test_edits_and_captures_nest(tokens):
    model, x = tokens
    record = capture(model, x, ["mix", "out"], edits={"mix": zero()})
    assert not record["mix"].any()
    torch.testing.assert_close(record["out"], model.out.bias.detach().expand(3, 5, 2))


def test_stop_ends_the_run_after_the_last_layer_that_is_wanted():
    ran = []
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    handles = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(net)]
    record = capture(net, torch.ones(1, 2), ["1", "2"], stop=True)
    assert ran == [0, 1, 2]
    assert record.stopped and not record.partial and list(record) == ["1", "2"]
    assert "stopped" in repr(record)
    for handle in handles:
        handle.remove()
    assert not any(layer._forward_hooks for layer in net.modules())
    torch.testing.assert_close(record["2"], capture(net, torch.ones(1, 2), "2")["2"])
    with pytest.raises(errors.OptionError, match="no layer is selected"):
        capture(net, torch.ones(1, 2), (), stop=True)
    with pytest.raises(errors.OptionError, match="gradients need the whole run"):
        capture(net, torch.ones(1, 2), "1", stop=True, gradients=True)


def test_stop_waits_for_the_call_that_is_named():
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(2, 4)
    record = capture(model, x, "f#1", stop=True)
    assert [call.index for call in record.calls("f")] == [1] and record.stopped
    torch.testing.assert_close(record["f"], capture(model, x, "f").calls("f")[1].output)
    assert not capture(model, x, "f#7", stop=True).stopped


def test_gradients_of_every_call_are_those_of_autograd():
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(2, 4, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = Snapshot(model, x)
    record = capture(model, x, gradients=True, target=1)
    before.check()
    weight = model.f.weight
    one, two = record.calls("f")
    torch.testing.assert_close(two.gradient, torch.eye(4, dtype=torch.float64)[1].expand(2, 4))
    torch.testing.assert_close(one.gradient, weight[1].expand(2, 4))
    for wrong, message in [("f", None)]:
        plain = capture(model, x, wrong)
        with pytest.raises(errors.RecordError, match="gradients were not recorded"):
            _ = plain.calls("f")[0].gradient
        assert message is None


def test_gradients_before_an_operation_in_place():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    x = torch.randn(4, 2)
    record = capture(net, x, "0", gradients=True, target=0)
    with torch.no_grad():
        h = net[0](x)
    torch.testing.assert_close(record["0"], h)
    torch.testing.assert_close(record.calls("0")[0].gradient, (h > 0) * net[2].weight)


def test_gradients_of_a_backward_pass_of_the_user_add_up():
    net = nn.Sequential(nn.LSTM(2, 3), nn.Identity())
    lens = Lens(net[0])
    with lens.probe("", gradients=True) as record:
        output, _ = net[0](torch.randn(4, 2, 2))
        with pytest.raises(errors.RecordError, match="no backward pass"):
            _ = record.calls("")[0].gradient
        output.sum().backward(retain_graph=True)
        output.sum().backward()
    (call,) = record.calls("")
    assert list(call.gradient) == ["output"]
    torch.testing.assert_close(call.gradient["0"], torch.full((4, 2, 3), 2.0))
    with torch.no_grad(), lens.probe("", gradients=True) as record:
        net[0](torch.randn(4, 2, 2))
    with pytest.raises(errors.RecordError, match="computed without gradients"):
        _ = record.calls("")[0].gradient


def test_a_score_without_a_way_to_the_layers_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(errors.TargetError, match="no gradient leads"):
        capture(net, torch.ones(1, 2), "0", gradients=True, target=lambda y: y.detach().sum(1))
    with pytest.raises(errors.OptionError, match="gradients=True, or give no target"):
        capture(net, torch.ones(1, 2), "0", target=1)
