"""Class activation maps of models with several inputs: a layer is laid over the input that it reads."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import OptionError
from tests.cases import normal

CAMS = pytest.mark.parametrize("name", ["grad_cam", "eigen_cam", "score_cam", "ablation_cam", "layer_cam"])


def t5():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def texts(written):
    """A text of five tokens that is read, and one that is written."""
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 3, 2]])
    return {"input_ids": ids, "decoder_input_ids": ids.flip(1)[:, :written]}


class Towers(nn.Module):
    """A text of four tokens beside an image of 4 x 4 patches, which are never mixed; four is 2 x 2 as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.see = nn.Conv2d(3, 8, 4, 4), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.word, self.read = nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, pixels, ids):
        seen = self.see(self.patch(pixels).flatten(2).mT).mean(dim=1)
        return seen * self.read(self.word(ids)).mean(dim=1)


PAIR = {"pixels": normal(2, 3, 16, 16), "ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])}


def cam_of(model, x, name, **options):
    given = {"relu": False, "target": options.pop("target", 1)} | options
    return layerlens.saliency(model, x, method=name, **given)


@CAMS
@pytest.mark.parametrize("written", [3, 5])  # five: as many as are read
def test_the_text_that_is_read_and_the_text_that_is_written(name, written):
    model, x = t5(), texts(written)
    chosen = cam_of(model, x, name, target=(-1, 7))
    assert chosen.settings["layer"] == "encoder" and torch.equal(chosen.inputs, x["input_ids"])
    for part, ids in (("encoder", "input_ids"), ("decoder", "decoder_input_ids")):
        found = cam_of(model, x, name, target=(-1, 7), where=f"{part}.block.0")
        assert torch.equal(found.inputs, x[ids]) and found.tensor.shape == x[ids].shape
        assert found.settings["size"] == (x[ids].shape[1],)


@CAMS
def test_an_image_beside_a_text(name):
    model, every = Towers().eval(), {"target": lambda out: out.sum(dim=1)}
    chosen = cam_of(model, PAIR, name, **every)
    assert chosen.settings["layer"].startswith("see") and chosen.settings["size"] == (4, 4)
    text = cam_of(model, PAIR, name, where="read", **every)
    assert text.axes == ("batch", "token") and torch.equal(text.inputs, PAIR["ids"])


def test_an_image_beside_a_text_by_hand():
    model, ids = Towers().double().eval(), PAIR["ids"]
    pixels = PAIR["pixels"].double()
    found = cam_of(model, {"pixels": pixels, "ids": ids}, "grad_cam", where="see").tensor
    tokens = model.see(model.patch(pixels).flatten(2).mT).detach().requires_grad_()  # (batch, place, unit)
    score = (tokens.mean(dim=1) * model.read(model.word(ids)).mean(dim=1))[:, 1]
    slope = torch.autograd.grad(score.sum(), tokens)[0].mean(dim=1, keepdim=True)
    cam = (slope * tokens).sum(dim=2).unflatten(1, (4, 4)).detach()
    expected = nn.functional.interpolate(cam[:, None], size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found, expected)


@CAMS
def test_a_layer_that_the_score_does_not_read_is_no_map(name):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)), self.conv(x)

    with pytest.raises(OptionError, match="depends on no layer with places"):
        cam_of(Beside(), normal(2, 1, 8, 8), name, target=lambda out: out[0][:, 1])


def test_a_map_of_nothing_says_so():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    with pytest.warns(UserWarning, match="zero everywhere: its gradient or its activation vanishes"):
        layerlens.grad_cam(model, normal(1, 1, 8, 8), "1", target=0)
    with torch.no_grad():
        model[0].bias.fill_(100.0)
        model[4].weight.fill_(-1.0)
    with pytest.warns(UserWarning, match="negative everywhere, so relu=True keeps nothing"):
        layerlens.grad_cam(model, normal(1, 1, 8, 8), "1", target=0)


class AddedPictures(nn.Module):
    """Two pictures that are added, and a third that scales the scores."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, one, two, three):
        return self.head(self.relu(self.conv(one + two)).mean(dim=(2, 3))) * three.mean(dim=(1, 2, 3))[:, None]


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_guided_grad_cam_of_all_inputs_that_the_layer_reads():
    from captum.attr import GuidedGradCam

    model, pictures = AddedPictures().double().eval(), tuple(normal(2, 1, 6, 6).double() + one for one in range(3))
    with pytest.warns(UserWarning, match="lies over input one, two, not over three"):
        x = dict(zip(("one", "two", "three"), pictures, strict=True))
        found = layerlens.saliency(model, x, target=1, method="guided_grad_cam", where="conv")
    expected = GuidedGradCam(model, model.conv).attribute(pictures, target=1)
    assert list(found.values) == ["one", "two"] and found.axes_of("two") == ("batch", "channel", "height", "width")
    for name, own in zip(found.values, expected, strict=False):
        assert torch.allclose(found.values[name], own) and bool(own.any())
