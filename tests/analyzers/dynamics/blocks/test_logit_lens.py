"""The logit lens against heads applied by hand."""

import copy

import pytest
import torch
from torch import nn

from layerlens import Lens, capture, errors
from layerlens.analyzers.dynamics import logit_lens
from layerlens.inputs.inputs import as_inputs
from layerlens.model.fastpath import layers_called
from tests.cases import CASES, normal
from tests.families import FAMILIES


def family(name):
    import transformers

    kind, configuration, options, data, _ = FAMILIES[name]
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, configuration)(**options)).eval(), data()


def answer(model, x):
    """(columns, classes), what the model says itself."""
    with torch.no_grad(), layers_called():
        out = as_inputs(x).run(model)
    scores = getattr(out, "logits", out)
    return scores.reshape(-1, scores.shape[-1]).double()


@pytest.mark.parametrize("name", ["hf_gpt2", "hf_llama", "hf_vit", "hf_bert", "encoder", "early_exit", "video", "mlp"])
def test_the_last_row_is_the_models_own_answer(name):
    model, x = CASES[name].build(), CASES[name].example()
    found = logit_lens(model, x, value="logit")
    own = answer(model, x)
    torch.testing.assert_close(found.values[-1], own.max(dim=1).values, rtol=0, atol=0)
    assert found.targets == tuple(own.argmax(dim=1).tolist())
    assert float(found.checks["own output"]) < 1e-5
    torch.testing.assert_close(found.checks["kl"][-1], torch.zeros(len(own)).double(), atol=1e-12, rtol=0)
    p = logit_lens(model, x)
    torch.testing.assert_close(p.values[-1], own.softmax(dim=1).max(dim=1).values)
    assert bool((logit_lens(model, x, value="rank").values[-1] == 1).all())


@pytest.mark.parametrize(
    ("name", "norm", "head", "blocks"),
    [
        ("hf_llama", "model.norm", "lm_head", "model.layers"),
        ("hf_gpt2", "transformer.ln_f", "lm_head", "transformer.h"),
    ],
)
def test_every_row_is_norm_and_head_of_that_layers_stream(name, norm, head, blocks):
    model, x = CASES[name].build().double(), CASES[name].example()
    found = logit_lens(model, x, value="logit", target=5)
    assert found.rows == (f"input of {blocks}.0", f"{blocks}.0", f"{blocks}.1")
    record = capture(model, x, [f"{blocks}.*"], inputs=True, keep="clone")
    first = record.calls(f"{blocks}.0")[0]
    args, kwargs = first.inputs
    streams = [(*args, *kwargs.values())[0], *(call.output for call in record.order)]
    with torch.no_grad():
        for row, stream in enumerate(streams):
            stream = stream[0] if isinstance(stream, tuple) else stream
            logits = model.get_submodule(head)(model.get_submodule(norm)(stream))
            torch.testing.assert_close(found.values[row], logits[..., 5].flatten(), rtol=1e-9, atol=1e-9)
            p = logits.softmax(dim=-1).reshape(-1, logits.shape[-1])
            torch.testing.assert_close(found.scores[row], p.topk(5, dim=1).values, rtol=1e-9, atol=1e-9)
            assert torch.equal(found.top[row], p.topk(5, dim=1).indices)


def test_a_classifier_of_pictures_reads_its_class_token():
    model, x = CASES["hf_vit"].build().double(), {"pixel_values": normal(2, 3, 16, 16).double()}
    found = logit_lens(model, x, target=1, value="logit")
    record = capture(model, x, ["vit.layers.*"])
    with torch.no_grad():
        for row, call in enumerate(record.order, start=1):
            stream = call.output[0] if isinstance(call.output, tuple) else call.output
            logits = model.classifier(model.vit.layernorm(stream)[:, 0])
            torch.testing.assert_close(found.values[row], logits[:, 1], rtol=1e-9, atol=1e-9)
    assert found.axes == ("layer", "sample") and found.columns == ("sample 0", "sample 1")


def test_a_batch_is_its_samples_one_after_another():
    for name in ("hf_llama", "hf_bert", "early_exit"):
        model, x = CASES[name].build().double(), CASES[name].example()
        inputs = as_inputs(x).map(lambda t: t.double() if t.is_floating_point() else t)
        together = logit_lens(model, inputs)
        if name == "early_exit":
            continue  # who leaves early depends on the batch
        alone = [logit_lens(model, inputs.rows(torch.tensor([k]))).values for k in range(2)]
        torch.testing.assert_close(together.values, torch.cat(alone, dim=1))


