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
# # Is the map honest?
#
# A colorful map always looks like an answer. Does it show the model, or only the picture? Does it hold all of the
# score, or a trace of it? Would a picture that is hardly different get the same map? And does it expose a model that
# cheats?
#
# Six tests, each with a number at the end: the ledger, completeness, random layers, stability, insertion and deletion
# compared with controls, and a planted shortcut.

# %%
from functools import partial

import torch

import layerlens
from layerlens import Lens, faithfulness, plotting, relevance
from layerlens.analyzers.saliency import gradient, smooth_grad
from layerlens.demo import efficientnet, embedded

# %% [markdown]
# ## How much of the score is in the picture?
#
# EfficientNet-Lite0 says *Egyptian cat* with a score of about 10. A map of pixels divides up what arrived at the
# pixels. The ledger of relevance propagation also records what did not.

# %%
net = Lens(efficientnet.load_efficientnet(), class_names=efficientnet.class_names())
cat = efficientnet.preprocess(efficientnet.photographs()["chelsea"])
booked = net.relevance(cat, target="Egyptian cat", rules="epsilon")
ledger = booked.ledger
print(f"score {float(ledger.score):.2f} = pixels {float(ledger.inputs):.2f} + constants {float(ledger.additive):.2f}")
print(f"not explained: {float(ledger.relative.max()):.0e} of the largest amount")

# %%
booked.plot(kind="flow")

# %% [markdown]
# The pixels hold -0.2 of 10.5. All the rest comes from numbers that are the same for every picture, the biases and the
# means of batch norm, which took it on the way. The map below is a map of that trace:

# %%
booked.plot()

# %% [markdown]
# It may well be right about where, but says nothing about how much. On the small digit network the same rule gives:

# %%
images, labels, masks = embedded.sample_pictures()
digits = Lens(embedded.load_digit_net(), class_names=embedded.CLASS_NAMES)
small = digits.relevance(images, target=labels, rules="epsilon").ledger
for row in range(3):
    pixels, constants = float(small.inputs[row]), float(small.additive[row])
    print(f"{embedded.CLASS_NAMES[row]:6} score {float(small.score[row]):6.2f} = {pixels:6.2f} + {constants:6.2f}")

# %% [markdown]
# ## Does it add up?
#
# Integrated gradients promise that the map sums to the difference between the scores of the input and of the baseline.
# They are computed in steps, and too few steps break the promise. The gap is always measured, relative to that
# difference.

# %%
gaps = {}
for steps in (4, 16, 64):
    found = digits.saliency(images, target=labels, method="integrated_gradients", steps=steps)
    gaps[steps] = found.checks["completeness gap"]
    print(f"{steps:3} steps: mean gap {float(gaps[steps].mean()):.3f}, largest {float(gaps[steps].max()):.3f}")

# %% [markdown]
# ## Does it look at the model?
#
# Randomize the layers, one after the other, from the output down (Adebayo et al. 2018). A map of the model must
# change; its correlation with the first map should fall to 0. A map that stays is a map of the picture.

# %%
left = {}
methods = {"gradient": "gradient", "guided_backprop": "guided_backprop", "relevance, z+": relevance}
methods["relevance, epsilon"] = partial(relevance, rules="epsilon")
for name, method in methods.items():
    left[name] = layerlens.cascading_randomization(digits.model, images[:8], method, target=labels[:8])
    first, last = left[name].values[0].tolist(), left[name].values[-1].tolist()
    print(f"{name:18} with the head random {first[0]:5.2f}, with all layers random {last[0]:5.2f}", end="")
    print(f"; without the signs {first[1]:.2f}, {last[1]:.2f}")

# %%
left["gradient"].plot(title="Gradient: similarity to the map of the trained model")

# %%
left["relevance, z+"].plot(title="Relevance by z+: similarity to the map of the trained model")

