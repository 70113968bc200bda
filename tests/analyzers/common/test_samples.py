"""Samples that influence each other are found by experiment and run one by one; targets follow their rows."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import layerlens
from layerlens.analyzers.common.calls import measured_calls
from layerlens.analyzers.sensitivity.interventions import intervention_sites
from layerlens.errors import InputError, LayerNotFound, TargetError
from tests.cases import CASES, normal

INFLUENCE = "samples influence each other"


def net(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)
    ).double().eval()  # fmt: skip


class OwnStatistics(nn.Module):
    """A norm by the statistics of the batch, in any mode."""

    def forward(self, x):
        return functional.batch_norm(x, None, None, training=True)


class Attends(nn.Module):
    """Attention between the samples of a batch, slight."""

    def forward(self, x):
        rows = x.flatten(1)
        return x + 1e-3 * ((rows @ rows.T / rows.shape[1]).softmax(1) @ rows).view_as(x)


class Rounds(nn.Module):
    """Eight bits with one scale for the batch, as dynamic quantization has it."""

    def forward(self, x):
        scale = x.abs().max() / 127
        return (x / scale).round() * scale


class Counts(nn.Module):
    """A share of the batch."""

    def forward(self, x):
        return x / len(x)


class Fixed(nn.Module):
    """A fixed number of samples."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def forward(self, x):
        return x + torch.zeros(self.samples, *x.shape[1:], dtype=x.dtype) if len(x) == self.samples else self.refuse(x)

    def refuse(self, x):
        raise AssertionError(f"{self.samples} samples are expected, got {len(x)}")


class Capacity(nn.Module):
    """More of the strongest sample alone, as where experts have a capacity: the smallest samples see none of it."""

    def forward(self, x):
        strongest = x.flatten(1).norm(dim=1).argmax()
        return x * (1 + (torch.arange(len(x)) == strongest).double().reshape(-1, *[1] * (x.ndim - 1)))


class Compared(nn.Module):
    """Directions, of which the last is that of the first sample, as in a contrastive model."""

    def forward(self, x):
        rows = functional.normalize(x.flatten(1), dim=1)
        return torch.cat([x[:, :-1], (rows @ rows[0])[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


NORMS = {
    "a capacity": lambda samples: Capacity(),
    "similarity to the first": lambda samples: Compared(),
    "no running statistics": lambda samples: nn.BatchNorm2d(4, track_running_stats=False),
    "own statistics": lambda samples: OwnStatistics(),
    "attention between samples": lambda samples: Attends(),
    "counts": lambda samples: Counts(),
    "a fixed number": Fixed,
}
METHODS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 8, "tolerance": 1e9},
    "layer_conductance": {"steps": 8, "tolerance": 1e9, "where": "0"},
    "internal_influence": {"steps": 8, "where": "2"},
    "smooth_grad": {"samples": 4},
    "gradient_shap": {"samples": 4},
    "blur_ig": {"steps": 4, "tolerance": 1e9},
    "feature_ablation": {"features": 8},
    "occlusion": {"window": 4, "stride": 4},
    "rise": {"samples": 16},
    "kernel_shap": {"features": 4, "samples": 16},
    "shapley_sampling": {"features": 4, "permutations": 2},
    "lime": {"features": 4, "samples": 16},
    "sobol": {"features": 4, "draws": 4},
}


def one_by_one(model, x, **options):
    """The same with one row in each pass, the other samples as they are: sample by sample, with a batch of one."""
    tensors = []
    for sample in range(len(x)):

        def alone(model, row, sample=sample):
            return model(torch.cat([x[:sample], row, x[sample + 1 :]]))[sample : sample + 1]

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = layerlens.saliency(model, x[sample : sample + 1], forward=alone, batch_size=1, **options).tensor
        tensors.append(found[:, sample] if found.ndim == 5 else found)  # of a layer: of all samples
    return torch.cat(tensors)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_rows_that_influence_each_other_are_run_one_by_one(name, samples, method):
    model, x = net(NORMS[name](samples)), normal(samples, 1, 8, 8).double()
    options = {"target": 1, "method": method, **METHODS[method]}
    found = warned(lambda: layerlens.saliency(model, x, **options))
    torch.testing.assert_close(found.tensor, one_by_one(model, x, **options))


def warned(analyze):
    """What is found with one warning, which the settings repeat."""
    with pytest.warns(UserWarning, match=INFLUENCE) as caught:
        found = analyze()
    assert sum(INFLUENCE in str(one.message) for one in caught) == 1
    assert found.settings["passes"] == "one row each: samples influence each other"
    return found


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("method", ["ablation_cam", "score_cam"])
def test_units_are_removed_in_one_sample_at_a_time(name, method):
    if name == "similarity to the first":
        pytest.skip("one of its maps is constant")
    model, x = net(NORMS[name](2)), normal(2, 1, 8, 8).double()
    found = warned(lambda: layerlens.saliency(model, x, target=1, method=method, where="2", relu=False))
    with torch.no_grad():
        score, held = model(x)[:, 1], model[:3](x)
        changed = torch.zeros(2, 4, dtype=torch.double)
        for sample, unit in itertools.product(range(2), range(4)):
            if method == "ablation_cam":
                without = held.clone()
                without[sample, unit] = 0
                changed[sample, unit] = model[3:](without)[sample, 1]
            else:
                low, high = held[sample, unit].aminmax()
                masked = x.clone()
                masked[sample] *= (held[sample, unit] - low) / (high - low)
                changed[sample, unit] = model(masked)[sample, 1]
        weights = changed.softmax(1) if method == "score_cam" else (score[:, None] - changed) / score.abs()[:, None]
        torch.testing.assert_close(found.tensor, (weights[:, :, None, None] * held).sum(dim=1))


@pytest.mark.parametrize("method", ["feature_ablation", "occlusion", "rise", "kernel_shap"])
def test_dynamic_quantization_is_found(method):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    x, options = normal(1, 1, 8, 8), {"target": 1, "method": method, **METHODS[method]}
    found = warned(lambda: layerlens.saliency(model, x, **options))
    torch.testing.assert_close(found.tensor, layerlens.saliency(model, x, batch_size=1, **options).tensor)


@pytest.mark.parametrize("analyze", ["sobol", "morris", "evaluate"])
@pytest.mark.parametrize("target", [None, 1])
def test_studies_and_measures_run_rows_one_by_one(analyze, target):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 2))
    model, x = model.double().eval(), normal(2, 3).double()
    if analyze == "evaluate":
        warned(lambda: layerlens.evaluate(model, x, ["gradient", "smooth_grad"], target=target))
        return
    options = {"samples": 4} if analyze == "sobol" else {"trajectories": 2}
    found = warned(lambda: getattr(layerlens, analyze)(model, x, baseline="zero", target=target, **options))

    def alone(sample):
        def forward(model, row):
            rows = [torch.cat([x[:sample], one[None], x[sample + 1 :]]) for one in row]
            return torch.stack([model(whole)[sample] for whole in rows])

        row = x[sample : sample + 1]
        return getattr(layerlens, analyze)(model, row, baseline="zero", target=target, forward=forward, **options)

    if analyze == "morris":
        torch.testing.assert_close(found.values, (alone(0).values + alone(1).values) / 2)
    else:
        assert torch.isfinite(found.values).all()


