"""Models that two processes share, on gloo: DDP, FSDP2, tensor parallelism; the same numbers, or a refusal by name."""

import datetime
import os
import pathlib
import subprocess
import sys
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import layerlens as ll
from layerlens import errors
from layerlens.model.placement import is_fsdp, sharded, tensor_parallel
from tests.model.test_placement import IDS, NEED_WEIGHTS, X, analyzers, checkpointed, deep_lift, last, llama, net
from tests.processes import verdicts_of_two

pytestmark = pytest.mark.slow


def bare(value, prefix):
    """The same without the prefix that a wrapper puts before names of layers, and without the wrapper itself."""
    if isinstance(value, dict):
        return {cut(key, prefix): bare(part, prefix) for key, part in value.items() if cut(key, prefix) != "module"}
    if isinstance(value, tuple):
        return tuple(bare(part, prefix) for part in value)
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def cut(key, prefix):
    return key.replace(prefix, "") if prefix else key


def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def gathered(model, parts):
    """The model under FSDP2, each of its parts gathered by itself."""
    from torch.distributed.fsdp import fully_shard

    for part in (*parts, model):
        fully_shard(part, mesh=mesh())
    return model


def split(model):
    """The model under tensor parallelism, as language models do it."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    columns = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"]
    plan = {name: ColwiseParallel() for name in columns}
    plan |= {name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    for layer in model.model.layers:
        parallelize_module(layer, mesh(), plan)
    return model


def same(model, plain, x, target, *, image, prefix=""):
    """See that every analyzer gives what it gives for the model in one process."""
    for name, analyzer in analyzers(target, image=image).items():
        found, wanted = bare(analyzer(model, x), prefix), bare(analyzer(plain, x), "")
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def at_rest(model):
    """What FSDP2 holds between passes, and what users set."""
    weights = [(id(p), type(p), p.requires_grad, p.grad is None) for p in model.parameters()]
    return weights, [(module.training, len(module._forward_hooks)) for module in model.modules()]


def refused(model, names=tuple(NEED_WEIGHTS)):
    for name in names:
        if name == "a copy of the model":
            continue
        with pytest.raises(errors.InputError, match=f"{name}.*sharded over processes.*one process"):
            NEED_WEIGHTS[name](model)


def step(model, x):
    """The gradients of one step of training, whole."""
    model.zero_grad()
    model(x).square().mean().backward()
    return [bare(parameter.grad, "") for parameter in model.parameters()]


def randomized(model, layer):
    return ll.faithfulness.cascading_randomization(model, X, "gradient", layers=layer, target=1).values


def ddp(rank):
    model, plain = nn.parallel.DistributedDataParallel(net()), net()
    same(model, plain, X, 1, image=True, prefix="module.")
    torch.testing.assert_close(step(model, X), step(plain, X))
    for explain in (
        lambda m: deep_lift(m, X),
        lambda m: list(ll.relevance(m, X, target=1, rules="epsilon", parameters="*").parameters.values()),
        lambda m: ll.sensitivity(m, X, draws=1, null=True).null,
        lambda m: randomized(m, "module.6" if m is model else "6"),
        lambda m: ll.weight_sensitivity(m, X, measure="pruning", sparsities=(0.5,)).values,
    ):
        torch.testing.assert_close(explain(model), explain(plain))


def fsdp2(rank):
    plain, model = net(), net()
    model = gathered(model, (model[0], model[3], model[6]))
    before = at_rest(model)
    assert sharded(model) and not tensor_parallel(model) and is_fsdp(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(no relevance rule|does not close)")
        same(model, plain, X, 1, image=True)
        assert at_rest(model) == before
        targets = [0, 1]
        for ours, theirs in zip(*(ll.relevance_by_target(m, X, targets=targets) for m in (model, plain)), strict=True):
            torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=0)
    refused(model)
    with pytest.raises(errors.InputError, match="deep_lift reads weights between the passes"):
        ll.saliency(model, X, target=1, method="deep_lift")
    assert at_rest(model) == before

    def fail(value):
        raise ValueError("on purpose")

    for act in (
        lambda: ll.capture(model, X, edits={"3": fail}),
        lambda: ll.saliency(model, X, target=fail, method="gradient"),
        lambda: ll.capture(model, X, "3", stop=True),
    ):
        try:
            act()
        except ValueError as error:
            assert str(error) == "on purpose"
        assert at_rest(model) == before
    same(model, plain, X, 1, image=True)
    for ours, theirs in zip(step(model, X), step(plain, X), strict=True):
        torch.testing.assert_close(ours, theirs)


def fsdp2_of_a_checkpointed_llama(rank):
    plain, model = llama(), checkpointed(llama())
    model = gathered(model, (*model.model.layers, model.lm_head))
    before = at_rest(model)
    same(model, plain, IDS, last, image=False)
    assert at_rest(model) == before


def tensor_parallel_llama(rank):
    from transformers import AutoModelForCausalLM

    told_parts(split(llama()))
    folder = os.environ["LAYERLENS_TEST_FOLDER"]
    if rank == 0:
        llama().save_pretrained(folder)
    dist.barrier()
    told_parts(AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32).eval())


def told_parts(model):
    """What a tensor parallel model is good for, and what it is not."""
    plain = llama()
    assert tensor_parallel(model)
    says = r"tensor parallel: the outputs of layers 'model\.layers\.0\.self_attn\.q_proj'"
    with pytest.warns(UserWarning, match=says):
        record = ll.capture(model, IDS)
    whole = ll.capture(plain, IDS)
    ends = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "act_fn")
    assert set(record.parts) == {path for path in whole if path.endswith(ends)}
    for path in whole:
        found, wanted = bare(record[path], ""), whole[path]
        if path in record.parts:
            half = wanted.shape[-1] // 2
            wanted = wanted[..., dist.get_rank() * half :][..., :half]
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(found, wanted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tensor parallel")
        assert not ll.capture(model, IDS, ["model.norm", "model.layers.*.mlp"]).parts
        for method, options in {
            "gradient": {},
            "input_x_gradient": {},
            "integrated_gradients": {"steps": 4, "tolerance": 10.0},
            "leave_one_out": {},
        }.items():
            found, wanted = (ll.saliency(m, IDS, target=last, method=method, **options).values for m in (model, plain))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for rules in ("auto", "epsilon", "epsilon_plus", "attn"):
        with pytest.raises(errors.InputError, match=r"relevance cannot be computed for a tensor parallel .*FSDP2"):
            ll.relevance(model, IDS, target=last, rules=rules)
    with pytest.raises(errors.InputError, match="deep_lift reads weights between the passes"):
        ll.saliency(model, IDS, target=last, method="deep_lift")
    with pytest.raises(errors.InputError, match=r"weight_sensitivity needs the weights.*sharded over processes"):
        ll.weight_sensitivity(model, IDS, draws=1)
    for method in ("jacobian", "noise_response"):
        with pytest.raises(errors.InputError, match=f"{method} cannot be computed for a tensor parallel .*FSDP2"):
            ll.sensitivity(model, IDS, method=method)


KINDS = {function.__name__: function for function in (ddp, fsdp2, fsdp2_of_a_checkpointed_llama, tensor_parallel_llama)}


def work(rank, port, kind, verdicts):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=90))
    try:
        KINDS[kind](rank)
        dist.barrier()
    except BaseException:
        verdicts.put(f"{kind}, process {rank}: {traceback.format_exc()[-3000:]}")
    else:
        verdicts.put("as one process")
    verdicts.close()
    verdicts.join_thread()
    os._exit(0)  # torch's gloo threads now and then abort an interpreter that ends; that is not what is tested


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_processes_find_what_one_does(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERLENS_TEST_FOLDER", str(tmp_path))
    assert verdicts_of_two(work, kind) == ["as one process"] * 2


def test_relevance_of_a_long_text_follows_the_checkpoints_of_the_model():
    """Peak memory, each in a process of its own: 4,096 tokens, 12 layers (the share of what does not grow is small)."""
    root = pathlib.Path(__file__).parents[2]
    found = {}
    for checkpoints in ("", "yes"):
        command = [sys.executable, "-m", "benchmarks.long_context", "one", "relevance, attn", "12", "4096", "float32"]
        done = subprocess.run([*command, checkpoints], cwd=root, capture_output=True, text=True, check=True)
        mebibytes, _, total = map(float, done.stdout.split()[-3:])
        found[checkpoints] = mebibytes, total
    assert found["yes"][1] == found[""][1]
    assert not found["yes"][0] > 0.75 * found[""][0]  # NaN where the system does not tell
