"""Methods for text: leave-one-out, centered relevance, and the method that `auto` chooses."""

import functools

import pytest
import torch
from torch import nn

from layerlens import Lens, contrast, relevance, saliency
from layerlens.analyzers import relevance as relevance_package
from layerlens.analyzers.relevance import centered_relevance
from layerlens.analyzers.saliency.auto import auto
from layerlens.analyzers.saliency.perturbation.leave_one_out import leave_one_out
from layerlens.errors import InputError, OptionError
from tests.cases import CASES, normal


@functools.cache
def language_model(kind="gpt2"):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "gpt2":
            config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=300, initializer_range=0.5)
            model = GPT2LMHeadModel(config)
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, initializer_range=0.5,
                )
            )  # fmt: skip
    return model.double().eval()


IDS = torch.tensor([[5, 9, 2, 31, 17], [8, 8, 3, 12, 30]])
TARGET = contrast((-1, 4), (-1, 11))


def score(model, ids, **inputs):
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits[:, -1]
    return logits[:, 4] - logits[:, 11]


# -- leave one out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_all_other_tokens_of_the_text_in_turn(kind):
    model = language_model(kind)
    result = leave_one_out(model, {"input_ids": IDS}, target=TARGET, draws=9)
    whole = score(model, IDS)
    for row in range(2):
        for place in range(5):
            drops = []
            for other in range(5):
                if other != place:
                    changed = IDS[row].clone()
                    changed[place] = IDS[row, other]
                    drops.append(whole[row] - score(model, changed[None])[0])
            drops = torch.stack(drops)
            assert float(result.tensor[row, place]) == pytest.approx(float(drops.mean()), rel=1e-5, abs=1e-6)
            error = drops.std() / 2
            assert float(result.standard_error[row, place]) == pytest.approx(float(error), rel=1e-5, abs=1e-6)
    assert result.axes == ("batch", "token") and result.units == "score" and result.signed
    torch.testing.assert_close(result.score, whole)


@pytest.mark.parametrize("fill", ["zero", 7, normal(16).double()], ids=["zero", "token", "embedding"])
def test_one_fill_against_embeddings_changed_by_hand(fill):
    model = language_model()
    table = model.get_input_embeddings().weight.detach()
    result = leave_one_out(model, {"input_ids": IDS}, target=TARGET, fill=fill)
    whole = score(model, IDS)
    for row in range(2):
        text = table[IDS[row]]
        by = torch.zeros(16).double() if isinstance(fill, str) else fill
        by = table[by] if isinstance(by, int) else by
        for place in range(5):
            changed = text.clone()
            changed[place] = by
            with torch.no_grad():
                logits = model(inputs_embeds=changed[None]).logits[0, -1]
            drop = whole[row] - (logits[4] - logits[11])
            assert float(result.tensor[row, place]) == pytest.approx(float(drop), rel=1e-5, abs=1e-6)
    assert result.standard_error is None and result.settings["draws"] is None


