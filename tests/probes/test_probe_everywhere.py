"""Captures wherever models run, and nothing left behind whatever happens.

What peers get wrong, and the test that shows it right here: a layer called three times, LSTM and nested outputs,
in-place ReLU, a layer that did not run, and one forward pass for all layers are in `test_probe.py`; an error inside a
block, code from stdin, a one-line `with`, and models on no list are below.
"""

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from layerlens import Lens, Probe, capture, errors
from tests.families import FAMILIES, family
from tests.snapshot import Snapshot


def hooks(model):
    """How many hooks there are, of any kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    everywhere = torch.nn.modules.module
    count = sum(len(getattr(everywhere, f"_global{kind}")) for kind in kinds[:2])
    return count + sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.linspace(-1, 1, 8).reshape(2, 4)


def plain_outputs(model, x):
    """Each leaf's output by hand."""
    found = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, p=path: found.update({p: out.detach().clone()}))
        for path, module in model.named_modules()
        if path and not list(module.children())
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def small_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=32)).eval()


@pytest.mark.parametrize("sampling", [False, True])
def test_every_step_of_generate_is_a_call_and_the_tokens_are_the_same(sampling):
    model, ids = small_gpt2(), torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": 6, "do_sample": sampling, "pad_token_id": 0, "eos_token_id": None}
    torch.manual_seed(7)
    plain = model.generate(ids, **options)
    torch.manual_seed(7)
    with Probe(model, "transformer.h.*") as record:
        found = model.generate(ids, **options)
    assert torch.equal(found, plain)
    shapes = [tuple(call.output.shape) for call in record.calls("transformer.h.1")]  # a tensor, or its tuple
    assert shapes == [(1, 3, 32), *[(1, 1, 32)] * 5]  # the prompt, then one token a step: the cache is in use
    assert hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    model = net().to(dtype)
    record = capture(model, X.to(dtype))
    assert all(call.output.dtype == dtype for call in record.order)
    for path, value in plain_outputs(model, X.to(dtype)).items():
        assert torch.equal(record[path], value)


def test_autocast():
    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        record, expected = capture(model, X), plain_outputs(model, X)
    assert record["0"].dtype == torch.bfloat16
    assert all(torch.equal(record[path], value) for path, value in expected.items())


def test_a_compiled_model_is_run_as_written_and_says_so():
    model = torch.compile(net(), backend="eager")
    with pytest.warns(UserWarning, match="is compiled; layerlens runs it eagerly"):
        record = capture(model, X)
    assert torch.equal(record["_orig_mod.2"], plain_outputs(net(), X)["2"])


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_part_of_a_model_and_compile_in_place():
    model = net()
    expected = plain_outputs(model, X)
    inside = copy.deepcopy(model)
    inside[0] = torch.compile(inside[0], backend="eager")
    inside(X)  # compiled before any hook was there
    record = capture(inside, X)
    assert torch.equal(record["2"], expected["2"])
    assert torch.equal(record["0"], expected["0"])
    in_place = copy.deepcopy(model)
    in_place.compile(backend="eager")
    in_place(X)
    record = capture(in_place, X)
    assert all(torch.equal(record[path], value) for path, value in expected.items())