# %% [markdown]
# The signs of a gradient are gone as soon as the head is random. Its magnitudes stay similar for longer, because they
# are large where there is ink. A map of guided backprop stays, signs and all. Relevance keeps its magnitudes nearly
# unchanged while only the head is random, and mostly to the end: it follows the strokes whatever the network makes of
# them, and only its signs change with the score. Such a map may be right about where, as the next tests confirm, and
# still not explain why it is this class. Ask for that with a contrast, `target=contrast("seven", "one")`, and look at
# the signs.
#
# ## Is it stable?
#
# Change each pixel by at most 2 % of the range and explain again. The number is the largest change of the map in five
# tries, relative to the map.

# %%
steady = {}
for name, explain in {"gradient": gradient, "smooth_grad": smooth_grad, "relevance": relevance}.items():
    moved = faithfulness.max_sensitivity(digits.model, images[:4], explain, target=labels[:4], samples=5)
    steady[name] = float(moved.mean())
    print(f"{name:12} {steady[name]:.2f}")

# %% [markdown]
# ## Does the model agree?
#
# Insert the pixels into a blurred picture in the order of the map, the most important first, and watch the probability
# of the digit; or delete them in that order. For comparison, the same in a random order, and in the order of the edges
# of the picture: maps that do not use the model.

# %%
chance = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
down, across = torch.gradient(images[:, 0], dim=(1, 2))
orders = {"relevance": digits.relevance(images, target=labels), "edges": torch.hypot(down, across), "random": chance}
put = [
    faithfulness.insertion(digits.model, images, order, target=labels, fill="blur", steps=20)
    for order in orders.values()
]
taken = [
    faithfulness.deletion(digits.model, images, order, target=labels, fill="blur", steps=20)
    for order in orders.values()
]
for name, one, other in zip(orders, put, taken, strict=True):
    print(f"{name:10} area under insertion {float(one.area.mean()):.2f}, under deletion {float(other.area.mean()):.2f}")

# %%
plotting.faithfulness_curve(put, labels=list(orders), title="Insertion: early is better")

# %%
plotting.faithfulness_curve(taken, labels=list(orders), title="Deletion: early is better")

# %% [markdown]
# ## Does it expose a cheat?
#
# A small network is trained on pictures of bars. In the corner is a mark, a cross or a square, and only the mark
# determines the class. On a test set from the same source the network looks perfect. Do the maps show what it does?

# %%
task = faithfulness.planted_watermark(batch=32)
cheat = Lens(task.model, class_names=["square", "cross"])
with torch.no_grad():
    right = float((task.model(task.x).argmax(1) == task.target).float().mean())
    hidden = task.x.clone()
    hidden[task.masks.unsqueeze(1)] = float(task.x.mean())
    without = float((task.model(hidden).argmax(1) == task.target).float().mean())
on_mark = task.score(relevance)
print(f"right: {right:.2f}, with the mark painted over: {without:.2f}")
print(f"share of the relevance on the mark: {float(on_mark['relevance_mass'].mean()):.2f}", end=", ")
print(f"of the pixels: {float(task.masks.double().mean()):.2f}")

# %%
cheat.relevance(task.x[:6], target=task.target[:6]).plot("grid", title="What a cheating network looks at")

# %% [markdown]
# The maps point at the mark, and painting it over proves them right. That is the right order: a map gives an idea, and
# a test that changes the input shows whether it is true.
#
# The checks below hold for every run of this page.

# %%
assert abs(float(ledger.inputs)) < 0.5 < 10 < float(ledger.additive) and float(ledger.relative.max()) < 1e-5
assert float(gaps[64].max()) < 0.02 and float(gaps[64].mean()) < float(gaps[4].mean())
ends = {name: one.values[[0, -1]].tolist() for name, one in left.items()}
assert abs(ends["gradient"][0][0]) < 0.2 and ends["gradient"][1][1] < 0.5 < 0.8 < ends["guided_backprop"][0][0]
assert ends["relevance, z+"][0][1] > 0.9 and ends["relevance, z+"][1][1] > 0.6
assert steady["smooth_grad"] < steady["gradient"] < 0.5
areas = [[float(one.area.mean()) for one in curves] for curves in (put, taken)]
assert areas[0][0] > areas[0][1] > areas[0][2] and areas[1][0] < areas[1][1] < areas[1][2]
assert right == 1 and without < 0.75 and float(on_mark["relevance_mass"].mean()) > 0.5
