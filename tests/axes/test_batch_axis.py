"""The batch axis of an input: at which cost it is known to be there, and who says that it is missing."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.errors import InputError


class Times(nn.Module):
    """One number for each sample."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 3)

    def forward(self, t):
        return self.net(t[:, None])


class Denoiser(nn.Module):
    """Pictures, and a time step for each."""

    def __init__(self):
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(1, 3)

    def forward(self, x, t):
        return self.conv(x) + self.time(t[:, None])[..., None, None]


class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).cumsum(1))


class Pooled(nn.Module):
    """As many channels as classes, and a mean over places that takes a picture without a batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean(dim=(-2, -1)))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 6, batch_first=True), nn.Linear(6, 9)

    def forward(self, x):
        return self.head(self.rnn(x)[1][-1])


PASSES = [  # model, input, target, passes of the first and of the next gradient, of the first and of the next capture
    (Times, torch.rand(5), 0, (2, 1), (2, 1)),
    (Denoiser, (torch.rand(2, 3, 8, 8), torch.rand(2)), lambda out: out.flatten(1).sum(1), (2, 1), (2, 1)),
    (lambda: nn.Linear(4, 3), torch.rand(5, 4), 0, (1, 1), (1, 1)),
    (lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), torch.rand(5, 4), None, (2, 1), (1, 1)),
    (Speaker, {"input_ids": torch.tensor([[1, 2, 3]])}, (-1, 3), (2, 2), (1, 1)),
]


@pytest.mark.parametrize(("make", "x", "target", "gradient", "capture"), PASSES)
def test_the_batch_axis_is_followed_once(make, x, target, gradient, capture):
    for analyze, options, wanted in (
        ("saliency", {"target": target, "method": "gradient"}, gradient),
        ("capture", {}, capture),
    ):
        model, count = make(), []
        model.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        found = []
        for _ in range(2):
            count.clear()
            getattr(Lens(model), analyze)(x, **options)
            found.append(len(count))
        assert tuple(found) == wanted


@pytest.mark.parametrize(("make", "x"), [(Pooled, torch.rand(3, 12, 12)), (Last, torch.rand(9, 2))])
@pytest.mark.parametrize("target", [None, 0, lambda out: out[:, 1]])
def test_a_missing_batch_axis_is_said_before_the_target_is_accused(make, x, target):
    model = make()  # one sample looks like a batch with one number of output for each
    for analyze in (layerlens.relevance, layerlens.saliency):
        with pytest.raises(InputError, match=r"one sample without it: .*x\.unsqueeze\(0\)"):
            analyze(model, x, target=target)


def test_what_cannot_be_followed_is_tried():
    class Outside(nn.Module):
        def forward(self, x):
            return torch.tensor(x.detach().numpy().sum(-1))

    assert Lens(Outside()).saliency.occlusion(torch.rand(5, 4)).values.shape == (5, 4)
    with pytest.raises(InputError, match="one sample without it"):
        Lens(Outside()).saliency.occlusion(torch.rand(4))


class Detector(nn.Module):
    """Takes a list of pictures, as detection models do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 2))

    def forward(self, images, targets=None):
        return torch.cat([self.net(image[None]) for image in images])


ANALYZERS = (
    "saliency",
    "relevance",
    "ablate",
    "attack_curve",
    "jacobian",
    "lipschitz",
    "noise_response",
    "route",
    "sobol",
)


@pytest.mark.parametrize("name", ANALYZERS)
def test_every_analyzer_refuses_samples_in_a_list_and_says_what_runs(name):
    samples = [torch.rand(3, 8, 8), torch.rand(3, 8, 8)]
    with pytest.raises(InputError, match=r"a list of 2 sample\(s\).* x = torch\.stack\(samples\), forward=lambda"):
        getattr(Lens(Detector()), name)((samples,))


def test_what_is_advised_for_a_list_runs():
    lens = Lens(Detector(), forward=lambda model, x: model(list(x)))
    assert lens.saliency(torch.rand(2, 3, 8, 8), target=0, method="gradient").values.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", ["lipschitz", "jacobian", "noise_response", "ablate"])
def test_analyzers_of_layers_name_a_missing_batch_axis(name):
    with pytest.raises(InputError, match=r"one sample without it: .*x\.unsqueeze\(0\)"):
        getattr(Lens(Last()), name)(torch.rand(9, 2))


