# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What happens to the layers while a network learns?
#
# A loss is one number for a whole network. Which layer is the cause when training goes wrong? Which layer has memorized
# the training set? And which layers work for another task unchanged?
#
# Three small stories, each with a network that is trained on this page in a few seconds, on scikit-learn's handwritten
# digits.

# %%
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.demo.embedded import DigitNet
from layerlens.demo.train_digits import split_digits


def tensors(digits):
    """Return pictures `(digits, 1, 16, 16)` and labels."""
    pictures = torch.from_numpy(digits.images).double()[:, None]
    return nn.functional.interpolate(pictures, scale_factor=2, mode="bilinear"), torch.from_numpy(digits.labels)


(train_x, train_y), (test_x, test_y) = map(tensors, split_digits(0))
print(len(train_x), "digits for training,", len(test_x), "for testing")

# %% [markdown]
# ## Two trainings, one of them broken
#
# The same small convolutional network is trained twice. The runs differ only in their learning rate. `watch` follows
# your own loop and measures every layer: its gradient, how much the optimizer changed it, and how many of its units are
# constant over the samples.


# %%
def fit(rate):
    """Train for 60 steps and return the history."""
    torch.manual_seed(0)
    net = DigitNet().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    with Lens(net).watch(optimizer, every=2, data=test_x[:64]) as watching:
        for chosen in torch.randint(len(train_x), (60, 64)):
            loss = nn.functional.cross_entropy(net(train_x[chosen]), train_y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watching.log(loss=loss)
    return watching.history


healthy, broken = fit(0.05), fit(5.0)
for rate, history in ((0.05, healthy), (5.0, broken)):
    print(
        f"rate {rate}: last loss {float(history.logged['loss'][-1, -1]):.2f}. ",
        *history.findings() or ["Nothing stands out."],
    )

# %%
healthy.plot("training", quantity="update ratio", title="Healthy: how much each step changes a layer")

# %% [markdown]
# In the healthy run a step changes the weights of the convolutions by a few percent at first, and by less as the loss
# falls. The broken run could be mistaken for a slow one: its loss falls to about 2 and stays there. The layers show
# what happened.

# %%
broken.plot("training", quantity="constant units", title="Broken: share of units that are the same for every digit")

# %%
broken.plot("gradient_flow", title="Broken: what is left of the gradient")

# %% [markdown]
# Nearly all units of the last block died in the first dozen steps. They pass the same number to the classifier whatever
# the digit, and hardly any gradient passes through them: below, a tenth or less is left of what it was at the start.
#
# ## Memorized
#
# A network can fit labels that mean nothing. Train one on true labels and the same one on random labels. Then a new
# readout is fitted at each layer to half of the training samples and evaluated on the other half, and on test samples.
# Both are new to it: if training samples are easier, it is because the layer knows them. The null says what chance can
# do.


# %%
def classifier():
    """Return a network from 64 pixels to ten classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).double()


pixels = train_x[:1200, 0, ::2, ::2].flatten(1)
seen, unseen = slice(0, 600), slice(600, 1200)
anything = torch.randint(10, (1200,), generator=torch.Generator().manual_seed(0))
gaps = {}
for name, labels in (("true labels", train_y[:1200]), ("random labels", anything)):
    net = classifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(120):
        for chosen in torch.randperm(600).split(100):
            loss = nn.functional.cross_entropy(net(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    gaps[name] = layerlens.generalization_gap(
        net, pixels[seen], pixels[unseen], ["1", "3", "5", "6"], train_labels=labels[seen], test_labels=labels[unseen]
    )
    on_train, on_test = gaps[name].checks["model"].tolist()
    print(f"{name:14} right in {on_train:.2f} of training samples, {on_test:.2f} of test samples")
    print(
        "   gap by layer:",
        ", ".join(f"{one} {gap:.2f}" for one, gap in zip(gaps[name].layers, gaps[name].values.tolist(), strict=True)),
    )

# %%
gaps["random labels"].plot(title="Random labels: easier for having been trained on")

# %% [markdown]
# With true labels there is almost no gap. Most of the random labels were learned as well, and the gaps show where they
# are stored: not in the pixels, a little in the first layer, and mostly in the second and third.
#
# ## What works for another task
#
# A network learns the digits 0 to 4, and then continues with 5 to 9. Its copy does the same with the first half frozen.
# `compare` compares each with the network that they started from.


# %%
def learn(net, digits, steps=60):
    """Train what is not frozen on some of the digits."""
    optimizer = torch.optim.SGD([one for one in net.parameters() if one.requires_grad], lr=0.05, momentum=0.9)
    pool = torch.isin(train_y, torch.tensor(digits)).nonzero().squeeze(1)
    for chosen in torch.randint(len(pool), (steps, 64)):
        loss = nn.functional.cross_entropy(net.train()(train_x[pool[chosen]]), train_y[pool[chosen]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def right(net, digits):
    """Return the share of right answers for test samples of some digits."""
    with torch.no_grad():
        kept = torch.isin(test_y, torch.tensor(digits))
        return float((net(test_x[kept]).argmax(1) == test_y[kept]).double().mean())


low, high = list(range(5)), list(range(5, 10))
torch.manual_seed(0)
base = learn(DigitNet().double(), low)
tuned, frozen = DigitNet().double(), DigitNet().double()
for copy in (tuned, frozen):
    copy.load_state_dict(base.state_dict())
for part in (frozen.stem, frozen.blocks[0], frozen.blocks[1]):
    part.requires_grad_(False)
of_high = torch.isin(test_y, torch.tensor(high))
found = {}
for name, net in (("as a whole", tuned), ("first half frozen", frozen)):
    learn(net, high)
    found[name] = Lens(base).compare(net, test_x[of_high], layers=["stem", "blocks.*"])
    print(f"{name:18} right in {right(net, high):.2f} of 5 to 9 and in {right(net, low):.2f} of 0 to 4")

# %%
found["as a whole"].plot(title="Tuned as a whole")

# %%
found["first half frozen"].plot(title="First half frozen")

# %% [markdown]
# Both recognize the new digits and forget the old ones completely. Tuned as a whole, the network changes from the first
# block on, and its last block resembles the old one (CKA) as little as that of an untrained twin does. With the first
# half frozen, that half keeps its weights and is good enough: what it learned from 0 to 4 works for 5 to 9.
#
# The outputs of frozen layers are not quite unchanged, although none of their weights changed: their batch norm
# continued to take its statistics from the new data. That is a common mistake, and here it shows.
#
# The checks below hold for every run of this page.

# %%
weights = {
    name: dict(zip(one.layers, one.values[:, one.series.index("change of the weights")].tolist(), strict=True))
    for name, one in found.items()
}
assert float(healthy.logged["loss"][-1, -1]) < 0.5 < 1.5 < float(broken.logged["loss"][-1, -1])
assert not healthy.findings() and any("pool" in finding for finding in broken.findings())
assert gaps["random labels"].values[-1] > 0.5 > 0.1 > gaps["true labels"].values[-1]
assert gaps["random labels"].values[0] < 0.1 and gaps["random labels"].checks["model"][0] > 0.8
assert min(right(tuned, high), right(frozen, high)) > 0.9 and max(right(tuned, low), right(frozen, low)) < 0.1
assert weights["first half frozen"]["blocks.1"] == 0 < 0.1 < weights["as a whole"]["blocks.1"]
