"""Texts of several lengths in one batch: every method gives each text what it gives it alone, and padding nothing."""

import functools
import warnings

import pytest
import torch
from torch import nn

from layerlens import Lens, as_target, continuation, contrast, saliency
from layerlens.analyzers.saliency import methods
from layerlens.errors import InputError, OptionError
from layerlens.plotting.drawing.attribution_sample import read

pytestmark = pytest.mark.filterwarnings("ignore:.*cancel over the features", "ignore:.*guided_backprop.*rectifier")

TEXTS = [[5, 9, 2, 31, 17, 6], [8, 28, 3], [4, 9, 11, 30], [12, 3, 20]]
SIDES = {"left": "llll", "right": "rrrr", "both": "rlrl"}
METHODS = sorted(methods())
NOT_FOR_TEXT = {
    "blur_ig", "cam", "extremal_mask", "internal_influence", "layer_conductance", "neuron_conductance", "permutation",
    "xrai", "finer_cam",
}  # fmt: skip
QUICK = {
    "guided_ig": {"steps": 10},
    "deep_shap": {"baselines": ["zero", "noise"]},
    "rise": {"samples": 50},
    "shapley_sampling": {"permutations": 5},
}
"""Options with which the slowest methods take fewer passes."""


@functools.cache
def model_of(kind):
    import transformers as hf

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 24, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "llama":
            model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **more, num_key_value_heads=1))
        elif kind == "gpt2":
            config = hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5)
            model = hf.GPT2LMHeadModel(config)
        else:
            model = hf.BertForMaskedLM(hf.BertConfig(**sizes, **more, max_position_embeddings=16))
    return model.double().eval()


def batch(kind, side):
    longest = max(map(len, TEXTS))
    rows = {"input_ids": [], "attention_mask": [], "position_ids": []}
    for text, where in zip(TEXTS, SIDES[side], strict=True):
        columns = text, [1] * len(text), list(range(len(text)))
        gap = [0] * (longest - len(text))
        for name, column in zip(rows, columns, strict=True):
            rows[name].append(gap + column if where == "l" else column + gap)
    return {name: torch.tensor(part) for name, part in rows.items() if kind != "llama" or name != "position_ids"}


def single(x, row):
    used = x["attention_mask"][row] > 0
    return {name: part[row : row + 1, used] for name, part in x.items()}


def check(model, x, method, target, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = saliency(model, x, target=target, method=method, **options)
        for row, text in enumerate(TEXTS):
            alone = saliency(model, single(x, row), target=target, method=method, **options)
            used = x["attention_mask"][row] > 0
            size = float(alone.tensor.abs().max())
            torch.testing.assert_close(
                found.tensor[row, used], alone.tensor[0], rtol=1e-5, atol=max(1e-4 * size, 1e-10)
            )
            assert not found.tensor[row, ~used].any(), f"{method}: padding has values"
            torch.testing.assert_close(found.score[row], alone.score[0], rtol=1e-6, atol=1e-5)
            assert len(text) == used.sum()
    return found


@pytest.mark.parametrize(
    ("kind", "side"), [("llama", "left"), pytest.param("llama", "right", marks=pytest.mark.slow), ("gpt2", "both")]
)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in NOT_FOR_TEXT])
def test_every_method_gives_a_text_what_it_gives_it_alone(kind, side, method):
    if (kind, method) == ("gpt2", "eigen_cam"):
        pytest.skip("the units of a LayerNorm sum to 0, so rounding decides the sign of the component")
    options = QUICK.get(method, {}) if side != "left" or method == "guided_ig" else {}
    check(model_of(kind), batch(kind, side), method, contrast((-1, 4), (-1, 11)), **options)


@pytest.mark.parametrize("side", ["left", "both"])
@pytest.mark.parametrize("method", ["lime", "rise", "occlusion", "shapley_sampling", "leave_one_out", "grad_cam"])
def test_an_encoder_too(method, side):
    check(model_of("bert"), batch("bert", side), method, (1, 7), **QUICK.get(method, {}))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("occlusion", {"window": 2, "stride": 1}),
        ("occlusion", {"baseline": 7}),
        ("feature_ablation", {"baseline": "noise"}),
        ("integrated_gradients", {"baseline": "noise", "max_steps": 8, "tolerance": float("inf")}),
        ("kernel_shap", {"samples": 20}),
        ("smooth_grad", {"where": "model.layers.0", "samples": 3}),
        ("feature_ablation", {"where": "model.layers.0", "features": "places"}),
    ],
)
def test_options(method, options):
    model, x, target = model_of("llama"), batch("llama", "left"), (-1, 4)
    if "where" not in options:
        check(model, x, method, target, **options)
        return
    found = saliency(model, x, target=target, method=method, **options)
    for row in range(4):
        alone, used = (
            saliency(model, single(x, row), target=target, method=method, **options),
            x["attention_mask"][row] > 0,
        )
        torch.testing.assert_close(found.tensor[row, used], alone.tensor[0], rtol=1e-4, atol=1e-6)
        assert not found.tensor[row, ~used].any()