def test_a_head_that_needs_its_input_gets_copies_of_it():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 3)

        def forward(self, x, scale):
            h = x
            for block in self.blocks:
                h = torch.tanh(block(h)) + h
            return self.head(h * scale)

    torch.manual_seed(0)
    model, x = Masked().double(), (normal(3, 4).double(), normal(3, 1, seed=8).double())
    found = logit_lens(model, x, value="logit", target=2)
    assert found.method.endswith("a run for each layer")
    with torch.no_grad():
        # what the lens puts behind a block is what the block returned: the linear map, before tanh and sum
        h, streams = x[0], []
        for block in model.blocks:
            streams.append(block(h))
            h = torch.tanh(streams[-1]) + h
        before = h - torch.tanh(streams[-1])
        for row, stream in enumerate(streams, start=1):
            expected = model.head((torch.tanh(stream) + before) * x[1])[:, 2]
            torch.testing.assert_close(found.values[row], expected, rtol=1e-9, atol=1e-9)
    once = Masked().double()
    single = logit_lens(once, tuple(part[:1] for part in x))  # one sample's scale fits any batch
    assert single.method.endswith("all layers in one run")


def test_a_model_that_answers_for_the_first_rows_only_is_noticed():
    """GPT-2 for sequences picks rows by the batch of its input; read at once, later layers would be lost silently."""

    class Picks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            h = x
            for block in self.blocks:
                h = block(h)
            return self.head(h)[torch.arange(len(x))]

    torch.manual_seed(0)
    model, x = Picks().double().requires_grad_(False), normal(3, 4).double()
    found = logit_lens(model, x, value="logit", target=1)
    assert found.method.endswith("a run for each layer")
    torch.testing.assert_close(found.values[1], model.head(model.blocks[0](x))[:, 1])


def test_a_given_head_is_used_and_checked():
    model, x = CASES["hf_llama"].build().double(), CASES["hf_llama"].example()
    whole = logit_lens(model, x, head=lambda h: model.lm_head(model.model.norm(h)))
    torch.testing.assert_close(whole.values, logit_lens(model, x).values)
    with pytest.warns(UserWarning, match="is the head complete, with its norm"):
        logit_lens(model, x, head=model.lm_head)
    with pytest.raises(errors.OptionError, match="head must return scores"):
        logit_lens(model, x, head=lambda h: h[0, 0])


def test_the_null_is_the_target_at_other_positions():
    model, x = CASES["hf_llama"].build().double(), CASES["hf_llama"].example()
    found = logit_lens(model, x)
    own = answer(model, x).softmax(dim=1)
    columns = len(own)
    for column in (0, 3):
        others = [k for k in range(columns) if k != column]
        expected = own[others, found.targets[column]].mean()
        assert float(found.null[-1, column]) == pytest.approx(float(expected), rel=1e-6)


def test_targets_for_all_for_samples_and_for_columns():
    model, x = CASES["hf_llama"].build(), CASES["hf_llama"].example()
    batch, length = as_inputs(x).tensors()["input_ids"].shape
    assert set(logit_lens(model, x, target=7).targets) == {7}
    assert logit_lens(model, x, target=[3, 4]).targets == (3,) * length + (4,) * length
    each = torch.arange(batch * length) % 40
    assert logit_lens(model, x, target=each.reshape(batch, length)).targets == tuple(each.tolist())
    for target, text in ((999, "classes 0 to"), ([1, 2, 3], "3 targets for"), (0.5, "class indices"), ("cat", "class")):
        with pytest.raises(errors.TargetError, match=text):
            logit_lens(model, x, target=target)


def test_the_lens_names_tokens_and_classes():
    class Words:
        def __call__(self, texts, **options):
            one = [texts] if isinstance(texts, str) else texts
            ids = [[int(word) for word in text.split()] for text in one]
            return {"input_ids": torch.tensor(ids) if options.get("return_tensors") else ids[0]}

        def __len__(self):
            return 40

        def decode(self, ids):
            return f"<{ids[0]}>"

        def convert_ids_to_tokens(self, ids):
            return [f"t{index}" for index in ids]

    lens = Lens(CASES["hf_llama"].build(), tokenizer=Words())
    found = lens.logit_lens("3 4 5", target="7")
    assert found.columns == ("0 '<3>'", "1 '<4>'", "2 '<5>'") and found.targets == (7, 7, 7)
    assert found.name(7) == "'<7>'" and found.says("model.layers.1")[0][0].startswith("'<")
    vit = Lens(CASES["hf_vit"].build(), class_names=["ant", "bee", "cat"])
    named = vit.logit_lens(CASES["hf_vit"].example(), target="bee")
    assert named.targets == (1, 1) and {name for name, _ in named.says(0)} == {"ant", "bee", "cat"}
    with pytest.raises(errors.TargetError, match="no class is named 'dog'"):
        vit.logit_lens(CASES["hf_vit"].example(), target="dog")


MORE = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gpt_neox", "falcon", "bart", "xlnet", "deberta")
]


@pytest.mark.parametrize("name", ["t5", "gemma2", *MORE])
def test_families_unseen(name):
    model, x = family(name)
    found = logit_lens(model, x, value="logit")
    torch.testing.assert_close(found.values[-1], answer(model, x).max(dim=1).values, rtol=0, atol=0)
    assert len(found.rows) >= 2
    if name in ("t5", "bart"):
        assert "decoder" in found.rows[-1]