COPIES = {
    "noise_response": {"layers": ["0", "2"], "levels": (0.5, 1.0), "draws": 3},
    "jacobian": {"layers": ["0", "2"], "draws": 4},
    "lipschitz": {"layers": "2", "iterations": 3, "restarts": 2},
    "ablate": {"by": "channel", "layers": ["0", "2"], "target": 1},
    "patch": {"by": "channel", "layers": ["0", "2"], "target": 1},
}


@pytest.mark.filterwarnings("ignore:lipschitz. the values of")
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    "name", [name if name[:2] in ("no", "a ") else pytest.param(name, marks=pytest.mark.slow) for name in NORMS]
)
@pytest.mark.parametrize("analyze", COPIES)
def test_copies_of_a_batch_that_influence_each_other_are_run_one_by_one(name, samples, analyze, monkeypatch):
    x = normal(samples, 1, 8, 8).double()

    def found(norm):
        inputs = (x, x.flip(-1) * 1.5) if analyze == "patch" else (x,)
        return getattr(layerlens, analyze)(net(norm), *inputs, **COPIES[analyze])

    with pytest.warns(UserWarning, match="influence each other") as caught:
        together = found(NORMS[name](samples))
    assert sum("influence each other" in str(one.message) for one in caught) == 1
    assert together.settings["passes"] == "one row each: samples influence each other"
    for module in (measured_calls, intervention_sites):
        monkeypatch.setattr(module, "MEMORY", 1)  # one copy at a time
    alone = found(nn.Identity() if name == "a fixed number" else NORMS[name](samples))
    assert "passes" not in alone.settings
    torch.testing.assert_close(together.values, alone.values)


