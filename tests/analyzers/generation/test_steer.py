"""Steering, against hooks written by hand."""

import pytest
import torch
from torch import nn

from layerlens import Basis, errors, steer
from tests.analyzers.generation.test_generate import PROMPT, llama
from tests.snapshot import Snapshot

__all__ = ["llama"]

OTHER = {"input_ids": torch.tensor([[3, 4, 8, 1, 2, 6]])}


def hooked(layer, change, call):
    """What a call returns while a vector is added to a layer's output."""
    handle = layer.register_forward_hook(lambda module, args, output: output + change)
    try:
        with torch.no_grad():
            return call()
    finally:
        handle.remove()


def divergence(before, after):
    p, q = before.double().log_softmax(-1), after.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def test_a_language_model_is_steered_at_every_step(llama):
    vector, layer = torch.randn(32, generator=torch.Generator().manual_seed(2)), llama.model.layers[1]
    with torch.no_grad():
        plain, own = llama(**OTHER).logits, llama(PROMPT).logits
        stream = llama(**OTHER, output_hidden_states=True).hidden_states[2][0].double()
    before = Snapshot(llama, PROMPT)
    found = steer(llama, PROMPT, vector, "model.layers.1", strength=[1.0, -2.0], neutral=OTHER, max_new_tokens=5)
    before.check()
    assert found.typical == pytest.approx(float(stream.norm(dim=1).median()), rel=1e-5)
    for k, strength in enumerate((1.0, -2.0)):
        added = vector / vector.norm() * found.typical * strength
        ids = hooked(layer, added, lambda: llama.generate(PROMPT, max_new_tokens=5, do_sample=False, pad_token_id=0))
        assert found.texts[k].split() == [str(one) for one in ids[0, 4:].tolist()]
        changed = hooked(layer, added, lambda: llama(**OTHER).logits)
        assert float(found.side_effect[k]) == pytest.approx(float(divergence(plain, changed).mean()), rel=1e-4)
        end = divergence(own, hooked(layer, added, lambda: llama(PROMPT).logits))[0, -1]
        assert float(found.effect[k]) == pytest.approx(float(end), rel=1e-4)
        loss = nn.functional.cross_entropy(changed[0, :-1].double(), OTHER["input_ids"][0, 1:])
        assert float(found.perplexity[1 + k]) == pytest.approx(float(loss.exp()), rel=1e-4)
        ratio = ((stream + added.double()).norm(dim=1) / stream.norm(dim=1)).median()
        assert float(found.norm_ratio[k]) == pytest.approx(float(ratio), rel=1e-4)
    assert found.effect_random.shape == (2, 3) and len(found.rows()) == 2
    assert "random directions" in repr(found) and found.curve().values.shape == (2, 2)


def test_a_contrast_of_prompts_is_the_difference_of_means(llama):
    sets = [torch.randint(1, 50, (1, n), generator=torch.Generator().manual_seed(n)) for n in (3, 4, 5, 6)]
    data = [{"input_ids": one[0]} for one in sets]
    found = steer(llama, PROMPT, (data[:2], data[2:]), "model.layers.0", strength=1.0, absolute=True, max_new_tokens=0)
    with torch.no_grad():
        means = [llama(one, output_hidden_states=True).hidden_states[1][0].double().mean(0) for one in sets]
    torch.testing.assert_close(found.direction, (means[0] + means[1] - means[2] - means[3]) / 2, rtol=1e-4, atol=1e-5)
    assert found.method == "difference of means" and found.texts == ()


def test_units_of_a_convolution_and_a_target():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x, vector = torch.randn(2, 1, 6, 6), torch.tensor([1.0, 0.0, 0.5, 0.0])
    found = steer(net, x, vector, "1", strength=2.0, absolute=True, target=1)
    assert float(found.effect[0]) == pytest.approx(float(2 * net[4].weight[1].detach() @ vector), rel=1e-4)
    changed = hooked(net[1], 2 * vector.reshape(4, 1, 1), lambda: net(x))
    truth = divergence(net(x).detach(), changed).mean()
    assert float(found.side_effect[0]) == pytest.approx(float(truth), rel=1e-4) and not len(found.perplexity)
    basis = Basis.of_directions("1", {"first": vector})
    same = steer(net, x, basis.direction("first"), "1", strength=2.0, absolute=True, target=1)
    assert float(same.effect[0]) == pytest.approx(float(found.effect[0]), rel=1e-5)


def test_a_regression_is_steered_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).eval()
    found = steer(net, torch.ones(2, 3), torch.eye(4)[0], "1", strength=0.5)
    assert found.units == ("share of the output", "share of the output") and float(found.effect[0]) > 0


@pytest.mark.parametrize(
    ("direction", "options", "message"),
    [
        (torch.ones(7), {}, "7 units and layer 'model.layers.1' 32"),
        (torch.zeros(32), {}, "zero or not finite"),
        (torch.ones(32, 2), {}, r"a tensor \(units,\).*two sets"),
        ("happy", {}, "two sets of samples"),
        (torch.ones(32), {"strength": 0.0}, "other than 0"),
        (torch.ones(32), {"neutral": []}, "holds no input"),
        (torch.ones(32), {"draws": 0}, "draws"),
    ],
)
def test_what_cannot_be_steered_is_said(llama, direction, options, message):
    with pytest.raises(errors.LayerLensError, match=message):
        steer(llama, PROMPT, direction, "model.layers.1", **options)


@pytest.mark.slow
def test_a_trained_model_is_steered_and_a_random_direction_is_not():
    from layerlens import Lens, contrast
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    good = ["I love this", "I really adore it", "What a wonderful day", "This is great and makes me happy"]
    bad = ["I hate this", "I really despise it", "What a terrible day", "This is awful and makes me sad"]
    found = Lens(model, tokenizer=tokenizer).steer(
        "I went to the cinema yesterday and the movie was", (good, bad), "model.layers.14", strength=[-0.25, 0.25],
        target=contrast(" great", " terrible"), max_new_tokens=0,
    )  # fmt: skip
    assert float(found.effect[0]) < -1 and float(found.effect[1]) > 1 and bool(found.specific().all())