def test_draws_come_from_the_seed_and_not_from_the_batch():
    model = language_model()
    both = leave_one_out(model, {"input_ids": IDS}, target=TARGET, draws=2)
    for row in range(2):
        alone = leave_one_out(model, {"input_ids": IDS[row : row + 1]}, target=TARGET, draws=2, batch_size=1)
        torch.testing.assert_close(alone.tensor[0], both.tensor[row])
    other = leave_one_out(model, {"input_ids": IDS}, target=TARGET, draws=2, seed=1)
    assert not torch.allclose(other.tensor, both.tensor)
    state = torch.random.get_rng_state()
    leave_one_out(model, {"input_ids": IDS}, target=TARGET)
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_draw_has_no_error_and_padding_has_none():
    ids, mask = torch.tensor([[0, 3, 12], [4, 8, 2]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    found = leave_one_out(language_model("llama"), {"input_ids": ids, "attention_mask": mask}, target=TARGET)
    assert found.standard_error.isnan().tolist() == [[False, True, True], [False] * 3] and found.degrees == 1
    assert found.standard_error[0, 0] == 0 and (found.standard_error[1] > 0).all()


@pytest.mark.parametrize("method", [leave_one_out, centered_relevance])
def test_padding_is_no_token(method):
    model = language_model("llama")
    padded = torch.tensor([[5, 9, 2, 31, 17], [0, 0, 3, 12, 30]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    result = method(model, {"input_ids": padded, "attention_mask": mask}, target=TARGET)
    assert result.tensor[1, :2].tolist() == [0, 0] and (result.tensor[1, 2:] != 0).all()
    alone = method(model, {"input_ids": padded[1:, 2:]}, target=TARGET)
    torch.testing.assert_close(alone.tensor[0], result.tensor[1, 2:])  # rotary positions: only distances count


# -- centered relevance ------------------------------------------------------------------------


def test_the_old_name_of_centered_relevance_still_works():
    model = language_model("llama")
    new = saliency(model, {"input_ids": IDS}, target=TARGET, method="centered_relevance")
    with pytest.warns(DeprecationWarning, match="'centred_relevance' is now 'centered_relevance'"):
        old = saliency(model, {"input_ids": IDS}, target=TARGET, method="centred_relevance")
    assert torch.equal(old.tensor, new.tensor) and old.method == "centered_relevance"
    with pytest.warns(DeprecationWarning, match=r"centred_relevance is now .*centered_relevance"):
        assert relevance_package.centred_relevance is centered_relevance


class Bag(nn.Module):
    """Logits that are linear in every token's embedding, with a weight for each place."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(40, 6), nn.Linear(6, 3)
        self.register_buffer("weights", torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0]))

    def forward(self, ids):
        return self.head((self.table(ids) * self.weights.to(self.table.weight)[:, None]).sum(1))


def test_a_linear_model_has_a_closed_form():
    model = Bag().double()
    result = centered_relevance(model, IDS, target=1)
    x = model.table.weight.detach()[IDS]
    expected = ((x - x.mean(1, keepdim=True)) * model.weights.double()[:, None]) @ model.head.weight.detach()[1]
    torch.testing.assert_close(result.tensor, expected)
    every = leave_one_out(model, IDS, target=1, draws=4)  # x - the mean of the 4 others is 5/4 of x - the mean of all
    torch.testing.assert_close(every.tensor.double(), 5 / 4 * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rules", ["attn", "cp"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_multipliers_are_those_of_relevance(kind, rules):
    model = language_model(kind)
    x = model.get_input_embeddings()(IDS).detach()
    full = relevance(model, {"inputs_embeds": x}, target=TARGET, rules=rules)  # per feature
    expected = (full.tensor / x * (x - x.mean(1, keepdim=True))).sum(-1)
    result = centered_relevance(model, {"input_ids": IDS}, target=TARGET, rules=rules)
    torch.testing.assert_close(result.tensor, expected)
    torch.testing.assert_close(result.checks["conservation gap"], full.checks["conservation gap"])


# -- auto --------------------------------------------------------------------------------------------------------------


def test_auto_chooses_by_the_number_of_tokens():
    model = language_model()
    long = torch.arange(240).reshape(1, 240) * 7 % 40
    for count, fill, draws in ((20, "drawn", 4), (60, "drawn", 3), (150, "drawn", 1), (1, "zero", None)):
        result = auto(model, {"input_ids": long[:, :count]}, target=TARGET)
        assert result.method == "leave_one_out"
        assert (result.settings["fill"], result.settings["draws"]) == (fill, draws)
        assert result.settings["chosen"] == f"a text of {count} token(s): docs/language-models.md"
    result = saliency(model, {"input_ids": long}, target=TARGET, method="auto")
    assert result.method == "centered_relevance" and result.tensor.shape == (1, 240)


@pytest.mark.filterwarnings("ignore:integrated_gradients")
def test_auto_on_other_inputs_and_layers():
    case = CASES["cnn"]
    result = auto(case.build(), case.example(), target=case.target)
    assert result.method == "relevance, epsilon_plus" and "docs/faithfulness.md" in result.settings["chosen"]
    for name, method in (("mlp", "kernel_shap"), ("lstm", "integrated_gradients")):
        case = CASES[name]
        result = auto(case.build(), case.example(), target=case.target)
        assert result.method == method and "docs/saliency.md" in result.settings["chosen"]
    result = saliency(language_model(), IDS, target=TARGET, method="auto", where="transformer.h.0.mlp")
    assert result.method == "integrated_gradients" and result.tensor.shape == (2, 5, 16)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_input_and_options():
    image, case = CASES["cnn"].build(), CASES["cnn"]
    for method in (leave_one_out, centered_relevance):
        with pytest.raises(InputError, match=rf"{method.__name__} takes token ids .* input '0' is not embedded"):
            method(image, case.example(), target=0)
    model = language_model()
    with pytest.raises(InputError, match="sample 0 is a text of 1 token"):
        leave_one_out(model, IDS[:, :1], target=TARGET)
    for options, message in (
        ({"fill": "blur"}, r"unknown fill 'blur'\. Known: 'drawn'"),
        ({"draws": 0}, "draws must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ):
        with pytest.raises(OptionError, match=message):
            leave_one_out(model, IDS, target=TARGET, **options)
    with pytest.raises(OptionError, match="'epsilon_plus_flat' has a rule for the first layer"):
        centered_relevance(model, IDS, target=TARGET, rules="epsilon_plus_flat")
    with pytest.raises(OptionError, match="attributes to the input only"):
        saliency(model, IDS, target=TARGET, method="leave_one_out", where="transformer.h.0")


# -- trained models ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_needs_the_country_to_name_its_capital():
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    for country, city, other in (("France", " Paris", " London"), ("Japan", " Tokyo", " Rome")):
        for method in ("auto", "centered_relevance"):
            words = lens.saliency(f"The capital of {country} is", target=contrast(city, other), method=method).by_word()
            assert words.tokens[0] == ["The", "capital", "of", country, "is"]
            assert int(words.tensor[0].argmax()) == 3
    found = lens.saliency("The capital of France is")
    assert found.method == "leave_one_out" and found.target.startswith("log p of ")
    assert int(found.by_word().tensor[0].argmax()) == 3


def test_auto_on_an_image_model_with_attention():
    case = CASES["hf_vit"]
    result = auto(case.build(), case.example(), target=case.target)
    assert result.method == "relevance, cp" and "docs/saliency.md" in result.settings["chosen"]