@pytest.mark.parametrize("analyze", ["attack_curve", "corruption_curve"])
def test_chunks_of_samples_that_influence_each_other_are_one(analyze):
    model, x = net(nn.BatchNorm2d(4, track_running_stats=False)), normal(9, 1, 8, 8).double()
    options = {"eps": (0.1,), "steps": 2} if analyze == "attack_curve" else {"severities": (3,), "bounds": (-5, 5)}
    options |= {"target": 1, "draws": 2}
    found = warned(lambda: getattr(layerlens, analyze)(model, x, batch_size=4, **options))
    torch.testing.assert_close(found.values, getattr(layerlens, analyze)(model, x, batch_size=9, **options).values)
    plain = getattr(layerlens, analyze)(net(nn.BatchNorm2d(4)), x, batch_size=4, **options)
    assert "passes" not in plain.settings


def test_units_whose_rows_influence_each_other_are_refused_together():
    model, x = net(nn.BatchNorm2d(4, track_running_stats=False)), normal(1, 1, 8, 8).double()
    with pytest.raises(InputError, match=r"samples influence each other in this model.*units=\[3\]"):
        layerlens.concept_relevance(model, x, "2", units=[0, 1], target=1)
    assert layerlens.concept_relevance(model, x, "2", units=[1], target=1).tensor.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("name", ["no running statistics", "counts", "a fixed number"])
def test_latents_that_influence_each_other_are_decoded_one_by_one(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 4), NORMS[name](1), nn.ReLU(), nn.Conv2d(4, 1, 3)).eval()
    z = normal(1, 3, 1, 1)
    found = warned(lambda: layerlens.latent_traversal(model, z, steps=(-1, 1), move="add"))
    moved = z.clone()
    moved[0, 2] += 1
    torch.testing.assert_close(found.outputs[2, 1], model(moved)[0])
    torch.testing.assert_close(found.base, model(z)[0])


@pytest.mark.parametrize("by", ["change", "nan"])
def test_receptive_fields_do_not_reach_into_other_lines(by):
    model, x = net(Attends()), normal(1, 1, 8, 8).double()
    found = warned(lambda: layerlens.receptive_field(model, x, "2", by=by, draws=1))
    assert torch.equal(found.boxes, layerlens.receptive_field(model, x, "2", by=by, draws=1, batch_size=1).boxes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["cnn", "depthwise", "hf_resnet"])
def test_samples_that_do_not_influence_each_other_are_run_together(name, method):
    case = CASES[name]
    options = {name: value for name, value in METHODS[method].items() if name != "where"}
    if "where" in METHODS[method]:
        options["where"] = next(path for path, one in case.build().named_modules() if isinstance(one, nn.Conv2d))
    found = layerlens.saliency(case.build(), case.example(), target=case.target, method=method, **options)
    assert "passes" not in found.settings


def test_a_model_that_draws_numbers_is_run_many_rows_at_once():
    torch.manual_seed(0)

    class Noisy(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :2] + 0.1 * torch.randn(len(x), 2)

    found = layerlens.saliency(Noisy(), normal(2, 1, 8, 8), target=1, method="feature_ablation", features=8)
    assert "passes" not in found.settings


# -- targets with numbers of their own ---------------------------------------------------------------------------------

IDS = torch.tensor([1, 0])


def holds_ids(output):
    return output[torch.arange(2), IDS]


def holds_goals(output):
    return -(output - torch.tensor([[1.0, 0.0], [0.0, 1.0]])).square().sum(dim=1)


def mixes(output):
    return output.softmax(dim=0)[:, 1]


def shortens(output):
    return output[torch.arange(len(output)), IDS.repeat(9)[: len(output)]]


@pytest.mark.parametrize("function", [holds_ids, holds_goals, mixes, shortens], ids=lambda one: one.__name__)
@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "feature_ablation"])
def test_a_function_with_numbers_of_its_own_is_refused_on_the_first_pass(function, method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    runs: list[int] = []
    model.register_forward_pre_hook(lambda module, args: runs.append(len(args[0])))
    with pytest.raises(
        TargetError, match=r"def score\(output, samples\): return output\[torch.arange\(len\(samples\)\)"
    ):
        layerlens.saliency(model, normal(2, 1, 8, 8), target=function, method=method)
    assert len(runs) <= 2


@pytest.mark.parametrize("method", METHODS)
def test_a_function_of_the_samples_is_one_class_for_each(method):
    model, x = net(nn.BatchNorm2d(4)), normal(2, 1, 8, 8).double()
    options = {"method": method, **METHODS[method]}

    def score(output, samples):
        return output[torch.arange(len(samples)), IDS[samples]]

    found = layerlens.saliency(model, x, target=score, **options)
    torch.testing.assert_close(found.tensor, layerlens.saliency(model, x, target=[1, 0], **options).tensor)


def test_a_function_that_reads_one_sample_is_refused_where_rows_are_repeated():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), normal(1, 1, 8, 8)
    assert layerlens.saliency(model, x, target=lambda output: output[0, 1], method="gradient").score.shape == (1,)
    with pytest.raises(TargetError, match=r"does not read 4 rows of the output.*def score\(output, samples\)"):
        layerlens.saliency(model, x, target=lambda output: output[0, 1], method="integrated_gradients")