class Steps(nn.Module):
    """One output for each step of a series, which may be given without a batch, as torch's own layers may."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x):
        found = self.layer(x)
        return self.head(found[0] if isinstance(found, tuple) else found)


def series(first):
    return {
        "causal": Steps(nn.LSTM(4, 4, batch_first=first)),
        "both ways": Steps(nn.GRU(4, 2, batch_first=first, bidirectional=True)),
        "attention": Steps(nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=first)),
    }


CALLS = [
    lambda lens, x: lens.saliency(x, target=0, method="gradient"),
    lambda lens, x: lens.saliency(x, target=lambda out: out[..., 0], method="occlusion"),
    lambda lens, x: lens.relevance(x, target=0),
    lambda lens, x: lens.jacobian(x),
    lambda lens, x: lens.ablate(x, target=0),
    lambda lens, x: lens.attack_curve(x, target=0),
    lambda lens, x: lens.route(x),
]


@pytest.mark.parametrize("kind", series(True))
def test_a_series_without_its_batch_axis_is_no_batch_of_its_steps(kind):
    model, x = series(True)[kind].eval(), torch.rand(7, 4)
    torch.testing.assert_close(model(x[None])[0], model(x))  # the steps are those of one sample
    for call in CALLS:
        with pytest.raises(InputError, match=r"rows of float32 \(7, 4\) are places .* Give x\.unsqueeze\(0\), float32"):
            call(Lens(model), x)
    assert Lens(model).saliency(x[None], target=(3, 0), method="gradient").values.shape == (1, 7, 4)


def test_channels_without_their_batch_axis_are_no_batch():
    model, x = nn.Sequential(nn.Conv1d(4, 4, 3), nn.Flatten(1)), torch.rand(4, 9)
    with pytest.raises(InputError, match=r"x\.unsqueeze\(0\)"):
        Lens(model[:1]).saliency(x, target=0, method="gradient")


@pytest.mark.parametrize("kind", series(False))
def test_what_is_advised_for_steps_before_samples_runs(kind):
    model, x = series(False)[kind].eval(), torch.rand(7, 4)
    with pytest.raises(
        InputError, match=r"x\.unsqueeze\(0\), float32 \(1, 7, 4\), with forward=lambda model, x: model\("
    ):
        Lens(model).saliency(x, target=0, method="gradient")
    lens = Lens(model, forward=lambda model, x: model(x.transpose(0, 1)).transpose(0, 1))
    found = lens.saliency(x.unsqueeze(0), target=(3, 0), method="gradient")
    x.requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[3, 0], x)
    torch.testing.assert_close(found.values[0], expected)


def test_rows_that_are_named_samples_are_believed_and_rows_that_may_be_are_warned_of():
    model, x = series(True)["attention"].eval(), torch.rand(7, 4)
    layerlens.name_axes(model, {"0": ("batch", "axis 1")})  # as the error says
    with pytest.warns(UserWarning, match="samples influence each other"):
        found = layerlens.saliency(model, x, target=0, method="gradient")
    every = torch.autograd.functional.jacobian(lambda one: model(one)[:, 0], x)
    torch.testing.assert_close(found.values, every[range(7), range(7)])
    by_hand = Steps(ByHand()).eval()  # x[None] gives the same numbers, and rows may be the nodes of a graph
    with pytest.warns(UserWarning, match=r"give one sample as x\[None\]"):
        layerlens.saliency(by_hand, x, target=0, method="gradient")


class ByHand(nn.Module):
    def forward(self, x):
        return torch.ones(x.shape[-2], x.shape[-2]).tril() @ x


def test_the_steps_after_the_first_are_seen_too():
    class Earlier(nn.Module):
        """Each row reads the rows before it, and the model takes no other number of axes."""

        def forward(self, x):
            columns = x.shape[1]
            return x.cumsum(0) * torch.arange(1.0, 1 + columns)

    with pytest.warns(UserWarning, match="samples influence each other"):
        found = layerlens.saliency(Earlier(), torch.rand(5, 2), target=1, method="gradient")
    torch.testing.assert_close(found.values, torch.tensor([0.0, 2.0]).expand(5, 2))
