"""Insertion, deletion and their kin against closed forms and loops in float64."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens import contrast, probability
from layerlens.analyzers.common.features.baselines import blur
from layerlens.analyzers.faithfulness.metrics.road import impute
from layerlens.errors import InputError, OptionError, TargetError
from layerlens.faithfulness import comprehensiveness, deletion, insertion, road, sufficiency
from tests.cases import normal
from tests.snapshot import Snapshot


def linear(columns=8):
    model = nn.Linear(columns, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(1, columns, seed=3).double())
    return model, normal(3, columns, seed=4).double()


def test_a_linear_model_in_the_right_order_by_hand():
    model, x = linear()
    parts = (x * model.weight).detach()
    ordered = parts.sort(dim=1, descending=True).values
    zero = torch.zeros(3, 1).double()
    rising = torch.cat([zero, ordered.cumsum(dim=1)], dim=1)
    put = insertion(model, x, parts, target=0, steps=8)
    torch.testing.assert_close(put.scores, rising)
    torch.testing.assert_close(put.area, torch.trapezoid(rising, dim=1) / 8)
    taken = deletion(model, x, parts, target=0, steps=8)
    torch.testing.assert_close(taken.scores, parts.sum(dim=1, keepdim=True) - rising)
    assert put.units == "score" and put.fill == "zero"


def test_no_order_of_a_linear_model_beats_the_right_one():
    model, x = linear()
    parts = (x * model.weight).detach()
    best, worst = insertion(model, x, parts, target=0).area, insertion(model, x, -parts, target=0).area
    for seed in range(5):
        other = insertion(model, x, normal(3, 8, seed=seed), target=0).area
        assert bool((other <= best + 1e-9).all()) and bool((other >= worst - 1e-9).all())


def conv():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).double()


def test_probabilities_of_an_image_by_a_loop():
    model, x = conv(), normal(2, 3, 10, 12).double()
    values = normal(2, 3, 10, 12, seed=9).double()
    found = deletion(model, x, values, target=[1, 4], fill="blur", steps=6)
    assert found.units == "probability"
    ground = blur(x, (2, 3))
    for row, target in enumerate((1, 4)):
        order = values[row].sum(dim=0).flatten().argsort(descending=True)
        for point in range(7):
            changed = x[row].flatten(1).clone()
            gone = order[: round(120 * point / 6)]
            changed[:, gone] = ground[row].flatten(1)[:, gone]
            score = model(changed.reshape(1, 3, 10, 12)).softmax(dim=1)[0, target]
            torch.testing.assert_close(found.scores[row, point], score.detach())


def test_maps_without_channels_and_coarser_ones():
    model, x = conv(), normal(2, 3, 10, 12).double()
    values = normal(2, 3, 10, 12, seed=9).double()
    whole = insertion(model, x, values, target=1).scores
    torch.testing.assert_close(whole, insertion(model, x, values.sum(dim=1), target=1).scores)
    torch.testing.assert_close(whole, insertion(model, x, values.sum(dim=1, keepdim=True), target=1).scores)
    small = normal(2, 5, 6, seed=2)
    large = nn.functional.interpolate(small.unsqueeze(1).double(), (10, 12), mode="bilinear").squeeze(1)
    torch.testing.assert_close(insertion(model, x, small, target=1).scores, insertion(model, x, large, target=1).scores)


def test_equal_values_come_in_random_order_and_a_seed_gives_it_again():
    model, x = linear()
    flat = torch.ones_like(x)
    first, again, other = (insertion(model, x, flat, target=0, seed=seed).scores for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, insertion(model, x, torch.arange(8.0, 0, -1).expand(3, 8), target=0).scores)


def test_a_batch_gives_what_its_samples_give_alone_whatever_the_batch_size():
    model, x = conv(), normal(2, 3, 10, 12).double()
    values = normal(2, 3, 10, 12, seed=9).double()
    whole = deletion(model, x, values, target=1, batch_size=5).scores
    alone = torch.cat([deletion(model, x[k : k + 1], values[k : k + 1], target=1).scores for k in (0, 1)])
    torch.testing.assert_close(whole, alone)


def test_tokens_are_places_and_padding_is_none():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3)).double()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    values = torch.tensor([[0.1, 0.5, -0.3, 0.9, 0.0]])
    found = deletion(model, ids, values, target=2, fill=7, steps=5)
    changed = ids.clone()
    scores = [model(changed).softmax(dim=1)[0, 2]]
    for place in (3, 1, 0, 4, 2):
        changed[0, place] = 7
        scores.append(model(changed).softmax(dim=1)[0, 2])
    torch.testing.assert_close(found.scores[0], torch.stack(scores).detach())


def test_erasure_as_defined():
    model, x = linear(10)
    parts = (x * model.weight).detach()
    ordered = parts.sort(dim=1, descending=True).values.cumsum(dim=1)
    gone = torch.stack([ordered[:, 0], ordered[:, 1], ordered[:, 4]], dim=1).mean(dim=1)
    shares = (0.01, 0.2, 0.5)  # at least one place
    torch.testing.assert_close(comprehensiveness(model, x, parts, target=0, shares=shares), gone)
    torch.testing.assert_close(sufficiency(model, x, parts, target=0, shares=shares), parts.sum(dim=1) - gone)


def test_a_probability_is_of_one_class_and_probabilities_stay():
    scores = normal(4, 3).double()
    torch.testing.assert_close(probability(2)(scores), scores.softmax(dim=1)[:, 2])
    torch.testing.assert_close(probability(2)(scores.softmax(dim=1)), scores.softmax(dim=1)[:, 2])
    torch.testing.assert_close(probability()(scores), scores.softmax(dim=1).amax(dim=1))
    texts = normal(4, 5, 3).double()
    torch.testing.assert_close(probability((-1, 1))(texts), texts[:, -1].softmax(dim=1)[:, 1])
    with pytest.raises(TargetError, match="two classes"):
        probability(0)(scores[:, :1])
    with pytest.raises(TargetError, match="not the score of one"):
        probability(contrast(0, 1))(scores)
    model, x = conv(), normal(1, 3, 10, 12).double()
    assert deletion(model, x, x, target=contrast(0, 1)).units == "score"
    with pytest.raises(TargetError, match="not the score of one"):
        deletion(model, x, x, target=contrast(0, 1), measure="probability")


def test_imputed_pixels_solve_the_system_of_road():
    images = normal(2, 2, 7, 6).double()
    removed = normal(2, 1, 7, 6, seed=5) > 0
    found = impute(images, removed, tolerance=1e-12)
    for row in range(2):
        gone = removed[row, 0]
        index = {tuple(place): k for k, place in enumerate(gone.nonzero().tolist())}
        for channel in range(2):
            matrix, right = torch.zeros(len(index), len(index)).double(), torch.zeros(len(index)).double()
            for (i, j), k in index.items():
                for di in (-1, 0, 1):
                    for dj in (-1, 0, 1):
                        a, b = i + di, j + dj
                        if (di, dj) == (0, 0) or not (0 <= a < 7 and 0 <= b < 6):
                            continue
                        weight = 1 / 12 if di and dj else 1 / 6
                        matrix[k, k] += weight
                        if (a, b) in index:
                            matrix[k, index[a, b]] -= weight
                        else:
                            right[k] += weight * images[row, channel, a, b]
            torch.testing.assert_close(found[row, channel][gone], torch.linalg.solve(matrix, right))
            torch.testing.assert_close(found[row, channel][~gone], images[row, channel][~gone])


def test_road_tells_the_right_map_from_its_opposite():
    model, x = conv(), normal(2, 3, 10, 12).double()
    values = layerlens.saliency(model, x, target=1, method="input_x_gradient").tensor
    right, wrong = (road(model, x, sign * values, target=1, measure="score").area for sign in (1, -1))
    assert bool((right < wrong).all())
    kept = road(model, x, values, target=1, keep=True, measure="score").area
    assert bool((kept > right).all())


def test_what_does_not_fit_is_told():
    model, x = conv(), normal(2, 3, 10, 12).double()
    with pytest.raises(InputError, match="does not fit the input"):
        insertion(model, x, torch.rand(2, 4, 4, 4), target=0)
    with pytest.raises(InputError, match="does not fit the input"):
        insertion(model, x, torch.rand(1, 10, 12), target=0)
    with pytest.raises(InputError, match="NaN"):
        insertion(model, x, x * float("nan"), target=0)
    for wrong in ([x[0], x[1]], "gradient", None):
        with pytest.raises(InputError, match=r"one array for the whole batch, got .* torch\.stack\(maps\)"):
            road(model, x, wrong, target=0)
    with pytest.raises(OptionError, match="steps"):
        insertion(model, x, x, target=0, steps=0)
    with pytest.raises(OptionError, match="measure"):
        insertion(model, x, x, target=0, measure="logit")
    with pytest.raises(OptionError, match="shares"):
        sufficiency(model, x, x, target=0, shares=(0.0, 0.5))
    with pytest.raises(InputError, match="images"):
        road(*linear(), torch.rand(3, 8), target=0)


@pytest.mark.parametrize("metric", [insertion, deletion, road, comprehensiveness, sufficiency])
def test_the_model_and_the_input_are_as_before(metric):
    model, x = conv().train(), normal(2, 3, 10, 12).double()
    before = Snapshot(model, x)
    metric(model, x, x, target=0)
    before.check()
    with pytest.raises(TargetError):
        metric(model, x, x, target=9)
    before.check()
