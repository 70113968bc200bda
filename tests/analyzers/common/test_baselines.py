import pytest
import torch
from torch import nn

from layerlens.analyzers.common.features.baselines import baselines, blur
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.saliency import integrated_gradients
from layerlens.axes.followed import name_axes
from layerlens.errors import OptionError
from tests.cases import CASES, normal


def of(name, spec):
    case = CASES[name]
    scorer = Scorer(case.build(), case.example(), case.target)
    return scorer, *baselines(scorer, spec)


def test_named_baselines_of_an_image():
    x = CASES["cnn"].example()
    assert not of("cnn", "zero")[1]["0"].any()
    mean = of("cnn", "mean")[1]["0"]
    assert mean.shape == x.shape and torch.allclose(mean[1, 2], x[1, 2].mean())
    blurred = of("cnn", "blur")[1]["0"]
    assert blurred.shape == x.shape and blurred.std() < x.std()
    black, white = of("cnn", "black")[1]["0"], of("cnn", "white")[1]["0"]
    assert torch.equal(black[1, 2], x[1, 2].min().expand(8, 8)) and torch.equal(white[0, 0], x[0, 0].max().expand(8, 8))


def test_named_baselines_of_series_volumes_and_tables():
    series = torch.randn(2, 50, 3)  # (batch, time, feature)
    scorer = Scorer(nn.Flatten(), series, lambda output: output.sum(dim=1))
    with pytest.warns(UserWarning, match="no layer shows which axis .* the longer one is taken, axis 1"):
        mean = baselines(scorer, "mean")[0]["0"]
    torch.testing.assert_close(mean, series.mean(dim=1, keepdim=True).expand(2, 50, 3))
    name_axes(scorer.model, {"0": ("batch", "time", "feature")})
    scorer = Scorer(scorer.model, series, lambda output: output.sum(dim=1))
    blurred = baselines(scorer, "blur")[0]["0"]
    torch.testing.assert_close(blurred, blur(series.mT[..., None], (2,))[..., 0].mT)
    volume = torch.randn(1, 2, 5, 6, 7)
    black = baselines(Scorer(nn.Flatten(), volume, lambda output: output.sum(dim=1)), "black")[0]["0"]
    assert torch.equal(black, volume.amin(dim=(2, 3, 4), keepdim=True).expand_as(volume))


def test_noise_is_like_the_sample_and_the_same_again():
    x = torch.stack([torch.randn(3, 40, 40), 5 + 3 * torch.randn(3, 40, 40)])
    scorer = Scorer(nn.Flatten(), x, lambda output: output.sum(dim=1))
    drawn = baselines(scorer, "noise")[0]["0"]
    torch.testing.assert_close(drawn.std(dim=(1, 2, 3)), x.std(dim=(1, 2, 3)), rtol=0.05, atol=0)
    assert (drawn.mean(dim=(1, 2, 3)) - x.mean(dim=(1, 2, 3))).abs().max() < 0.2
    assert torch.equal(drawn, baselines(scorer, "noise")[0]["0"]) and not torch.allclose(drawn, x)


def test_blur_is_a_gaussian_in_both_directions():
    image = torch.zeros(1, 2, 41, 21, dtype=torch.float64)
    image[0, 1, 20, 10] = 1.0
    seen = blur(image, (2, 3))[0]
    assert not seen[0].any() and seen[1].sum() == pytest.approx(1.0)
    rows, columns = torch.meshgrid(torch.arange(-20.0, 21), torch.arange(-10.0, 11), indexing="ij")
    expected = torch.exp(-0.5 * ((rows / 4.1) ** 2 + (columns / 2.1) ** 2))
    inside = (rows.abs() <= 12) & (columns.abs() <= 6)
    torch.testing.assert_close((seen[1] / seen[1].max())[inside], expected[inside].double(), rtol=1e-5, atol=1e-7)
    constant = torch.full((1, 1, 3, 50), 2.0, dtype=torch.bfloat16)
    assert torch.equal(blur(constant, (2, 3)), constant)


def test_numbers_tensors_and_dicts():
    assert (of("cnn", 0.5)[1]["0"] == 0.5).all()
    assert torch.equal(of("cnn", torch.ones(3, 1, 1))[1]["0"], torch.ones(2, 3, 8, 8))
    _, parts, label = of("two_inputs", {"image": "mean", "table": torch.ones(5)})
    assert (parts["table"] == 1).all() and parts["image"][0].std() < 1e-6
    assert label == "image: mean, table: float32 (5,)"
    assert not of("two_inputs", {"image": 1})[1]["table"].any()


def test_token_ids_start_at_the_zero_embedding_or_at_a_reference_token():
    scorer, zero, _ = of("encoder", "zero")
    assert zero["ids"].shape == (2, 6, 8) and not zero["ids"].any()
    weight = scorer.model.embedding.weight
    assert torch.equal(of("encoder", 3)[1]["ids"], weight[3].expand(2, 6, 8))
    ids = torch.tensor([1, 2, 3, 4, 5, 6])
    assert torch.equal(of("encoder", ids)[1]["ids"][1], weight[ids])
    with pytest.raises(OptionError, match=r"baseline 0.5 for the token ids 'ids'"):
        of("encoder", 0.5)
    with pytest.raises(OptionError, match=r"input 'ids' is token ids"):
        of("encoder", "mean")


def test_attributions_of_tokens_sum_to_the_difference_of_scores():
    case = CASES["encoder"]
    model, ids = case.build().double(), case.example()["ids"]
    result = integrated_gradients(model, {"ids": ids}, target=1, baseline=7)
    with torch.no_grad():
        change = model(ids)[:, 1] - model(torch.full_like(ids, 7))[:, 1]
    torch.testing.assert_close(result.tensor.sum(dim=1), change, rtol=1e-5, atol=1e-7)
    assert result.values.shape == (2, 6) and result.settings["baseline"] == "7"


def test_the_model_cannot_write_into_the_baseline():
    class Writes(nn.Module):
        def forward(self, x):
            return x.mul_(2.0).sum(dim=1, keepdim=True)

    start = normal(1, 3, seed=3)
    result = integrated_gradients(Writes(), normal(1, 3), baseline=start)
    assert torch.equal(start, normal(1, 3, seed=3))
    torch.testing.assert_close(result.tensor, 2 * (normal(1, 3) - start))
