"""Captures inside of processes that share a model: DDP and FSDP2, two of them on gloo."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from layerlens import Probe, capture
from tests.processes import verdicts_of_two

pytestmark = pytest.mark.slow


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def whole(tensor):
    """A tensor that may be spread over processes, as one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def work(rank, port, kind, verdicts):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(10 + rank)
        x = torch.randn(3, 8)
        plain = capture(net(), x)
        if kind == "ddp":
            model = nn.parallel.DistributedDataParallel(net())
            prefix = "module."
        else:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            model, prefix = net(), ""
            mesh = init_device_mesh("cpu", (2,))
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh)
        before = sum(len(module._forward_hooks) for module in model.modules())
        record = capture(model, x)
        for path in ("0", "1", "2"):
            torch.testing.assert_close(whole(record[prefix + path]), plain[path])
        with Probe(model, f"{prefix}0", gradients=True) as record:
            model(x).sum().backward()
        expected = net()
        with Probe(expected, "0", gradients=True) as alone:
            expected(x).sum().backward()
        found, wanted = record.calls(f"{prefix}0")[0].gradient, alone.calls("0")[0].gradient
        torch.testing.assert_close(whole(found), wanted)
        assert sum(len(module._forward_hooks) for module in model.modules()) == before
        dist.barrier()
    except BaseException as error:
        verdicts.put(f"{kind}, process {rank}: {type(error).__name__}: {error}"[:2000])
    else:
        verdicts.put("as one process")
    verdicts.close()
    verdicts.join_thread()
    os._exit(0)  # torch's gloo threads now and then abort an interpreter that ends; that is not what is tested


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_capture_what_one_does(kind):
    assert verdicts_of_two(work, kind) == ["as one process"] * 2