def test_whole_numbers_as_scores_are_read_by_perturbation():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double().eval(), normal(3, 1, 8, 8).double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="feature_ablation: the values of sample")
        found = layerlens.saliency(
            model, x, target=lambda output: output.argmax(1), method="feature_ablation", features=4
        )
    assert found.score.tolist() == model(x).argmax(1).tolist()


def test_what_needs_another_number_of_samples_says_so():
    model, x = nn.Sequential(nn.Linear(4, 6), Fixed(3), nn.Linear(6, 2)).eval(), normal(3, 4)
    for study in (layerlens.sobol, layerlens.morris):
        with pytest.raises(InputError, match=r"does not run on one sample .*it runs on 3.*Give baseline="):
            study(model, x, target=0)
    with pytest.raises(InputError, match=r"boxes are found with 16 samples.*regions=False"):
        layerlens.top_inputs(model, x, "0", target=0)
    assert layerlens.top_inputs(model, x, "0", target=0, regions=False).values.shape == (6, 3)
    with pytest.raises(InputError, match=r"concept_relevance runs a row for each unit.*one by one"):
        layerlens.concept_relevance(nn.Sequential(nn.Linear(4, 6), Fixed(1)).eval(), x[:1], "0", target=0)


def test_an_output_of_all_pairs_of_samples_is_measured_one_by_one():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            rows = functional.normalize(self.layer(x), dim=1)
            return rows @ rows.T

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=INFLUENCE):
        found = layerlens.jacobian(Pairs().double().eval(), normal(3, 4).double())
    assert bool(found.values.isfinite().all())


def test_units_of_a_packed_sequence_lie_where_they_were_followed():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            _, (last, _) = self.rnn(nn.utils.rnn.pack_padded_sequence(x, [6, 5, 4, 2], batch_first=True))
            return self.head(last[-1])

    torch.manual_seed(0)
    model, x = Packed().eval(), normal(4, 6, 3)
    with pytest.raises(LayerNotFound, match="no axis of positions"), pytest.warns(UserWarning, match=INFLUENCE):
        layerlens.ablate(model, x, "rnn", by="position", target=0)
    with pytest.warns(UserWarning, match=INFLUENCE):
        found = layerlens.ablate(model, x, "rnn", by="channel", target=0)
    lasts = model.rnn(nn.utils.rnn.pack_padded_sequence(x, [6, 5, 4, 2], batch_first=True))[1][0][-1]
    torch.testing.assert_close(found.values.float(), -(lasts * model.head.weight[0]).mean(0).detach())


def test_a_function_of_a_tensor_with_another_batch_axis_is_read():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    found = layerlens.saliency(model, normal(2, 5, 3), target=lambda output: output[1][0][-1].sum(1), method="gradient")
    assert found.tensor.shape == (2, 5, 3)


class Detector(nn.Module):
    """Takes a list of pictures, returns a dict of boxes and scores for each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, pictures):
        made = [self.head(self.conv(one[None]).relu().mean((2, 3))) for one in pictures]
        return [{"boxes": one[:, :4], "scores": one[0, 4:].sigmoid()} for one in made]


@pytest.mark.parametrize("count", [1, 2, 3])  # as many as channels: every shape would fit
def test_pictures_in_a_list_are_refused_with_a_call_that_works(count):
    model, pictures = Detector().eval(), [normal(3, 8, 8, seed=k) for k in range(count)]
    target = lambda found: torch.stack([one["scores"][0] for one in found])  # noqa: E731
    with pytest.raises(InputError, match=r"x = torch.stack\(samples\), forward=lambda model, x: model\(list\(x\)\)"):
        layerlens.saliency(model, (pictures,), target=target, method="gradient")
    x, forward = torch.stack(pictures), lambda model, x: model(list(x))
    found = layerlens.saliency(model, x, target=target, method="gradient", forward=forward)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target(model(list(leaf))).sum(), leaf)
    torch.testing.assert_close(found.tensor, slope)
    one = layerlens.saliency(model, pictures[0][None], target=target, method="gradient", forward=forward)
    torch.testing.assert_close(one.tensor, slope[:1])


def test_a_list_of_batches_is_not_a_list_of_samples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, parts):
            return sum(self.conv(part).mean((2, 3)) for part in parts)

    found = layerlens.saliency(Two(), ([normal(2, 3, 8, 8), normal(2, 3, 8, 8)],), target=1, method="gradient")
    assert [part.shape for part in found.values.values()] == [(2, 3, 8, 8)] * 2