def test_chosen_layers_and_those_that_do_not_fit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).requires_grad_(False)
    x = normal(5, 4)
    with pytest.warns(UserWarning, match=r"4: its output \(5, 3\)|left out"):
        found = logit_lens(net, x, ["0", "1", "3", "4"], value="logit", target=0)
    assert found.rows == ("4",)
    found = logit_lens(net, x, ["0", "1", "3"], value="logit", target=0)
    assert found.rows == ("0", "1", "3")
    torch.testing.assert_close(found.values[0].float(), net[4](net[0](x))[:, 0])


def test_a_distribution_is_read_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softmax(dim=1))
    x = normal(2, 4)
    found = logit_lens(net, x, ["0", "1"])
    torch.testing.assert_close(found.values[-1].float(), net(x).max(dim=1).values)


def test_memory_is_bounded_by_reading_few_layers_at_a_time(monkeypatch):
    from layerlens.analyzers.dynamics.blocks import logit_lens as head

    model, x = CASES["hf_llama"].build().double(), CASES["hf_llama"].example()
    whole = logit_lens(model, x)
    monkeypatch.setattr(head, "MEMORY", 1)
    torch.testing.assert_close(logit_lens(model, x).values, whole.values)


def test_the_model_is_left_alone_and_the_result_is_kept(tmp_path):
    model, x = CASES["hf_llama"].build(), CASES["hf_llama"].example()
    before = copy.deepcopy(model.state_dict())
    found = logit_lens(model, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    loaded = type(found).load(found.save(tmp_path / "lens"))
    assert loaded.says(-1) == found.says(-1) and loaded.settles(0) == found.settles(0)
    assert "Early layers need not speak" in found.explain()


def test_what_is_refused():
    for name, text in (("cnn", "Give the layers"), ("vae", "Give the layers|give head="), ("gan", "give head=")):
        with pytest.raises(errors.LayerLensError, match=text):
            logit_lens(CASES[name].build(), CASES[name].example())
    model, x = CASES["hf_llama"].build(), CASES["hf_llama"].example()
    with pytest.raises(errors.OptionError, match="unknown value 'odds'"):
        logit_lens(model, x, value="odds")
    with pytest.raises(errors.OptionError, match="top must be"):
        logit_lens(model, x, top=0)
    with pytest.raises(errors.OptionError, match="has one class"):
        logit_lens(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), normal(2, 3), ["0", "1"])
    with pytest.raises(errors.LayerNotFound):
        logit_lens(model, x, "nothing")


@pytest.mark.slow
def test_paris_appears_in_the_last_layers_of_a_language_model():
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    found = lens.logit_lens("The capital of France is", target=" Paris")
    assert len(found.rows) == 31 and found.columns[-1] == "4 ' is'"
    with torch.no_grad():
        own = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert found.says(-1)[0][0] == "' Paris'"
    assert float(found.values[-1, -1]) == pytest.approx(float(own.double().softmax(0).max()), rel=1e-6)
    first = found.settles()
    assert first is not None and 15 < found.rows.index(first) <= 30
    assert float(found.values[:10, -1].max()) < 0.01


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_position_and_no_part_of_the_null(side):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                             num_attention_heads=2, initializer_range=0.5)  # fmt: skip
        model = LlamaForCausalLM(config).double().eval()
    texts = [[5, 9, 2, 31, 17], [8, 28, 3]]
    gaps = [[0] * (5 - len(text)) for text in texts]
    pairs = list(zip(texts, gaps, strict=True))
    ids = torch.tensor([gap + text if side == "left" else text + gap for text, gap in pairs])
    mask = torch.tensor(
        [[0] * len(g) + [1] * len(t) if side == "left" else [1] * len(t) + [0] * len(g) for t, g in pairs]
    )
    found = logit_lens(model, {"input_ids": ids, "attention_mask": mask}, target=[4, 11])
    assert found.columns == (*(f"sample 0, {k}" for k in range(5)), *(f"sample 1, {k}" for k in range(3)))
    assert found.targets == (4,) * 5 + (11,) * 3
    alone = [
        logit_lens(model, {"input_ids": torch.tensor([text])}, target=t) for text, t in zip(texts, (4, 11), strict=True)
    ]
    torch.testing.assert_close(found.values, torch.cat([one.values for one in alone], dim=1), rtol=1e-4, atol=1e-8)
    crossed = [logit_lens(model, {"input_ids": torch.tensor([text])}, target=t).values
               for t in (4, 11) for text in texts]  # fmt: skip
    both = torch.cat(crossed[:2], dim=1), torch.cat(crossed[2:], dim=1)  # each target at all eight positions
    null = torch.stack([(both[k > 4].sum(dim=1) - both[k > 4][:, k]) / 7 for k in range(8)], dim=1)
    torch.testing.assert_close(found.null, null, rtol=1e-4, atol=1e-8)


def test_a_model_without_a_head_is_refused_where_its_numbers_would_get_names_of_tokens():
    net = nn.Sequential(nn.Embedding(30, 4), *[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)])
    ids = torch.tensor([[3, 1, 4]])
    with pytest.raises(errors.TargetError, match=r"4 numbers at each place, and there are 30 names .* its head"):
        logit_lens(net, ids, ["1", "2", "3"], names=[f"token {index}" for index in range(30)])
    assert logit_lens(net, ids, ["1", "2", "3"], names=list("abcd")).names
