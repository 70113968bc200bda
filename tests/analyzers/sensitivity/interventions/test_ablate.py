"""Ablation against closed forms, and against one hook and one run at a time."""

import pytest
import torch
from torch import nn

from layerlens import Lens, ablate, edits, errors
from layerlens.analyzers.sensitivity import methods, noise_response, sensitivity
from layerlens.results import LayerProfile, Matrix, Ranking
from layerlens.targets.target import as_target
from tests.analyzers.sensitivity.interventions.oracles import additive, as_double, edited, outputs, run
from tests.cases import CASES, normal

# -- closed forms ------------------------------------------------------------------------------------------------------


def test_channels_under_a_linear_head_are_worth_what_they_add():
    net, x, reference = additive(), normal(3, 4).double(), normal(7, 4, seed=1).double()
    h, w, mean = net.h(x), net.c.weight[1], net.h(reference).mean(dim=0)
    zero = ablate(net, x, "h", by="channel", target=1)
    torch.testing.assert_close(zero.values, (-w * h).mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(zero.checks["per sample"], (-w * h).T, rtol=1e-12, atol=1e-14)
    assert zero.items == tuple(f"h channel {k}" for k in range(6)) and zero.signed and zero.units == "score"
    to_mean = ablate(net, x, "h", by="channel", target=1, value="mean", reference=reference)
    torch.testing.assert_close(to_mean.values, (w * (mean - h)).mean(0), rtol=1e-12, atol=1e-14)
    drawn = ablate(net, x, "h", by="channel", target=1, value="resample", reference=reference, draws=7)
    torch.testing.assert_close(drawn.values, to_mean.values, rtol=1e-12, atol=1e-14)  # all seven: their mean
    by_draw = w * (net.h(reference) - h.mean(0))  # (draws, channels)
    torch.testing.assert_close(drawn.error, by_draw.std(0) / 7**0.5, rtol=1e-12, atol=1e-14)
    assert zero.error is None and to_mean.error is None


def test_a_dead_channel_is_worth_nothing_to_the_bit():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[2].weight.data[:, 4] = 0
    for value in ("zero", "mean", "resample"):
        options = {} if value == "zero" else {"reference": normal(9, 2, 8, 8, seed=2)}
        found = ablate(net, normal(3, 2, 8, 8), "0", by="channel", value=value, target=0, **options)
        assert float(found.values[4]) == 0
        assert int((found.values != 0).sum()) == 5


def test_what_is_added_is_lost():
    net, x = additive(), normal(2, 4).double()
    profile = ablate(net, x, ["a", "b", "c"], target=2)
    assert isinstance(profile, LayerProfile) and profile.layers == ("a", "b", "c")
    expected = torch.stack([-part[:, 2].mean() for part in (net.a(x), net.b(x), net.c(net.h(x)))])
    torch.testing.assert_close(profile.values, expected, rtol=1e-12, atol=1e-14)


def test_divergence_and_flips_without_a_target():
    net, x = additive(), normal(5, 4).double()
    before, after = net(x), net(x) - net.c(net.h(x))
    kl = (before.softmax(1) * (before.log_softmax(1) - after.log_softmax(1))).sum(1)
    torch.testing.assert_close(ablate(net, x, "c").values, kl.mean().reshape(1))
    flips = (before.argmax(1) != after.argmax(1)).double().mean()
    torch.testing.assert_close(ablate(net, x, "c", metric="flip").values, flips.reshape(1))
    assert not ablate(net, x, "c").signed


# -- every model, against hooks ----------------------------------------------------------------------------------------


def ran(path, module):
    """Every layer that runs: a list of layers does not."""
    return path and not path.endswith(".layers")


@pytest.mark.filterwarnings("ignore:.*are not finite. Where zeros are divided by their length")  # hf_clip does
def test_every_layer_is_what_a_hook_makes_of_it(case):
    model, x = case.build().double(), as_double(case.example())
    target = as_target(case.target).resolve(run(model, x))
    profile = ablate(model, x, ran if len(list(model.modules())) > 65 else None, target=target)
    clean = target(run(model, x))
    for name, value in zip(profile.layers, profile.values.tolist(), strict=True):
        path, _, call = name.partition(" #")
        changed = target(edited(model, x, path, torch.zeros_like, int(call or 0)))
        assert value == pytest.approx(float((changed - clean).mean()), rel=1e-9, abs=1e-11, nan_ok=True), name


@pytest.mark.parametrize("name", ["cnn", "hf_gpt2", "encoder", "gan", "video"])
@pytest.mark.parametrize("by", ["channel", "position", "unit"])
def test_parts_are_what_a_hook_makes_of_them(name, by):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    layer = {"cnn": "conv2", "hf_gpt2": "transformer.h.0.mlp", "encoder": "encoder.layers.0", "gan": "4"}.get(
        name, "frame.0"
    )
    target = as_target(case.target).resolve(run(model, x))
    clean = target(run(model, x))
    found = ablate(model, x, layer, by=by, target=case.target)
    shape = outputs(model, x, layer)[0].shape
    unit = 2 if len(shape) == 3 else 1
    places = [axis for axis in range(1, len(shape)) if axis != unit]
    axes = {"channel": [unit], "position": places, "unit": list(range(1, len(shape)))}[by]
    count = torch.Size(shape[axis] for axis in axes).numel()
    calls = len(outputs(model, x, layer))
    assert len(found) == count * calls
    for number in range(0, count, max(1, count // 7)):
        index = torch.unravel_index(torch.tensor(number), [shape[axis] for axis in axes])

        def change(tensor, index=index):
            part = [slice(None)] * tensor.ndim
            for axis, place in zip(axes, index, strict=True):
                part[axis] = int(place)
            tensor = tensor.clone()
            tensor[tuple(part)] = 0
            return tensor

        changed = target(edited(model, x, layer, change))
        shown = tuple(int(place) for place in index)
        assert found.items[number] == f"{layer} {by} {shown[0] if len(shown) == 1 else shown}"
        assert float(found.values[number]) == pytest.approx(float((changed - clean).mean()), rel=1e-9, abs=1e-12)


class TimeFirst(nn.Module):
    """Takes (batch, time, feature) and keeps time first inside; no layer of it has the batch first but the last."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Linear(3, 6), nn.LSTM(6, 6)
        self.attention, self.out = nn.MultiheadAttention(6, 2), nn.Linear(6, 4)

    def forward(self, x):
        hidden, _ = self.rnn(self.embed(x.transpose(0, 1)))  # (time, batch, feature)
        return self.out(self.attention(hidden, hidden, hidden)[0].mean(dim=0))


def test_models_with_time_before_the_batch():
    torch.manual_seed(0)
    model, x = TimeFirst().double(), normal(2, 5, 3).double()
    clean = run(model, x)[:, 1]
    for by, axis, size in (("position", 0, 5), ("channel", 2, 6)):
        found = ablate(model, x, "embed", by=by, target=1)
        assert len(found) == size and found.settings["at_once"] > 1
        for place in range(size):
            changed = edited(model, x, "embed", lambda t: t.index_fill(axis, torch.tensor(place), 0.0))  # noqa: B023
            assert float(found.values[place]) == pytest.approx(
                float((changed[:, 1] - clean).mean()), rel=1e-9, abs=1e-12
            )


def test_samples_that_influence_each_other_are_run_one_at_a_time():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU(), nn.Linear(5, 2))
    model, x = model.double(), normal(6, 4).double()
    with pytest.warns(UserWarning, match="entries along the first axis of the input influence each other"):
        zero = ablate(model, x, ["0", "2"], target=0)
    assert zero.settings["at_once"] == 1
    clean = run(model, x)[:, 0]
    for layer, value in zip(zero.layers, zero.values.tolist(), strict=True):
        assert value == pytest.approx(float((edited(model, x, layer, torch.zeros_like)[:, 0] - clean).mean()), rel=1e-9)


def test_time_where_the_batch_should_be_is_told():
    torch.manual_seed(0)
    model, x = (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
        normal(5, 2, 8),
    )
    with pytest.warns(UserWarning, match="If that axis is not the batch, give x with the batch first and forward="):
        ablate(model, x, "layers.0", by="channel", target=lambda output: output[:, :, 0].mean(1))
    for by in ("position", "unit"):  # the batch is along axis 1, which the model's copies do not follow
        with pytest.raises(errors.LayerNotFound, match="along axis 0, which grows with the first axis of the input"):
            ablate(model, x, "layers.0", by=by, target=lambda output: output[:, :, 0].mean(1))
    found = ablate(
        model,
        x.transpose(0, 1),
        "layers.0.linear1",
        by="position",
        target=lambda output: output[:, :, 0].mean(0),
        forward=lambda model, x: model(x.transpose(0, 1)),
    )
    assert len(found) == 5 and found.settings["at_once"] > 1


def test_rows_that_are_ordered_by_frame_and_not_by_sample():
    class FramesFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.frame, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            frames = self.frame(x.transpose(0, 1).reshape(-1, 3))  # frame 0 of all samples, frame 1 of all samples, ...
            return self.out(
                torch.relu(frames).reshape(x.shape[1], len(x), 4).mul(torch.arange(x.shape[1])[:, None, None]).sum(0)
            )

    torch.manual_seed(0)
    model, x = FramesFirst().double(), normal(2, 3, 3).double()
    found = ablate(model, x, "frame", by="channel", target=1)
    clean = run(model, x)[:, 1]
    for unit in range(4):
        changed = edited(model, x, "frame", lambda t: t.index_fill(1, torch.tensor(unit), 0.0))[:, 1]  # noqa: B023
        assert float(found.values[unit]) == pytest.approx(float((changed - clean).mean()), rel=1e-9)
    with pytest.raises(errors.LayerNotFound, match="its samples cannot be separated"):
        ablate(model, x, "frame", by="channel", target=1, value="resample")


@pytest.mark.parametrize("name", ["cnn", "lstm", "hf_llama"])
def test_a_batch_is_the_mean_of_its_samples(name):
    case = CASES[name]
    model, x = case.build().double(), as_double(case.example())
    target = 1 if name != "hf_llama" else (-1, 7)
    rows = [{k: v[r : r + 1] for k, v in x.items()} if isinstance(x, dict) else x[r : r + 1] for r in range(2)]
    kinds = [{"value": "zero"}, {"value": "resample", "reference": x, "draws": 2}, {"value": "mean", "reference": x}]
    for options in kinds:
        together = ablate(model, x, target=target, **options)
        alone = [ablate(model, row, target=target, **options) for row in rows]
        torch.testing.assert_close(together.values, torch.stack([one.values for one in alone]).mean(0))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_resampling_a_batch_gives_each_sample_that_of_another():
    from layerlens.analyzers.sensitivity.interventions.replacements import other_samples

    for batch in (2, 3, 8):
        orders = other_samples(batch, 20, seed=1)
        assert len(orders) == batch - 1
        assert all(sorted(order.tolist()) == list(range(batch)) for order in orders)
        pairs = {(row, got) for order in orders for row, got in enumerate(order.tolist())}
        assert len(pairs) == batch * (batch - 1) and all(row != got for row, got in pairs)
    net, x = additive(), normal(6, 4).double()
    with pytest.warns(UserWarning, match="signed changes cancel in their mean"):
        found = ablate(net, x, "h", by="channel", value="resample", target=0, draws=99)  # every sample with every other
    assert found.settings["draws"] == 5
    h, w = net.h(x), net.c.weight[0]
    others_mean = (h.sum(0) - h) / 5
    torch.testing.assert_close(found.checks["per sample"], (w * (others_mean - h)).T, rtol=1e-12, atol=1e-13)
    assert float(found.values.abs().max()) < 1e-13


def test_one_draw_is_told_to_be_noise_and_more_agree():
    case = CASES["cnn"]
    model, x, reference = case.build(), case.example(), normal(64, 3, 8, 8, seed=3)
    options = {"by": "channel", "value": "resample", "reference": reference, "target": 2}
    with pytest.warns(UserWarning, match="one draw shows which sample was drawn"):
        single = [ablate(model, x, "conv1", draws=1, seed=seed, **options) for seed in (0, 1)]
    assert single[0].error is None
    many = [ablate(model, x, "conv1", draws=32, seed=seed, **options) for seed in (0, 1)]
    apart = [float((pair[0].values - pair[1].values).norm()) for pair in (single, many)]
    assert apart[1] < apart[0] / 2
    data = [(sample, 0) for sample in reference]
    loaded = ablate(model, x, "conv1", draws=32, **(options | {"reference": data}))
    torch.testing.assert_close(loaded.values, many[0].values)  # a data set is read sample by sample, drawn the same


# -- screen, groups, null ----------------------------------------------------------------------------------------------


def test_the_screen_is_exact_where_the_model_is_linear():
    net, x = additive(), normal(3, 4).double()
    whole = ablate(net, x, ["h", "a"], by="channel", target=1, screen="first_order")
    torch.testing.assert_close(whole.checks["first order"], whole.values, rtol=1e-10, atol=1e-12)
    assert float(whole.checks["rank correlation"]) == pytest.approx(1)
    best = ablate(net, x, ["h", "a"], by="channel", target=1, count=4)
    assert len(best) == 4 and best.settings["not_measured"] == 5
    assert dict(best.ranked()) == pytest.approx(dict(whole.ranked()[:4]))
    assert "of 9, the 4 with the largest first-order effects" in best.explain()


def test_the_screen_ranks_heads_channels_and_units_of_curved_models():
    for name, by, least in (("cnn", "channel", 0.8), ("hf_gpt2", "head", 0.8), ("lstm", "unit", 0.8)):
        case = CASES[name]
        x = case.example()
        layers = {"lstm": "rnn"}.get(name)
        found = ablate(case.build(), x, layers, by=by, target=case.target, screen="first_order")
        assert float(found.checks["rank correlation"]) > least, name


def test_groups_are_replaced_at_once():
    case = CASES["cnn"]
    model, x = case.build().double(), case.example().double()
    groups = {"both": ["conv1 channel 0", "conv2 channel 3"], "one": ["conv2 channel 3"]}
    found = ablate(model, x, ["conv1", "conv2"], by="channel", target=2, together=groups)
    assert found.items == ("both", "one")
    lens = Lens(model)
    changed = lens.run(x, edits={"conv1": edits.zero(units=0), "conv2": edits.zero(units=3)})
    expected = float((changed - run(model, x))[:, 2].mean())
    assert float(found.values[0]) == pytest.approx(expected, rel=1e-9)
    for wrong, text in (
        ({"a": ["conv1 channel 99"]}, "there is no part 'conv1 channel 99'. Closest"),
        ({"a": "conv1 channel 0"}, "must be a list"),
        ({}, "must map names of groups"),
    ):
        with pytest.raises(errors.OptionError, match=text):
            ablate(model, x, ["conv1", "conv2"], by="channel", target=2, together=wrong)


def test_the_null_moves_as_far_in_a_random_direction():
    """Under y = w . h a step of length r in a random direction of n numbers changes y by r ||w|| / sqrt(n), as rms."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4000), nn.Linear(4000, 1, bias=False)).double().requires_grad_(False)
    x = normal(1, 3).double()
    nulls = torch.cat([ablate(net, x, "0", target=0, null=True, seed=seed).null for seed in range(60)])
    expected = net[0](x).norm() * net[1].weight.norm() / 4000**0.5
    assert float(nulls.square().mean().sqrt()) == pytest.approx(float(expected), rel=0.15)
    found = ablate(CASES["cnn"].build(), CASES["cnn"].example(), by="channel", null=True)
    assert found.null.shape == found.values.shape and bool((found.null >= 0).all())
    signed = ablate(CASES["cnn"].build(), CASES["cnn"].example(), by="channel", null=True, target=2)
    assert bool((signed.null * signed.values >= 0).all()) and float(signed.null.min()) < 0


# -- results and errors ------------------------------------------------------------------------------------------------


def test_positions_by_layers_are_a_matrix():
    case = CASES["hf_llama"]
    found = ablate(case.build(), case.example(), "model.layers.*", by="layer_position", target=case.target)
    assert isinstance(found, Matrix) and found.values.shape == (2, 6)
    single = ablate(case.build(), case.example(), "model.layers.1", by="position", target=case.target)
    assert isinstance(single, Ranking)
    torch.testing.assert_close(found.values[1], single.values)
    assert found.at("model.layers.1", "5") == float(single.values[5])


def test_the_state_that_the_model_reads_is_ablated():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[1][0][-1])  # reads the state, not the sequence

    model, x = Last(), normal(2, 5, 3)
    with pytest.raises(errors.LayerNotFound, match="rnn has no axis of positions"):
        ablate(model, x, "rnn", by="position", target=0)
    assert float(ablate(model, x, "rnn/output", by="position", target=0).values.abs().max()) == 0
    assert float(ablate(model, x, "rnn", by="channel", target=0).values.abs().min()) > 0
    assert float(ablate(model, x, "rnn", target=0).values.abs()) > 0


def test_a_list_with_a_tensor_for_each_sample_is_left_out_by_name():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            hidden = self.fc(x)
            return {"hidden": hidden, "each": [2 * row for row in hidden]}

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.lists = Lists()

        def forward(self, x):
            out = self.lists(x)
            return out["hidden"] + torch.stack(out["each"])

    model, x = Reads(), normal(2, 3)
    assert ablate(model, x, target=0).layers == ("lists.fc",)
    with pytest.raises(errors.LayerNotFound, match=r"a list with a tensor for each sample; .* rows: 'lists/hidden'"):
        ablate(model, x, "lists", target=0)
    whole, out = ablate(model, x, "lists/hidden", target=0), model.lists.fc(x)
    torch.testing.assert_close(whole.values, -out[:, 0].mean().double().detach().reshape(1), check_stride=False)
    noise_response(model.lists, x, "fc", levels=(0.5,), draws=2)  # without a warning that samples influence each other


def test_one_door_leads_here():
    model, x = CASES["mlp"].build(), CASES["mlp"].example()
    through = sensitivity(model, x, question="matters_to_output")
    assert torch.equal(through.values, ablate(model, x).values)
    assert methods()["ablate"][0] == methods()["patch"][0] == "matters_to_output"
    assert torch.equal(Lens(model).ablate(x, "0", by="unit").values, ablate(model, x, "0", by="unit").values)
    assert "does not say what a part does together with others" in through.explain()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"by": "chanel"}, errors.OptionError, "unknown by 'chanel'. Closest: channel"),
        ({"value": "noise"}, errors.OptionError, "unknown value 'noise'"),
        ({"count": 0}, errors.OptionError, "count must be a whole number"),
        ({"draws": 0}, errors.OptionError, "draws must be a whole number"),
        ({"reference": torch.ones(2, 6)}, errors.OptionError, "value='zero' takes no reference"),
        ({"value": "mean", "reference": torch.ones(2, 5)}, errors.InputError, "only the first axis may differ"),
        ({"count": 2, "together": {"a": ["0"]}}, errors.OptionError, "leave count= and screen= out"),
        ({"by": "head"}, errors.LayerNotFound, "no attention with an output projection"),
        ({"by": "position"}, errors.LayerNotFound, "has no axis of positions"),
        ({"layers": "9"}, errors.LayerNotFound, "no layer '9'"),
    ],
)
def test_what_cannot_be_done_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        ablate(CASES["mlp"].build(), CASES["mlp"].example(), **options)


def test_refused_in_company_of_the_input():
    model = CASES["mlp"].build()
    with pytest.raises(errors.InputError, match="needs other samples than the one given"):
        ablate(model, normal(1, 6), value="mean")
    gan = CASES["gan"]
    with pytest.raises(errors.OptionError, match="a first-order screen needs a score"):
        ablate(gan.build(), gan.example(), by="channel", count=3)
