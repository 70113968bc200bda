"""A byte-level tokenizer with a chat template, and random language models for it."""

import functools

import torch

CORPUS = ["the cat sat on a mat and then it ran to the old house", "words of plain text in the town", "love is a lot"]
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@functools.cache
def tokenizer():
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    inner = tk.Tokenizer(tk.models.BPE())
    inner.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tk.decoders.ByteLevel()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=290,
        initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
    )
    inner.train_from_iterator(CORPUS, trainer)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **names)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().double().eval()


@functools.cache
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = LlamaConfig(
        **sizes, vocab_size=290, num_key_value_heads=2, initializer_range=0.4, bos_token_id=1, eos_token_id=2
    )
    return seeded(lambda: LlamaForCausalLM(config))


@functools.cache
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 290, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, decoder_start_token_id=3, eos_token_id=2, pad_token_id=3)
    return seeded(lambda: T5ForConditionalGeneration(config))


def log_p(prompt, answer_ids, *, model=None, special=True):
    """Log-probability of each token of an answer after a text, without layerlens: one run, unpadded."""
    model, own = model or llama(), tokenizer()
    ids = own(prompt, add_special_tokens=special)["input_ids"] or [own.bos_token_id]
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = model.config.decoder_start_token_id
            out = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[start, *answer_ids[:-1]]]))
            logits = out.logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*ids, *answer_ids]])).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1)[range(len(answer_ids)), answer_ids]
