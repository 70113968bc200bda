"""A target per sample, in every spelling, gives each sample what it gets alone."""

import functools
import warnings

import pytest
import torch
from torch import nn

from layerlens import Lens, as_target, continuation, contrast, neuron, probability
from layerlens.analyzers.saliency import methods, saliency
from layerlens.errors import TargetError
from tests.cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore:.*cancel over the features")

WORDS = [f" w{index}" for index in range(40)]
PROMPTS = [" w5 w9 w2 w31", " w8 w28", " w4 w9 w11"]


class Tokenizer:
    """A token is a number after a space and a w; padding goes to the side that is set."""

    pad_token_id = 0

    def __init__(self, side="right"):
        self.side = side

    def __len__(self):
        return 40

    def __call__(self, text, add_special_tokens=True, return_tensors=None, padding=False):
        rows = [[int(word) for word in one.split(" w")[1:]] for one in ([text] if isinstance(text, str) else text)]
        if return_tensors is None:
            return {"input_ids": rows[0]}
        gaps = [[0] * (max(map(len, rows)) - len(row)) for row in rows]
        pairs = list(zip(rows, gaps, strict=True))
        left = self.side == "left"
        ids = [gap + row if left else row + gap for row, gap in pairs]
        mask = [gap + [1] * len(row) if left else [1] * len(row) + gap for row, gap in pairs]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    def decode(self, ids):
        return "".join(WORDS[index] for index in ids)

    def convert_ids_to_tokens(self, ids):
        return [WORDS[index] for index in ids]


@functools.cache
def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.5,
        )  # fmt: skip
        return LlamaForCausalLM(config).double().eval()


def lens_of(side="right"):
    return Lens(language_model(), tokenizer=Tokenizer(side))


def last_logit(output):
    return output.logits[:, -1, 7]


