"""What the model writes into, given as input: caches, buffers in lists and objects are given back as they were."""

import copy
import functools
import threading
import types

import pytest
import torch
from torch import nn

from layerlens import Lens, contrast
from layerlens.edits import zero
from layerlens.errors import InputError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.trees import named_tensors

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

IDS = torch.tensor([[5, 9, 2, 31, 17, 4], [8, 8, 3, 12, 30, 7]])
NEW = torch.tensor([[1, 6, 3], [2, 2, 9]])
TARGET = contrast((-1, 4), (-1, 11))


@functools.cache
def language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


def filled(kind):
    """A cache that has seen `IDS`; the dynamic one was made with gradients, as forgetful users do."""
    from transformers import DynamicCache, StaticCache

    model = language_model()
    cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=12)
    with torch.set_grad_enabled(kind == "dynamic"):
        model(input_ids=IDS, past_key_values=cache)
    return cache


def contents(cache):
    tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if isinstance(tensor, torch.Tensor)]
    return [cache.get_seq_length(), *tensors], [tensor.detach().clone() for tensor in tensors]


def by_hand(ids=NEW):
    """The logits of the new tokens, computed without a cache."""
    with torch.no_grad():
        return language_model()(input_ids=torch.cat([IDS, ids], dim=1)).logits[:, 6:]


