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
# # Training samples, pairs of features, concepts
#
# Three questions beyond "which pixels": which training samples made this error, which features work together, and
# does a concept push the score? In each section the answer is planted, and found.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

from layerlens import Data, Lens

# %% [markdown]
# ## A mislabeled digit
#
# Of 600 digits, sample 120 gets a wrong label. The network learns it by heart.

# %%
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels).float() / 16, torch.tensor(digits)
labels, wrong = y[:600].clone(), 120
labels[wrong] = (labels[wrong] + 3) % 10
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer, checkpoints = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9), []
for step in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x[:600]), labels).backward()
    optimizer.step()
    if step % 50 == 49:
        checkpoints.append({name: one.clone() for name, one in net.state_dict().items()})
lens, training = Lens(net), Data(x[:600], labels=labels)

# %% [markdown]
# Without a sample to explain, each training sample is measured on itself: what nothing else explains comes first.

# %%
itself = lens.influence(training=training, checkpoints=checkpoints)
print("largest self influence:", [index for index, _ in itself.ranked(count=5)])
assert wrong in [index for index, _ in itself.ranked(count=5)]
itself.plot()

# %% [markdown]
# And which training samples raise the loss of the test digits that look like it?

# %%
near = 600 + (x[600:] - x[wrong]).square().sum(dim=1).argsort()[:20]
losses = nn.functional.cross_entropy(net(x[near]), y[near], reduction="none")
worst = near[losses.argmax()].reshape(1)
found = lens.influence(x[worst], y[worst], training=training, checkpoints=checkpoints)
print("most harmful:", [index for index, _ in found.ranked(count=5, harmful=True)])
assert wrong in [index for index, _ in found.ranked(count=5, harmful=True)]
found.plot()

# %% [markdown]
# ## Features that work together
#
# A risk in which dose and age multiply, and weight adds its part alone.


# %%
class Risk(nn.Module):
    def forward(self, x):  # age, dose, weight, height
        return 2 * x[:, 0] * x[:, 1] + x[:, 2]


pairs = Lens(Risk(), feature_names=["age", "dose", "weight", "height"]).interactions(
    torch.tensor([[1.0, 3.0, 2.0, 1.0]])
)
print(pairs.to_pandas().round(2))
assert abs(pairs.at("age", "dose") - 6) < 1e-6 and abs(pairs.at("weight", "weight") - 2) < 1e-6
pairs.plot("network")

# %% [markdown]
# ## A concept
#
# Examples show a concept: a bright left half of the picture. A second one is an upper half that is brighter than the
# lower. The classifier was trained on the first only; does it push the score?

# %%
generator = torch.Generator().manual_seed(0)


def pictures(count, half=None):
    made = torch.randn(count, 64, generator=generator)
    if half == "left":
        made.view(-1, 8, 8)[:, :, :4] += 0.7
    if half == "upper":
        made.view(-1, 8, 8)[:, :4] += 0.7
        made.view(-1, 8, 8)[:, 4:] -= 0.7  # as much darker below, so that the left half is as bright as ever
    return made


torch.manual_seed(0)
trained = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 2))
inputs = torch.cat([pictures(300), pictures(300, "left")])
truth = torch.arange(600) // 300
adam = torch.optim.Adam(trained.parameters(), lr=0.01)
for _ in range(60):
    adam.zero_grad()
    nn.functional.cross_entropy(trained(inputs), truth).backward()
    adam.step()
concepts = {"left half": pictures(80, "left"), "upper half": pictures(80, "upper")}
tested = Lens(trained).tcav(pictures(60), concepts, "0", random=pictures(300), target=1)
for name, score in zip(tested.series, tested.values[0].tolist(), strict=True):
    print(f"{name:10}  TCAV {score:.2f}  p {float(tested.checks[f'p of slope {name}']):.3f}")
assert float(tested.checks["p of slope left half"]) < 0.05 < float(tested.checks["p of slope upper half"])
tested.plot()