SPELLINGS = {
    "texts": ([" w4", " w11", " w7"], [" w4", " w11", " w7"]),
    "ids": ([4, 11, 7], [4, 11, 7]),
    "a tensor": (torch.tensor([4, 11, 7]), [4, 11, 7]),
    "places": ([(-1, 4), (0, 11), (1, 7)], [(-1, 4), (0, 11), (1, 7)]),
    "places of texts": ([(-1, " w4"), (0, " w11"), (-2, " w7")], [(-1, 4), (0, 11), (-2, 7)]),
    "a contrast of lists": (
        contrast([" w4", " w11", " w7"], [" w1", " w2", " w3"]),
        [contrast(" w4", " w1"), contrast(" w11", " w2"), contrast(" w7", " w3")],
    ),
    "a list of contrasts": ([contrast(4, 1), contrast(" w11"), contrast((0, 7), (0, 3))],) * 2,
    "a contrast with one": (contrast([4, 11, 7], 2), [contrast(4, 2), contrast(11, 2), contrast(7, 2)]),
    "against the others": (contrast([" w4", " w11", " w7"]), [contrast(4), contrast(11), contrast(7)]),
    "probabilities": (probability([" w4", " w11", " w7"]), [probability(4), probability(11), probability(7)]),
    "probabilities of places": (
        probability([(-1, 4), (0, 11), (1, 7)]),
        [probability((-1, 4)), probability((0, 11)), probability((1, 7))],
    ),
    "a mixture": ([last_logit, None, " w4"],) * 2,
    "sums": ([2 * as_target((-1, 4)), as_target((0, 1)) + as_target((1, 2)), " w7"],) * 2,
    "ends": (continuation([1, " w28", 2]), [continuation(1), continuation(1), continuation(2)]),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(spelling, side):
    lens = lens_of(side)
    together, single = SPELLINGS[spelling]
    found = lens.saliency(PROMPTS, target=together, method="input_x_gradient")
    for row, prompt in enumerate(PROMPTS):
        alone = lens.saliency(prompt, target=single[row], method="input_x_gradient")
        used = lens.inputs(PROMPTS).kwargs["attention_mask"][row] > 0
        torch.testing.assert_close(found.score[row], alone.score[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.tensor[row, used], alone.tensor[0], rtol=1e-4, atol=1e-5)
        assert alone.target in (found.target_of(row), alone.target)
    assert len(found.targets) == 3 and len(set(found.targets)) == 3


METHODS = [name for name in methods() if name not in {
    "blur_ig", "cam", "extremal_mask", "internal_influence", "layer_conductance", "neuron_conductance", "permutation",
    "xrai"
}]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_saliency_method(method):
    lens, targets = lens_of(), [" w4", contrast((-1, 11), (-1, 2)), (0, 7)]
    if method == "finer_cam":
        targets = [" w4", (-1, 11), (-1, 7)]
    quick = {"guided_ig": {"steps": 10}, "deep_shap": {"baselines": ["zero", "noise"]}, "rise": {"samples": 50}}
    options = quick.get(method, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = lens.saliency(PROMPTS, target=targets, method=method, **options)
        for row, prompt in enumerate(PROMPTS):
            alone = lens.saliency(prompt, target=targets[row], method=method, **options)
            used = lens.inputs(PROMPTS).kwargs["attention_mask"][row] > 0
            size = float(alone.tensor.abs().max())
            torch.testing.assert_close(found.tensor[row, used], alone.tensor[0], rtol=1e-4, atol=max(1e-4 * size, 1e-9))
            torch.testing.assert_close(found.score[row], alone.score[0], rtol=1e-5, atol=1e-6)


def test_other_analyzers():
    lens, prompts = lens_of(), [" w5 w9 w2", " w8 w28 w1"]
    targets = [" w4", contrast((-1, 11), (-1, 2))]

    def same(analyze):
        together, alone = analyze(prompts, targets), [analyze(prompts[row], targets[row]) for row in (0, 1)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-6)

    same(lambda x, target: lens.relevance(x, target=target, rules="attn").tensor)
    layer = {"layers": "model.layers.0", "rules": "attn"}
    same(lambda x, target: lens.relevance(x, target=target, **layer).layers["model.layers.0"][0])
    same(lambda x, target: lens.relevance_by_target(x, targets=[target, (-1, 3)], rules="attn")[0].tensor)

    def gradient(x, target):
        (call,) = lens.capture(x, "model.norm", gradients=True, target=target).calls("model.norm")
        return next(iter(call.gradient.values())) if isinstance(call.gradient, dict) else call.gradient

    same(gradient)
    options = {"attributions": ["gradient", "input_x_gradient"], "measure": "score", "controls": False, "steps": 3}
    board = lens.evaluate(prompts, target=targets, **options)
    for row in (0, 1):
        with pytest.warns(UserWarning, match="no interval"):
            alone = lens.evaluate(prompts[row], target=targets[row], **options)
        for method in alone.methods:
            own, other = board.methods.index(method), alone.methods.index(method)
            torch.testing.assert_close(board.values[own, :, row], alone.values[other, :, 0], rtol=1e-4, atol=1e-6)
    for method, options in (
        ("ablate", {"by": "layer"}),
        ("noise_response", {"draws": 2}),
        ("weight_sensitivity", {"measure": "pruning", "draws": 1}),
    ):
        whole = lens.sensitivity(prompts, method=method, target=targets, **options)
        parts = [lens.sensitivity(prompts[row], method=method, target=targets[row], **options) for row in (0, 1)]
        if method != "noise_response":  # whose noise is drawn for the whole batch
            mean = torch.stack([part.values for part in parts]).mean(dim=0)
            torch.testing.assert_close(whole.values, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:grad_cam")
def test_classifiers_and_units():
    case = CASES["cnn"]
    model, x = case.build(), case.example()
    names = ["cat", "dog", "cow", "hen"][: model(x).shape[1]]
    lens = Lens(model, class_names=names)
    for together, single in (
        (["dog", "cat"], ["dog", "cat"]),
        ([("dog",), (0,)], ["dog", "cat"]),
        (["dog", contrast("cat", "dog")], ["dog", contrast("cat", "dog")]),
        ([None, lambda output: output.logsumexp(dim=1)],) * 2,
    ):
        for method in ("gradient", "occlusion", "grad_cam", "deep_lift", "integrated_gradients"):
            found = lens.saliency(x, target=together, method=method)
            for row in (0, 1):
                alone = lens.saliency(x[row : row + 1], target=single[row], method=method)
                torch.testing.assert_close(found.tensor[row], alone.tensor[0], rtol=1e-3, atol=1e-5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    found = saliency(net, torch.ones(2, 3), target=[neuron("0", 1), neuron("0", 3)], method="gradient")
    torch.testing.assert_close(found.tensor, net[0].weight[[1, 3]].detach())
    with pytest.raises(TargetError, match="the targets of the samples read different layers"):
        saliency(net, torch.ones(2, 3), target=[neuron("0", 1), 1], method="gradient")


def test_a_list_of_another_length_says_so():
    lens = lens_of()
    advice = "the target is a list of 2 for a batch of 3; a list holds one target per sample. Give one target, without"
    for target in ([" w1", " w2"], [1, 2], [(-1, 1), (0, 2)], contrast([1, 2]), [None, last_logit]):
        with pytest.raises(TargetError, match=advice):
            lens.saliency(PROMPTS, target=target, method="gradient")
    with pytest.raises(TargetError, match=r"Targets of several samples are a list: \[' w1', ' w2'\]"):
        lens.saliency(PROMPTS, target=(" w1", " w2"), method="gradient")
    with pytest.raises(TargetError, match="joins lists of 2 and 3"):
        contrast([1, 2], [1, 2, 3])
    with pytest.raises(TargetError, match=r"there is no token 2 in sample 1, whose text has 2 tokens"):
        lens.saliency(PROMPTS, target=(2, 5), method="gradient")


def test_over_a_data_set():
    lens, texts = lens_of(), [" w5 w9 w2", " w8 w28 w1", " w3 w4 w5", " w6 w1 w2", " w9 w9 w1"]
    targets = [" w4", (0, 11), contrast((-1, 2), (-1, 3)), None, (-1, " w1")]
    pairs = zip(texts, targets, strict=True)
    wanted = torch.cat([lens.saliency(text, target=one, method="gradient").score for text, one in pairs])
    found = lens.over(texts, batch_size=2).saliency(target=targets, method="gradient")["score"].tensor()
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-5, atol=1e-6)
