"""Several processes make the same bits as a plain loop, also when one of them is killed in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from layerlens import open_store, over
from layerlens.demo.embedded import load_digit_net, sample_pictures
from layerlens.errors import OptionError, SampleError
from layerlens.scale import RayEngine
from tests.processes import free_port

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time, torch, layerlens
from layerlens.demo.embedded import load_digit_net, sample_pictures
torch.set_num_threads(1)

class Slow(torch.utils.data.Dataset):
    def __init__(self, pause):
        self.data, self.pause = sample_pictures()[0].repeat(20, 1, 1, 1), pause
    def __len__(self):
        return len(self.data)
    def __getitem__(self, index):
        time.sleep(self.pause)
        return self.data[index] + 0.01 * (index // 16)

layerlens.over(
    load_digit_net(), Slow(float(sys.argv[2])), store=sys.argv[1], batch_size=4, shard_size=8, engine=sys.argv[3]
).relevance(target=7, layers="blocks.1")
"""


class Noisy(torch.utils.data.Dataset):
    """What `Slow` holds in the script."""

    def __init__(self):
        self.data = sample_pictures()[0].repeat(20, 1, 1, 1)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index] + 0.01 * (index // 16)


@pytest.fixture
def plain(tmp_path):
    """What an uninterrupted run in one process and one thread gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield over(load_digit_net(), Noisy(), store=tmp_path / "plain", batch_size=4, shard_size=8).relevance(
        target=7, layers="blocks.1"
    )
    torch.set_num_threads(threads)


def assert_same(store, plain):
    assert store.complete and store.ids.tolist() == plain.ids.tolist() == list(range(len(Noisy())))
    assert list(store) == list(plain)
    for name in plain:
        assert torch.equal(store[name].tensor(), plain[name].tensor()), name
    store.verify()


def start(folder, pause=0.0, engine="local", **environment):
    script = [sys.executable, "-c", SCRIPT, str(folder), str(pause), engine]
    return subprocess.Popen(script, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})


def wait_for(folder, shards):
    """Until so many shards are there."""
    for _ in range(600):
        if len(list(folder.glob("shard-*"))) >= shards:
            return
        time.sleep(0.1)
    raise AssertionError("no shards appeared")


def test_kill_dash_nine_twice_and_go_on(tmp_path, plain):
    folder = tmp_path / "run"
    done = 0
    for shards in (3, 12):
        process = start(folder, pause=0.01)
        wait_for(folder, shards)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        store = open_store(folder)
        assert not store.complete and shards <= len(store.shards) < 40
        assert len(store.shards) >= done
        done = len(store.shards)
        assert torch.equal(store["values"][:8], plain["values"][:8])
    assert start(folder).wait() == 0
    assert_same(open_store(folder), plain)


def test_ranks_share_the_shards_and_a_lost_one_is_made_up_for(tmp_path, plain):
    folder = tmp_path / "run"
    ranks = [start(folder, 0.01, "auto", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    wait_for(folder, 4)
    ranks[1].kill()
    ranks[1].wait()
    ranks[1] = start(folder, 0.0, "auto", RANK="1", WORLD_SIZE="2")  # as torchrun --max-restarts does
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    assert_same(open_store(folder), plain)


def test_ray_gives_the_same_bits_when_an_actor_is_killed(tmp_path, plain):
    import ray

    class Slow(Noisy):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        folder, killed = tmp_path / "run", []

        def kill():
            """Kill an actor's process with SIGKILL once some shards are there."""
            wait_for(folder, 6)
            names = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
            workers = [line.split()[0] for line in names.splitlines() if "ray::" in line and "MapWorker" in line]
            if workers:
                os.kill(int(workers[0]), signal.SIGKILL)
                killed.append(workers[0])

        thread = threading.Thread(target=kill)
        thread.start()
        work = over(
            load_digit_net(), Slow(), store=folder, batch_size=4, shard_size=8, engine=RayEngine(actors=2)
        ).relevance(target=7, layers="blocks.1")
        thread.join()
        assert killed, "no actor was there to be killed"
        assert_same(work, plain)
    finally:
        ray.shutdown()


def test_ray_tells_what_went_wrong(tmp_path):
    data = sample_pictures()[0].clone()
    data[5] = torch.nan
    with pytest.raises(SampleError, match="sample 5 of the data: InputError"):
        over(load_digit_net(), data, store=tmp_path / "a", shard_size=8, engine="ray").capture("stem")
    with pytest.warns(UserWarning, match="1 of 16 samples"):
        found = over(
            load_digit_net(), data, store=tmp_path / "a", shard_size=8, engine="ray", on_error="record"
        ).capture("stem")
    assert set(found.errors) == {5} and len(found.ids) == 15
    with pytest.raises(OptionError, match="a stream cannot be shared among actors"):
        over(load_digit_net(), iter(data), store=tmp_path / "b", engine="ray").capture("stem")


SHARDED = """
import os, sys, torch, layerlens
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from layerlens.demo.embedded import load_digit_net, sample_pictures

dist.init_process_group("gloo")
net = load_digit_net()
for layer in (net.blocks, net):
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
layerlens.over(net, sample_pictures()[0], store=sys.argv[1], batch_size=4, shard_size=8).relevance(target=7)
dist.destroy_process_group()
"""


def test_a_model_spread_over_two_processes_fills_one_store(tmp_path):
    """All ranks run every batch together, and the first one writes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = over(load_digit_net(), sample_pictures()[0], batch_size=4, shard_size=8).relevance(target=7)
    torch.set_num_threads(threads)
    known = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(tmp_path / "run")], env={**os.environ, **known, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    found = open_store(tmp_path / "run")
    assert found.complete and torch.equal(found["values"].tensor(), plain["values"].tensor())
