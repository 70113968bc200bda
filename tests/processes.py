"""Two processes that share a model, for tests."""

import socket

import torch.multiprocessing as mp


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def verdicts_of_two(work, kind, seconds=180):
    """What `work(rank, port, kind, verdicts)` puts into the queue in each of two processes."""
    context = mp.get_context("spawn")
    verdicts, port = context.Queue(), free_port()
    processes = [context.Process(target=work, args=(rank, port, kind, verdicts)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        return [verdicts.get(timeout=seconds) for _ in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
