"""Generation step by step, against transformers' own outputs of `generate` and hand-written hooks."""

import copy

import pytest
import torch
from torch import nn

from layerlens import Lens, continuation, edits, errors, generate, relevance
from tests.snapshot import Snapshot

PROMPT = torch.tensor([[5, 9, 2, 7]])
STEPS = 6


@pytest.fixture(scope="module")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 50, "n_positions": 40, "initializer_range": 0.4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=0)).eval()


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=50, attn_implementation="eager", eos_token_id=0)
    return LlamaForCausalLM(config).eval()


def own(model, **options):
    """What transformers itself says of the steps."""
    asked = {"output_logits": True, "output_hidden_states": True, "output_attentions": True}
    settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0, **asked, **options}
    return model.generate(PROMPT, return_dict_in_generate=True, **settings)


def test_everything_of_each_step_equals_what_the_cached_run_had(llama):
    truth = own(llama)
    before = Snapshot(llama, PROMPT)
    record = ["logit_lens", "attention", "relevance"]
    found = generate(llama, PROMPT, max_new_tokens=STEPS, record=record, top=3)
    before.check()
    assert found.ids.tolist() == truth.sequences[0, 4:].tolist() and float(found.checks["log p of the run"]) < 1e-5
    for step in range(STEPS):
        log_p = truth.logits[step][0].double().log_softmax(0)
        torch.testing.assert_close(found.log_p[step], log_p[found.ids[step]], rtol=0, atol=1e-5)
        assert found.top[step].tolist() == log_p.topk(3).indices.tolist()
        for row in range(3):  # the stream before each block, read by the model's own norm and head
            stream = truth.hidden_states[step][row][0, -1]
            p = llama.lm_head(llama.model.norm(stream)).double().softmax(0)
            value = found.logit_lens.values[row, step]
            torch.testing.assert_close(value, p[found.ids[step]].detach(), rtol=1e-4, atol=1e-6)
        weights = found.attention["model.layers.1.self_attn"][0, :, step]
        seen = truth.attentions[step][1][0, :, -1]  # (head, key)
        torch.testing.assert_close(weights[:, : seen.shape[1]], seen, rtol=1e-4, atol=1e-6)
        alone = relevance(  # the text up to this step alone
            llama,
            truth.sequences[:, : 4 + step],
            target=lambda out, k=step: out.logits[:, -1].log_softmax(1)[:, found.ids[k]],
        )
        table = found.sources().values[step]
        torch.testing.assert_close(table[: 4 + step], alone.tensor[0].double(), rtol=1e-3, atol=1e-5)
        assert bool(table[4 + step :].isnan().all()) and float(found.relevance[step].ledger.relative.max()) < 1e-5


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "temperature": 1.5, "top_k": 5}], ids=str)
def test_beams_and_samples_have_the_models_own_probabilities(gpt2, options):
    found = generate(gpt2, PROMPT, max_new_tokens=STEPS, options=options, seed=3)
    again = generate(gpt2, PROMPT, max_new_tokens=STEPS, options=options, seed=3)
    assert torch.equal(found.ids, again.ids) and float(found.checks["log p of the run"]) < 1e-5
    with torch.no_grad():
        log_p = gpt2(found.inputs["input_ids"]).logits[0].double().log_softmax(1)
    places = torch.arange(3, 3 + len(found))
    torch.testing.assert_close(found.log_p, log_p[places, found.ids], rtol=0, atol=1e-5)


def test_a_text_ends_at_its_end_and_a_given_one_is_followed(gpt2):
    ended = copy.deepcopy(gpt2)
    plain = generate(gpt2, PROMPT, max_new_tokens=STEPS)
    ended.generation_config.eos_token_id = stop = int(plain.ids[2])
    first = plain.ids.tolist().index(stop)
    assert generate(ended, PROMPT, max_new_tokens=STEPS).ids.tolist() == plain.ids[: first + 1].tolist()
    given = generate(gpt2, PROMPT, answer=plain.ids)
    torch.testing.assert_close(given.log_p, plain.log_p, rtol=0, atol=1e-6)
    assert given.checks == {} and given.changed(plain) == [] and given.method == "given"


def test_edits_hold_in_every_step_and_in_what_is_recorded(llama):
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 3
    found = generate(
        llama, PROMPT, max_new_tokens=STEPS, edits={"model.layers.1": edits.add(vector)}, record="logit_lens"
    )
    streams = []

    def steer(module, args, output):
        streams.append((output + vector)[0, -1])
        return output + vector

    handle = llama.model.layers[1].register_forward_hook(steer)
    truth = own(llama)
    handle.remove()
    assert found.ids.tolist() == truth.sequences[0, 4:].tolist()
    assert found.changed(generate(llama, PROMPT, max_new_tokens=STEPS))
    for step, stream in enumerate(streams):
        p = llama.lm_head(llama.model.norm(stream)).double().softmax(0)
        torch.testing.assert_close(found.logit_lens.values[2, step], p[found.ids[step]].detach(), rtol=1e-4, atol=1e-6)


