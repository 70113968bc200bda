"""Pruning and rounding of weights against slow loops; rows, data and options of every method."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import layerlens
from layerlens import errors
from layerlens.analyzers.sensitivity import weight_sensitivity
from tests.analyzers.sensitivity.weights.test_curvature import mlp
from tests.cases import CASES, normal
from tests.snapshot import Snapshot

# -- pruning and rounding --------------------------------------------------------------------------------------------


def spoiled(net, name, tensor):
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.get_parameter(name).copy_(tensor)
    return twin


def test_pruning_is_that_of_a_slow_loop():
    net, x, labels = mlp(4, 6, 3), normal(10, 4).double(), torch.arange(10) % 3
    found = weight_sensitivity(net, x, measure="pruning", labels=labels, sparsities=(0, 0.5, 1), batch_size=4)
    accuracy = weight_sensitivity(net, x, measure="pruning", labels=labels, sparsities=(0.5,), metric="accuracy")
    assert found.series == ("0 % of weights zero", "50 % of weights zero", "100 % of weights zero")
    for row, layer in enumerate(found.layers):
        weight = net.get_parameter(f"{layer}.weight").detach()
        for column, share in enumerate((0, 0.5, 1)):
            order = weight.abs().flatten().argsort()[: round(share * weight.numel())]
            pruned = weight.clone().flatten().index_fill(0, order, 0).reshape(weight.shape)
            twin = spoiled(net, f"{layer}.weight", pruned)
            terms = [nn.functional.cross_entropy(m(x), labels, reduction="none") for m in (net, twin)]
            change = (terms[1] - terms[0]).detach()
            assert float(found.values[row, column]) == pytest.approx(float(change.mean()), abs=1e-12)
            assert float(found.error[row, column]) == pytest.approx(float(change.std() / 10**0.5), abs=1e-9)
            if share == 0.5:
                right = [float((m(x).argmax(dim=1) == labels).double().mean()) for m in (net, twin)]
                assert float(accuracy.values[row, 0]) == pytest.approx(right[0] - right[1])
    assert float(found.values[:, 0].abs().max()) == 0
    assert found.checks["clean"] == pytest.approx(float(nn.functional.cross_entropy(net(x), labels).detach()))


def test_exactly_the_share_is_zeroed_where_all_weights_are_alike():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(int((self.weight == 0).sum()))
            return super().forward(x)

    net = Spy(4, 5)
    nn.init.ones_(net.weight)
    weight_sensitivity(net, normal(2, 4), measure="pruning", sparsities=(0.25, 0.7))
    assert seen == [0, 5, 14]
    assert bool((net.weight == 1).all())


def test_channels_are_pruned_whole_and_along_the_right_axis():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)).double()
    x = normal(3, 1, 6, 6).double()
    found = weight_sensitivity(net, x, measure="pruning", structured=True, sparsities=(0.5,))
    assert found.settings["metric"] == "relative_change"
    for row, (name, axis) in enumerate((("0.weight", 0), ("2.weight", 1))):
        weight = net.get_parameter(name).detach()
        norms = weight.movedim(axis, 0).flatten(1).norm(dim=1)
        pruned = weight.index_fill(axis, norms.argsort()[: len(norms) // 2], 0)
        outputs = [m(x).flatten(1).detach() for m in (net, spoiled(net, name, pruned))]
        expected = ((outputs[1] - outputs[0]).norm(dim=1) / outputs[0].norm(dim=1)).mean()
        torch.testing.assert_close(found.values[row, 0], expected)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_rounding_is_that_of_a_slow_loop(granularity):
    net, x = mlp(4, 6, 3), normal(10, 4).double()
    found = weight_sensitivity(net, x, measure="quantization", granularity=granularity, bits=(4, 2))
    for row, layer in enumerate(found.layers):
        weight = net.get_parameter(f"{layer}.weight").detach()
        for column, bits in enumerate((4, 2)):
            rounded = weight.clone()
            for channel in range(len(weight)):
                largest = weight[channel].abs().max() if granularity == "channel" else weight.abs().max()
                scale = largest / (2 ** (bits - 1) - 1)
                rounded[channel] = torch.stack([torch.round(w / scale) * scale for w in weight[channel]])
            assert len(rounded[0].abs().unique()) <= 2 ** (bits - 1)
            p, q = (m(x).log_softmax(1).detach() for m in (net, spoiled(net, f"{layer}.weight", rounded)))
            expected = (p.exp() * (p - q)).sum(dim=1).mean()
            assert float(found.values[row, column]) == pytest.approx(float(expected), rel=1e-8)


def test_small_weights_matter_less_than_random_ones_and_rounding_errors_less_than_none():
    torch.manual_seed(0)
    x = torch.randn(300, 6).double()
    labels = (x[:, 0] * 2 + x[:, 1] > 0).long()
    net = nn.Linear(6, 2).double()
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
    net.zero_grad()
    found = weight_sensitivity(net, x, measure="pruning", labels=labels, sparsities=(0.5,), null=True)
    assert float(found.null[0, 0]) > 5 * abs(float(found.values[0, 0]))
    rounded = weight_sensitivity(net, x, measure="quantization", labels=labels, bits=(3,), null=True)
    assert rounded.null.shape == rounded.values.shape and float(rounded.null[0, 0]) != float(rounded.values[0, 0])


def test_the_null_of_curvature_is_the_model_with_its_weights_in_random_order():
    from layerlens.analyzers.common.null_model import shuffled_parameters

    net, x = mlp(4, 6, 3), normal(10, 4).double()
    found = weight_sensitivity(net, x, null=True, seed=3)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for name, tensor in shuffled_parameters(net, 3).items():
            twin.get_parameter(name).copy_(tensor)
    torch.testing.assert_close(found.null, weight_sensitivity(twin, x).values)


# -- rows, data and options ------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two names for one weight, as in language models."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.mix = nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.embed(ids).mean(dim=1))))


def test_shared_parameters_are_counted_once_and_told():
    net, ids = Tied().double(), torch.tensor([[1, 2], [3, 4], [5, 6]])
    found = weight_sensitivity(net, ids)
    assert found.layers == ("embed", "mix")
    assert found.settings["shared"] == {"embed.weight": ("head.weight",)}
    assert found.settings["left_out"] == {"head": "head.weight is embed.weight, counted there"}
    assert "shared parameters counted once (embed.weight with head.weight)" in found.method
    expected = 0.0
    for row in range(3):
        logits = net(ids[row : row + 1])[0].log_softmax(0)
        for k in range(7):
            (g,) = torch.autograd.grad(logits[k], net.embed.weight, retain_graph=True)
            expected += float(logits[k].detach().exp() * g.square().sum()) / 3
    assert float(found.values[0]) == pytest.approx(expected)
    pruned = weight_sensitivity(net, ids, "head", measure="pruning", sparsities=(1.0,))
    assert pruned.layers == ("head",)  # the one that was asked for; zero in both places
    uniform = torch.full((3, 7), 1 / 7).double()
    p = net(ids).softmax(dim=1).detach()
    torch.testing.assert_close(pruned.values[0, 0], (p * (p / uniform).log()).sum(dim=1).mean())


def test_rows_are_modules_containers_or_parameters():
    case = CASES["cnn"]
    model, x = case.build().double(), case.example().double()
    every = weight_sensitivity(model, x)
    assert every.layers == ("conv1", "bn1", "conv2", "bn2", "conv3", "fc")
    assert every.checks["parameters"].sum() == sum(p.numel() for p in model.parameters())
    each = weight_sensitivity(model, x, by="parameter")
    sums = {}
    for name, value in zip(each.layers, each.values.tolist(), strict=True):
        sums[name.rpartition(".")[0]] = sums.get(name.rpartition(".")[0], 0) + value
    assert list(sums.values()) == pytest.approx(every.values.tolist())
    whole = weight_sensitivity(nn.Sequential(model), x, "0")
    assert float(whole.values[0]) == pytest.approx(float(every.values.sum()))
    parts = weight_sensitivity(nn.Sequential(model), x, ["0", "0.fc"])
    assert parts.values.tolist() == pytest.approx([float(every.values[:-1].sum()), float(every.values[-1])])
    with pytest.raises(errors.LayerNotFound, match="none of the selected layers holds a floating-point parameter"):
        weight_sensitivity(model, x, "relu")
    with pytest.warns(UserWarning, match="bn1: it holds no weights"):
        weight_sensitivity(model, x, ["conv1", "bn1"], measure="pruning")


def test_a_data_set_gives_what_its_samples_give_together():
    net, x, labels = mlp(4, 6, 3), normal(10, 4).double(), torch.arange(10) % 3
    data = TensorDataset(x, labels)
    for options in ({"measure": "hessian_trace", "probes": 9}, {"measure": "pruning"}, {"measure": "quantization"}):
        whole = weight_sensitivity(net, x, labels=labels, batch_size=10, **options)
        for given in (data, DataLoader(data, 3), list(data), DataLoader(data, None)):
            streamed = weight_sensitivity(net, given, batch_size=4, **options)
            torch.testing.assert_close(streamed.values, whole.values)
    torch.testing.assert_close(weight_sensitivity(net, DataLoader(data, 3)).values, weight_sensitivity(net, x).values)
    alone = [weight_sensitivity(net, x[row : row + 1]).values for row in range(10)]
    torch.testing.assert_close(weight_sensitivity(net, x).values, torch.stack(alone).mean(dim=0))


def test_real_valued_labels_come_with_the_data():
    net, x, y = mlp(4, 5, 2), normal(9, 4).double(), normal(9, 2, seed=3).double()
    options = {"measure": "pruning", "likelihood": "gaussian", "metric": "loss"}
    whole = weight_sensitivity(net, x, labels=y, **options)
    for given in (DataLoader(TensorDataset(x, y), 4), TensorDataset(x, y), list(zip(x.numpy(), y, strict=True))):
        streamed = weight_sensitivity(net, given, labels="last", read=as_double, batch_size=4, **options)
        torch.testing.assert_close(streamed.values, whole.values)
    expected = (net(x) - y).square().sum(dim=1).mean().detach() / 2
    assert whole.checks["clean"] == pytest.approx(float(expected))


def as_double(x):
    return layerlens.inputs.inputs.as_inputs(x).map(lambda tensor: tensor.double())


def test_weights_that_are_computed_from_others_are_not_spoiled():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 3)).double()
    x = normal(5, 4).double()
    found = weight_sensitivity(net, x, measure="pruning")
    assert found.layers == ("1",)
    assert "remove_parametrizations" in found.settings["left_out"]["0.parametrizations.weight"]
    with pytest.raises(errors.LayerNotFound, match=r"can be changed. 0: its weight is computed from other parameters"):
        weight_sensitivity(net, x, "0", measure="pruning")
    assert len(weight_sensitivity(net, x).layers) == 3


def test_a_language_model_is_read_as_text():
    case = CASES["hf_gpt2"]
    texts = {"one": [1, 5, 7], "two": [2, 6, 9]}

    def tokenizer(words, **options):
        return {"input_ids": torch.tensor([texts[word] for word in words])}

    lens, ids = layerlens.Lens(case.build(), tokenizer=tokenizer), torch.tensor([[1, 5, 7], [2, 6, 9]])
    by_ids = lens.weight_sensitivity({"input_ids": ids}, measure="pruning", sparsities=(0.5,), labels=ids)
    for given in (["one", "two"], iter(["one", "two"])):
        found = lens.weight_sensitivity(given, measure="pruning", sparsities=(0.5,), labels=ids)
        torch.testing.assert_close(found.values, by_ids.values)
    alone = lens.weight_sensitivity("one", measure="pruning", sparsities=(0.5,), labels=ids[:1])
    assert alone.settings["samples"] == 1 and alone.error is None


def test_an_iterator_is_read_once():
    net, x = mlp(4, 6, 3), normal(6, 4).double()
    pairs = [(row, k % 3) for k, row in enumerate(x)]
    with pytest.raises(errors.InputError, match=r"Hutch\+\+ reads the data twice"):
        weight_sensitivity(net, iter(pairs), measure="hessian_trace")
    once = weight_sensitivity(net, iter(pairs), measure="hessian_trace", estimator="hutchinson")
    again = weight_sensitivity(net, pairs, measure="hessian_trace", estimator="hutchinson")
    torch.testing.assert_close(once.values, again.values)


def test_options_that_do_not_fit_are_refused():
    net, x = mlp(4, 6, 3), normal(6, 4).double()
    cases = (
        ({"measure": "fischer"}, errors.OptionError, r"unknown measure of weights 'fischer'\. Closest: fisher"),
        ({"sparsities": (0.1,)}, errors.OptionError, "'fisher' does not read sparsities=; it is an option of pruning"),
        ({"measure": "pruning", "probes": 6}, errors.OptionError, "does not read probes="),
        ({"measure": "pruning", "sparsities": (2,)}, errors.OptionError, "sparsities must be shares from 0 to 1"),
        ({"measure": "quantization", "bits": (1,)}, errors.OptionError, "bits must be whole numbers from 2 to 16"),
        ({"measure": "pruning", "metric": "accuracy"}, errors.InputError, "metric 'accuracy' needs labels="),
        ({"measure": "hessian_trace", "probes": 2}, errors.OptionError, "probes must be a whole number of at least 3"),
        ({"measure": "hessian_trace"}, errors.InputError, "the Hessian of the loss needs labels="),
        ({"measure": "pruning", "labels": [0, 1]}, errors.InputError, "labels hold 2 rows for 6 or more samples"),
        ({"measure": "pruning", "labels": [0] * 7}, errors.InputError, "labels hold 7 rows for 6 samples"),
        ({"measure": "pruning", "labels": [9] * 6}, errors.InputError, "label 9 is none of the 3 classes"),
        ({"measure": "pruning", "labels": [0.5] * 6}, errors.InputError, "labels of classes must be whole numbers"),
        ({"measure": "pruning", "labels": torch.zeros(6, 2)}, errors.InputError, "do not fit an output that is cat"),
        ({"measure": "pruning", "labels": "first"}, errors.InputError, "labels must be one for each sample, None or"),
        ({"likelihood": "poisson"}, errors.OptionError, "unknown likelihood 'poisson'"),
    )
    for options, error, text in cases:
        with pytest.raises(error, match=text):
            weight_sensitivity(net, x, **options)
    with pytest.raises(errors.OptionError, match="needs two or more classes"):
        weight_sensitivity(nn.Linear(4, 1), x.float(), likelihood="categorical")


def test_what_would_mislead_is_told():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x) + 0 * self.dead(x).sum()

    with pytest.warns(UserWarning, match="all values are zero"):
        weight_sensitivity(Cut(), normal(2, 4), "dead")

    class Stopped(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x).detach()

    with pytest.raises(errors.InputError, match="no gradient flows from the output to the parameters"):
        weight_sensitivity(Stopped(), normal(2, 4))


def test_parameters_come_back_to_the_bit_when_the_user_stops():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.__dict__["left"] = 3

        def forward(self, x):
            out = self.fc(x)
            if self.__dict__["left"] == 0:
                raise KeyboardInterrupt
            self.__dict__["left"] -= 1
            return out

    for measure in ("pruning", "quantization"):
        net, x = Stops(), normal(2, 4)
        before = Snapshot(net, x)
        with pytest.raises(KeyboardInterrupt):
            weight_sensitivity(net, x, measure=measure)
        before.check()


def test_the_lens_and_the_one_door_know_it():
    net, x = mlp(4, 6, 3), normal(6, 4).double()
    lens = layerlens.Lens(net)
    assert torch.equal(lens.sensitivity(x, question="weights").values, weight_sensitivity(net, x).values)
    labelled = lens.weight_sensitivity(list(zip(x, [0, 1, 2] * 2, strict=True)), measure="pruning")
    assert labelled.settings["metric"] == "loss" and "one layer at a time" in labelled.explain()