def test_data_parallel_runs_the_module_inside():
    model = net()
    wrapped = nn.DataParallel(model)
    record = capture(wrapped, X)
    assert torch.equal(record["module.2"], plain_outputs(model, X)["2"])


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_models_keep_their_hooks_and_values(offload, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = net()
    expected = plain_outputs(model, X)
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    assert all(parameter.is_meta for parameter in model.parameters())
    record = capture(model, X)
    assert all(torch.equal(record[path], value) for path, value in expected.items())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(hasattr(module, "_hf_hook") for module in (model[0], model[2]))


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantized_layers():
    model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    record = capture(model, X)
    for path, value in plain_outputs(model, X).items():
        assert torch.equal(record[path], value)
    assert record.calls("0")[0].type == type(model[0]).__name__ == "Linear"


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_modules(name):
    model = net()
    getattr(torch.nn.utils.parametrizations, name)(model[0])
    model.eval()
    before = Snapshot(model, X)
    record = capture(model, X, ["0", "2"])
    before.check()
    assert torch.equal(record["2"], model(X).detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused_by_name():
    with torch.no_grad():
        script = torch.jit.trace(net(), X)
    with pytest.raises(errors.InputError, match="TorchScript"):
        capture(script, X)


class KeywordsOnly(nn.Module):
    """Takes **kwargs and nothing else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, **kwargs):
        return {"logits": self.layer(kwargs["values"])}


def test_a_forward_of_keywords_only():
    record = capture(KeywordsOnly(), {"values": X}, inputs=True)
    assert record["layer"].shape == (2, 2)
    assert list(record.calls("layer")[0].inputs[1]) == []


def test_hooks_of_the_user_stay_in_their_order():
    model, seen = net(), []
    model[0].register_forward_pre_hook(lambda m, a: seen.append("pre"))
    model[0].register_forward_hook(lambda m, a, k, out: seen.append("kwargs"), with_kwargs=True)
    model[0].register_forward_hook(lambda m, a, out: seen.append("always"), always_call=True)
    model[0].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    count, before = hooks(model), list(model[0]._forward_hooks)
    capture(model, X)
    assert seen == ["pre", "kwargs", "always"]
    with Probe(model, "0", gradients=True) as record:
        model(X.clone().requires_grad_()).sum().backward()
    assert seen[3:] == ["pre", "kwargs", "always", "backward"]
    assert record.calls("0")[0].gradient.shape == (2, 6)
    assert hooks(model) == count and list(model[0]._forward_hooks) == before


class LooksAtItself(nn.Module):
    """Captures one of its own layers while it runs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        seen = capture(self.first, x, [""])[""]
        return self.second(self.first(x) + seen)


def test_a_model_that_captures_itself():
    model = LooksAtItself()
    record = capture(model, X, ["second"])
    with torch.no_grad():
        assert torch.equal(record["second"], model.second(2 * model.first(X)))
    assert hooks(model) == 0


class Meets(nn.Module):
    """Waits until both threads are here, so that each runs inside the other's probe."""

    def __init__(self):
        super().__init__()
        self.barrier = threading.Barrier(2, timeout=30)

    def forward(self, x):
        self.barrier.wait()
        return x


@pytest.mark.parametrize("keep", ["reference", "clone"])
def test_two_threads_on_one_model_see_their_own_calls_and_edits(keep):
    first, last = nn.Linear(4, 4), nn.Linear(4, 2)
    model = nn.Sequential(Meets(), first, Meets(), last, Meets())
    found, failed = [None, None], []

    def work(place):
        try:
            edits = {"1": lambda output: output * 0} if place else {}
            with Probe(model, keep=keep, edits=edits) as record, torch.no_grad():
                model(X + place)
            found[place] = record
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and hooks(model) == 0
    with torch.no_grad():
        assert torch.equal(found[0]["1"], first(X)) and torch.equal(found[0]["3"], last(first(X)))
        assert torch.equal(found[1]["3"], last.bias.expand(2, 2))
    assert [record.count for record in found] == [5, 5]


def test_a_thread_of_the_model_itself_is_recorded():
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            results = []
            thread = threading.Thread(target=lambda: results.append(self.layer(x)))
            thread.start()
            thread.join()
            return results[0]

    assert capture(Threaded(), X)["layer"].shape == (2, 2)


def test_a_generator_that_is_closed_early_leaves_nothing():
    model = net()

    def stream():
        with Probe(model) as record:
            for _ in range(3):
                model(X)
                yield record

    steps = stream()
    record = next(steps)
    assert hooks(model) > 0
    steps.close()
    assert hooks(model) == 0
    assert record.partial and record["2"].shape == (2, 3)


class Fails(nn.Module):
    """Raises what it is told to."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [ValueError("in the model"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["model", "reduction", "edit"])
def test_an_error_anywhere_leaves_nothing(error, place):
    def fail(output):
        raise error

    model = nn.Sequential(nn.Linear(4, 4), Fails(error) if place == "model" else nn.Identity(), nn.Linear(4, 2)).train()
    options = {"reduction": {"reduce": fail}, "edit": {"edits": {"1": fail}}, "model": {}}[place]
    before = Snapshot(model, X)
    with pytest.raises(type(error)):
        capture(model, X, **options)
    with pytest.raises(type(error)), Probe(model, **options) as record:
        model(X)
    before.check()
    assert hooks(model) == 0 and record.partial
    assert list(record) == ([] if place == "reduction" else ["0"])


def test_code_from_stdin_and_a_one_line_with():
    code = (
        "import torch; from layerlens import Lens; net = torch.nn.Linear(2, 3); lens = Lens(net)\n"
        "with lens.probe('') as record: net(torch.ones(1, 2))\n"
        "print(tuple(record[''].shape))\n"
    )
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "(1, 3)", done.stderr


@pytest.mark.parametrize("name", list(FAMILIES)[::12])
def test_architectures_on_no_list(name):
    model, x, _ = family(name)
    record = capture(model, x)
    assert record.count > 3 and hooks(model) == 0
    assert Lens(model).layers().rows