def test_a_head_switched_off_is_that_of_a_hook(llama):
    found = generate(llama, PROMPT, max_new_tokens=STEPS, edits={"model.layers.1.self_attn": edits.zero(heads=2)})

    def off(module, args):
        return (torch.cat([args[0][..., :16], torch.zeros_like(args[0][..., 16:24]), args[0][..., 24:]], dim=-1),)

    handle = llama.model.layers[1].self_attn.o_proj.register_forward_pre_hook(off)
    assert found.ids.tolist() == own(llama).sequences[0, 4:].tolist()
    handle.remove()
    ranking = Lens(llama).ablate(found.inputs, by="head", target=continuation(len(found)))
    assert len(ranking.items) == 12


def test_what_one_forward_pass_cannot_show_is_said(llama):
    last = {"model.layers.1": edits.zero(positions=-1)}
    with pytest.warns(UserWarning, match="differ by up to .* nats .*edits are of positions or calls"):
        generate(llama, PROMPT, max_new_tokens=3, edits=last)
    with pytest.raises(errors.OptionError, match=r"there is no position 2 in layer .* in its call 1"):
        generate(llama, PROMPT, max_new_tokens=3, edits={"model.layers.1": edits.zero(positions=2)})


def test_positions_of_steps_are_known_inside_of_a_forward(llama):
    steps = Lens(llama, forward=lambda model, ids: model.generate(ids, max_new_tokens=3, do_sample=False))
    last = {"model.layers.1": edits.zero(positions=-1)}
    with pytest.warns(UserWarning, match="nats"):
        expected = generate(llama, PROMPT, max_new_tokens=3, edits=last)
    assert steps.run(PROMPT, edits=last)[0, 4:].tolist() == expected.ids.tolist()


class Own(nn.Module):
    """A model of one's own without `generate`: scores (batch, places, tokens)."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids))[0])


def test_any_model_writes():
    torch.manual_seed(0)
    model = Own().eval()
    found = generate(model, PROMPT, max_new_tokens=4, record="relevance")
    ids = PROMPT
    for _ in range(4):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(2)], dim=1)
    assert found.ids.tolist() == ids[0, 4:].tolist() and found.method == "greedy, without a cache"
    one, two = (generate(model, PROMPT, options={"do_sample": True}, max_new_tokens=9, seed=k) for k in (0, 1))
    assert one.ids.tolist() != two.ids.tolist()
    with pytest.raises(errors.OptionError, match="takes do_sample and temperature, not num_beams"):
        generate(model, PROMPT, options={"num_beams": 2})


@pytest.fixture(scope="module")
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, eos_token_id=1)).eval()


def test_an_encoder_and_decoder(t5):
    found = generate(t5, {"input_ids": PROMPT}, max_new_tokens=4, record=["attention", "relevance"])
    truth = t5.generate(PROMPT, max_new_tokens=4, do_sample=False)
    assert found.sequence == "decoder_input_ids" and found.ids.tolist() == truth[0, 1:].tolist()
    assert float(found.checks["log p of the run"]) < 1e-5
    assert found.relevance[2].values["input_ids"].shape == (1, 4)
    assert found.sources("input_ids").values.shape == (len(found), 4)
    assert found.sources().columns[0] == "0 '0'"


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), {}, r"2 prompts were given.*for prompt in prompts"),
        (torch.zeros(1, 3), {}, "continues one row of token ids"),
        ({"input_ids": PROMPT, "attention_mask": torch.tensor([[1, 1, 1, 0]])}, {}, "ends with padding"),
        (PROMPT, {"record": "heads"}, "unknown record 'heads'"),
        (PROMPT, {"answer": " Paris"}, "there is no tokenizer"),
        (PROMPT, {"answer": torch.zeros(0, dtype=torch.long)}, "with one or more"),
        (PROMPT, {"options": {"num_return_sequences": 2}}, "another seed= for each"),
        (PROMPT, {"edits": {"model.layers.0#9": edits.zero()}}, "never made"),
        (PROMPT, {"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_what_cannot_be_generated_is_said(llama, given, options, message):
    with pytest.raises(errors.LayerLensError, match=message):
        generate(llama, given, **{"max_new_tokens": 2, **options})


def test_what_was_not_recorded_is_said(llama):
    found = generate(llama, PROMPT, max_new_tokens=2)
    for call in (found.sources, lambda: found.sources(layer="x"), lambda: found.step(2)):
        with pytest.raises(errors.OptionError):
            call()
    with pytest.raises(errors.PlotError, match="no logit lens was recorded"):
        found.plot("logit_lens")


@pytest.mark.slow
def test_a_trained_model_says_where_its_words_come_from():
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    found = lens.generate("The capital of France is", max_new_tokens=6, record=["relevance", "logit_lens"])
    assert found.text.startswith(" Paris") and float(found.checks["log p of the run"]) < 1e-4
    assert max(float(one.ledger.relative.max()) for one in found.relevance) < 1e-5
    values = dict(zip(found.sources().columns, found.sources().values[0].tolist(), strict=True))
    assert max(list(values)[1:5], key=values.get) == "3 ' France'"
    assert found.logit_lens.settles(0) not in (None, "input of model.layers.0")