ENTRIES = {
    "capture": lambda lens, x: lens.capture(x),
    "capture gradients": lambda lens, x: lens.capture(x, gradients=True, target=TARGET),
    "run": lambda lens, x: lens.run(x),
    "run edited": lambda lens, x: lens.run(x, edits={"model.layers.0.mlp": zero()}),
    "layers": lambda lens, x: lens.layers(x),
    "attention": lambda lens, x: lens.attention(x),
    "functions": lambda lens, x: lens.functions(x),
    "gradient": lambda lens, x: lens.saliency(x, target=TARGET, method="gradient"),
    "integrated_gradients": lambda lens, x: lens.saliency(
        x, target=TARGET, method="integrated_gradients", steps=4, tolerance=10.0
    ),
    "leave_one_out": lambda lens, x: lens.saliency(x, target=TARGET, method="leave_one_out", draws=2),
    "rise": lambda lens, x: lens.saliency(x, target=TARGET, method="rise", samples=40),
    "relevance": lambda lens, x: lens.relevance(x, target=TARGET),
    "ablate": lambda lens, x: lens.ablate(x, target=TARGET),
    "jacobian": lambda lens, x: lens.jacobian(x, draws=2),
}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_cache_is_given_back_as_it_was(entry, kind):
    cache = filled(kind)
    before, values = contents(cache)
    try:
        ENTRIES[entry](Lens(language_model()), {"input_ids": NEW, "past_key_values": cache})
    finally:
        after, _ = contents(cache)
        assert after[0] == before[0] == 6 and all(one is two for one, two in zip(before[1:], after[1:], strict=True))
        assert all(torch.equal(one, two) for one, two in zip(values, after[1:], strict=True))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_numbers_are_those_of_the_whole_text(kind):
    lens, x = Lens(language_model()), {"input_ids": NEW, "past_key_values": filled(kind)}
    logits = by_hand()
    for _ in range(2):  # a second call reads the same cache
        torch.testing.assert_close(lens.run(x).logits, logits)
    score = logits[:, -1, 4] - logits[:, -1, 11]
    found = lens.saliency(x, target=TARGET, method="leave_one_out", fill=7)
    torch.testing.assert_close(found.score, score)
    for place in range(3):  # rows of several samples, each with its own cache
        changed = NEW.clone()
        changed[:, place] = 7
        other = by_hand(changed)[:, -1]
        expected = score - (other[:, 4] - other[:, 11])
        torch.testing.assert_close(found.tensor[:, place].double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_new_tokens():
    model = language_model()
    lens, x = Lens(model), {"input_ids": NEW, "past_key_values": filled("dynamic")}
    table = model.get_input_embeddings().weight.detach()
    new = table[NEW].clone().requires_grad_()
    logits = model(inputs_embeds=torch.cat([table[IDS], new], dim=1)).logits[:, -1]
    (slope,) = torch.autograd.grad((logits[:, 4] - logits[:, 11]).sum(), new)
    found = lens.saliency(x, target=TARGET, method="input_x_gradient").tensor
    torch.testing.assert_close(found, (new * slope).sum(-1).detach())


class Buffer:
    """A state of its own class, with slots."""

    __slots__ = ("calls", "queue", "tensor")

    def __init__(self):
        self.tensor, self.queue, self.calls = torch.ones(2, 3), [torch.zeros(2, 3)], 0


class Writes(nn.Module):
    """Writes into everything that it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, buffer, states, table):
        total = x + buffer.tensor + buffer.queue[-1] + states[-1] + table["a"][0]
        buffer.calls += 1
        buffer.tensor.add_(1)
        buffer.queue.append(x)
        states.append(x)
        states[0].mul_(2)
        table["a"][0] = x
        table["b"] = x
        return self.layer(total)


@pytest.mark.filterwarnings("ignore:relevance. the ledger does not close")  # a constant that is overwritten
@pytest.mark.parametrize("call", ["run", "capture", "saliency", "relevance", "ablate"])
def test_buffers_in_lists_dicts_and_objects_are_given_back(call):
    torch.manual_seed(0)
    lens, x, buffer = Lens(Writes()), torch.randn(2, 3), Buffer()
    states, table = [torch.ones(2, 3)], {"a": [torch.ones(2, 3)]}
    held = (states[0], table["a"][0], buffer.tensor)
    given = {"x": x, "buffer": buffer, "states": states, "table": table}
    options = {"saliency": {"target": 1, "method": "gradient"}, "relevance": {"target": 1}, "ablate": {"target": 1}}
    outputs = [getattr(lens, call)(given, **options.get(call, {})) for _ in range(2)]
    assert buffer.calls == 0 and len(buffer.queue) == len(states) == 1 and list(table) == ["a"]
    assert all(one is two for one, two in zip(held, (states[0], table["a"][0], buffer.tensor), strict=True))
    assert all(bool((tensor == 1).all()) for tensor in held) and not buffer.queue[0].any()
    if call == "run":
        with torch.no_grad():
            expected = lens.model.layer(x + 3)
        assert torch.equal(outputs[0], outputs[1]) and torch.allclose(outputs[0], expected)


class Listed(list):
    """A list with a state of its own."""

    def __init__(self, parts=()):
        super().__init__(parts)
        self.seen, self.log = 5, [torch.zeros(1)]


class Named(dict):
    """A dict with a state of its own."""

    def __init__(self, **parts):
        super().__init__(parts)
        self.seen, self.log = 5, [torch.zeros(1)]


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_containers_of_the_users_own_classes_keep_their_attributes(kind):
    class Counts(nn.Module):
        def forward(self, x, state):
            first = state[0] if kind == "list" else state["a"]
            first.add_(1)
            state.seen += 1
            state.log[0].add_(state.seen)
            return x * first * state.log[0]

    state = Listed([torch.ones(1, 2)]) if kind == "list" else Named(a=torch.ones(1, 2))
    state.seen = 7
    outputs = [Lens(Counts()).run({"x": torch.ones(1, 2), "state": state}) for _ in range(2)]
    assert state.seen == 7 and state.log[0].item() == 0 and (state[0] if kind == "list" else state["a"]).eq(1).all()
    assert all(torch.equal(output, torch.full((1, 2), 16.0)) for output in outputs)


def test_rows_of_a_cache_are_those_of_their_samples():
    cache = filled("static")
    rows = as_inputs({"input_ids": NEW, "cache": cache}).rows(torch.tensor([1, 1, 0])).kwargs["cache"]
    layer, own = rows.layers[1], cache.layers[1]
    assert torch.equal(layer.keys, own.keys[[1, 1, 0]]) and torch.equal(layer.values, own.values[[1, 1, 0]])
    assert layer.cumulative_length == 6 and layer.cumulative_length is not own.cumulative_length


def test_modules_and_functions_in_the_input_are_passed_as_they_are():
    module, seen = nn.Linear(2, 2), []

    class Calls(nn.Module):
        def forward(self, x, layer, function, holder):
            seen.append((layer, function, holder.layer))
            return function(layer(x))

    holder = types.SimpleNamespace(layer=module)
    function = torch.tanh
    Lens(Calls()).run({"x": torch.ones(1, 2), "layer": module, "function": function, "holder": holder})
    assert seen == [(module, function, module)]


def test_what_cannot_be_copied_is_refused():
    class Reads(nn.Module):
        def forward(self, x, parts):
            return x + next(parts)

    def parts():
        yield torch.ones(1, 2)

    with pytest.raises(InputError, match=r"holds a generator, which the model may change and which cannot be copied"):
        Lens(Reads()).run({"x": torch.ones(1, 2), "parts": parts()})
    with pytest.raises(InputError, match="holds a lock"):
        Lens(Reads()).run({"x": torch.ones(1, 2), "parts": threading.Lock()})
    steps = iter([torch.ones(1, 2)])
    assert [Lens(Reads()).run({"x": torch.ones(1, 2), "parts": steps})[0, 0].item() for _ in range(2)] == [2, 2]


def test_the_generator_of_the_user_keeps_its_state():
    class Draws(nn.Module):
        def forward(self, x, generator):
            return x + torch.rand(x.shape, generator=generator)

    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first, second = (Lens(Draws()).run({"x": torch.zeros(1, 2), "generator": generator}) for _ in range(2))
    assert torch.equal(generator.get_state(), state) and torch.equal(first, second)


def test_an_encoder_decoder_cache():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=2)
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        first = model(input_ids=IDS, decoder_input_ids=NEW[:, :2])
        whole = model(input_ids=IDS, decoder_input_ids=NEW).logits[:, 2:]
    cache = first.past_key_values
    before = copy.deepcopy([tensor for _, tensor in named_tensors([vars(layer) for layer in _layers(cache)])])
    x = {"input_ids": IDS, "decoder_input_ids": NEW[:, 2:], "past_key_values": cache}
    lens = Lens(model)
    for _ in range(2):
        torch.testing.assert_close(lens.run(x).logits, whole, rtol=1e-4, atol=1e-4)
    lens.relevance(x, target=(0, 4), rules="attn")
    after = [tensor for _, tensor in named_tensors([vars(layer) for layer in _layers(cache)])]
    assert len(before) == len(after) == 8 and all(map(torch.equal, before, after))


def _layers(cache):
    return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
