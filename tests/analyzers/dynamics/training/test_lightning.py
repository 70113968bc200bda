"""A watch as a callback of Lightning: the numbers of a plain loop, and nothing left behind, also after an error."""

import copy
import warnings

import pytest
import torch
from torch import nn

from layerlens import errors, watch
from tests.cases import normal

pytestmark = pytest.mark.slow
STEPS, SIZE = 6, 8


@pytest.fixture(scope="module")
def pl():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        import lightning.pytorch

        return lightning.pytorch


@pytest.fixture(autouse=True)
def _lightning_speaks():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torch.utils.data")
        warnings.filterwarnings("ignore", message=".*(num_workers|isinstance.treespec|log_every_n_steps|LeafSpec).*")
        yield


def samples():
    x, y = normal(STEPS * SIZE, 4, seed=3).double(), torch.arange(STEPS * SIZE) % 3
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=SIZE)


def made(pl, fail=None, manual=False, optimizers=1):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
            self.automatic_optimization = not manual

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            if index == fail:
                self.net(batch[0])
                raise RuntimeError("the batch is bad")
            x, y = batch
            loss = nn.functional.cross_entropy(self(x), y)
            if manual:
                self.manual_backward(loss)
                for one in self.trainer.optimizers:
                    one.step()
                    one.zero_grad()
            return loss

        def validation_step(self, batch, index):
            self(1000 * batch[0])

        def configure_optimizers(self):
            parts = [self.net] if optimizers == 1 else [self.net[0], self.net[2]]
            made = [torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9) for one in parts]
            return made if optimizers > 1 else made[0]

    return Module()


def fit(pl, module, callbacks, **options):
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, samples(), samples())
    return trainer


def plain(module, accumulate=1, clip=None):
    """The same training, written out."""
    net = copy.deepcopy(module.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = normal(16, 4, seed=7).double()
    with watch(net, optimizer, every=1, data=x) as watching:
        losses = []
        for index, (x, y) in enumerate(samples()):
            loss = nn.functional.cross_entropy(net(x), y)
            (loss / accumulate).backward()
            losses.append((index // accumulate, loss.item()))
            if index % accumulate == accumulate - 1:
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return net, watching.history, losses


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (3, None), (1, 0.1)])
def test_the_numbers_are_those_of_a_plain_loop(pl, accumulate, clip, hooks_of):
    module = made(pl)
    net, expected, losses = plain(module, accumulate, clip)
    watching = watch(module, every=1, data=normal(16, 4, seed=7).double())
    trainer = fit(
        pl, module, [watching.callback()], accumulate_grad_batches=accumulate, gradient_clip_val=clip,
        val_check_interval=2,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), module.net.parameters(), strict=True))
    found = watching.history
    assert found.steps.tolist() == expected.steps.tolist() == list(range(STEPS // accumulate))
    assert found.rows.tolist() == expected.rows.tolist() == [SIZE] * len(found)
    for quantity, values in expected.values.items():
        assert found.layers[quantity] == tuple(f"net.{name}" for name in expected.layers[quantity])
        torch.testing.assert_close(found.values[quantity], values, rtol=1e-9, atol=1e-12)
    assert found.values["gradient norm"].min() > 0 and found.values["activation std"].min() > 0
    torch.testing.assert_close(found.logged["loss"], torch.tensor(losses, dtype=torch.float64))
    assert hooks_of(module) == 0
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_nothing_stays_when_a_training_step_raises(pl, hooks_of):
    module = made(pl, fail=3)
    watching = watch(module, every=1)
    with pytest.raises(RuntimeError, match="the batch is bad"):
        fit(pl, module, [watching.callback()])
    assert hooks_of(module) == 0 and watching.history.steps.tolist() == [0, 1, 2]
    assert not watching.optimizer._optimizer_step_pre_hooks and not watching.optimizer._optimizer_step_post_hooks


def test_a_second_fit_goes_on_where_the_first_ended(pl):
    module = made(pl)
    watching = watch(module, every=2, data=normal(16, 4, seed=7).double())
    fit(pl, module, [watching.callback()])
    drift = watching.history.curve("drift", "net.2")
    fit(pl, module, [watching.callback()])
    assert watching.history.steps.tolist() == [0, 2, 4, 6, 8, 10]
    assert torch.equal(watching.history.curve("drift", "net.2")[:3], drift)
    assert watching.history.logged["loss"][:, 0].tolist() == list(range(12))


def test_of_several_optimizers_each_has_a_watch(pl):
    module = made(pl, manual=True, optimizers=2)
    first, second = watch(module, every=1), watch(module, every=1)
    with pytest.warns(UserWarning, match="the trainer has 2 optimizers"):
        fit(pl, module, [first.callback(), second.callback(1)])
    assert first.history.layers["gradient norm"] == ("net.0",)
    assert second.history.layers["gradient norm"] == ("net.2",)
    assert len(first.history) == len(second.history) == STEPS
    with pytest.raises(errors.OptionError, match=r"callback\(3\): the trainer has 1 optimizer"):
        fit(pl, made(pl), [watch(module).callback(3)])