def test_baselines_and_features_of_the_whole_batch_are_cut_to_the_texts():
    model, x = model_of("llama"), batch("llama", "left")
    ids = torch.arange(24).reshape(4, 6) + 1
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    for options in ({"baseline": ids}, {"baseline": ids[:1]}, {"features": labels}, {"features": labels.expand(4, 6)}):
        found = saliency(model, x, target=(-1, 4), method="feature_ablation", **options)
        for row in range(4):
            used = x["attention_mask"][row] > 0
            name, value = next(iter(options.items()))
            own = value.expand(4, 6)[row, used]
            alone = saliency(model, single(x, row), target=(-1, 4), method="feature_ablation", **{name: own})
            torch.testing.assert_close(found.tensor[row, used], alone.tensor[0], rtol=1e-5, atol=1e-7)
    assert saliency(model, x, target=(-1, 4), method="feature_ablation").settings["features"] == (6, 3, 4, 3)
    with pytest.raises(OptionError, match=r"a baseline of shape \(5,\) does not broadcast .* of shape \(4, 6\)"):
        saliency(model, x, target=(-1, 4), method="feature_ablation", baseline=ids[0, :5])


def test_padding_may_be_anything():
    model, x = model_of("llama"), batch("llama", "both")
    other = {**x, "input_ids": torch.where(x["attention_mask"] > 0, x["input_ids"], 33)}
    for method in ("rise", "lime", "score_cam", "smooth_grad", "gradient_shap"):
        found, again = (saliency(model, one, target=(-1, 4), method=method) for one in (x, other))
        torch.testing.assert_close(found.tensor, again.tensor)


def test_embeddings_and_positional_masks():
    model, x = model_of("llama"), batch("llama", "right")
    by_ids = saliency(model, x, target=(-1, 4), method="feature_ablation")
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(x["input_ids"]).detach(),
        "attention_mask": x["attention_mask"],
    }
    found = saliency(model, embedded, target=(-1, 4), method="feature_ablation", features="places")
    assert not found.tensor[x["attention_mask"] == 0].any()
    positional = saliency(model, (x["input_ids"], x["attention_mask"]), target=(-1, 4), method="feature_ablation")
    torch.testing.assert_close(positional.tensor, by_ids.tensor)


def test_messages_name_the_samples_of_the_batch():
    model = model_of("llama")
    x = {"input_ids": torch.tensor([[5, 9, 2], [8, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    with pytest.raises(InputError, match="sample 1 is a text of 1 token"):
        saliency(model, x, target=(-1, 4), method="leave_one_out")
    with pytest.raises(InputError, match="from other samples with as many tokens; give a batch of two or more"):
        saliency(model, x, target=(-1, 4), method="permutation")

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(40, 4)

        def forward(self, input_ids, attention_mask):
            states = (self.words(input_ids) * attention_mask[..., None]).sum(dim=1)
            return states * (attention_mask.sum(dim=1, keepdim=True) > 2)

    x = {"input_ids": torch.tensor([[5, 9, 2], [8, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    with pytest.warns(UserWarning, match=r"the values of sample\(s\) 1 are zero everywhere"):
        saliency(Blind(), x, target=0, method="feature_ablation")


def test_targets_are_cut_to_the_texts_as_well():
    model, x = model_of("llama"), batch("llama", "left")
    goals = torch.tensor([4, 11, 7, 1])

    def goal(output, samples):
        return output.logits[torch.arange(len(samples)), -1, goals[samples]]

    wanted = saliency(model, x, target=goal, method="lime").tensor
    for target in ([(-1, int(index)) for index in goals], [contrast((-1, 4), (-1, 4)) + as_target(goal)] * 4):
        torch.testing.assert_close(saliency(model, x, target=target, method="lime").tensor, wanted)
    ends = saliency(model, batch("llama", "right"), target=continuation(1), method="lime")
    torch.testing.assert_close(
        ends.score, saliency(model, x, target=continuation(1), method="gradient").score, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_figure_leaves_padding_out(side):
    lens, x = Lens(model_of("llama")), batch("llama", side)
    found = lens.saliency(x, target=(-1, 4), method="feature_ablation")
    assert torch.equal(found.used, x["attention_mask"] > 0)
    shown = read(found, 1)
    used = x["attention_mask"][1] > 0
    assert shown.tokens == ("8", "28", "3") and shown.values.tolist() == found.tensor[1, used].tolist()
    assert (found - found).used is not None
    assert lens.saliency(single(x, 1), target=(-1, 4), method="feature_ablation").used is None


def padded_left(texts, return_tensors="pt", padding=False):
    """Encode texts of numbers, padded on the left."""
    rows = [[int(word) for word in text.split()] for text in texts]
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_on_the_left_shifts_no_positions(kind):
    lens, texts = Lens(model_of(kind), tokenizer=padded_left), [" ".join(map(str, text)) for text in TEXTS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lens.saliency(texts, target=(-1, 4), method="leave_one_out")
        alone = [lens.saliency(text, target=(-1, 4), method="leave_one_out") for text in texts]
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # Llama rotates in float32
    close(found.score, torch.cat([one.score for one in alone]))
    for row, one in enumerate(alone):
        close(found.tensor[row, -one.tensor.shape[1] :], one.tensor[0])
    assert ("position_ids" in lens.inputs(texts).tensors()) == (kind == "gpt2")
    given = padded_left(texts)
    if kind == "llama":
        assert torch.equal(lens.saliency(given, target=(-1, 4), method="leave_one_out").score, found.score)
        return
    with pytest.warns(UserWarning, match="GPT2LMHeadModel counts their positions from the padding.*position_ids"):
        assert torch.equal(lens.run(given).logits, lens.model(**given).logits)
