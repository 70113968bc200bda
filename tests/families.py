"""Architecture families of `transformers`, tiny and with random weights: what the engine has never been told about."""

import functools

import torch

from tests.cases import perturb

VISION = {"num_labels": 3, "image_size": 32}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 3}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PATCHES = {**BLOCKS, **VISION, "patch_size": 8}
WORDS = {**BLOCKS, "vocab_size": 64}
GROUPED = {**WORDS, "num_key_value_heads": 2}
WINDOWS = {"patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, **VISION}
SOUND = {
    **BLOCKS, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 10, "num_labels": 3,
}  # fmt: skip
SEQ2SEQ = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
}  # fmt: skip
MOE = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "max_relative_positions": 16,
}
MOBILE = {"depth_multiplier": 0.25, "num_labels": 3}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
FOCAL = {"embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32], "focal_levels": [2, 2], "focal_windows": [3, 3]}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
XLNET = {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
DEEPSEEK = {
    **WORDS, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1,
}  # fmt: skip
LEVIT = {"hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}


def picture(side=32):
    return {"pixel_values": torch.randn(2, 3, side, side)}


def words():
    return {"input_ids": torch.randint(3, 60, (2, 8))}


def two_texts():
    return {**words(), "decoder_input_ids": torch.randint(3, 60, (2, 4))}


def sound():
    return {"input_values": torch.randn(2, 600)}


def text_embedding(output):
    return output.text_embeds[:, 1]


IMAGE, TEXT, NEXT = "ForImageClassification", "ForSequenceClassification", "ForCausalLM"

# name -> (model class, configuration class, configuration, input, target)
FAMILIES = {
    "resnet": ("ResNet" + IMAGE, "ResNetConfig", {**STAGES, "embedding_size": 8}, picture, 1),
    "regnet": ("RegNet" + IMAGE, "RegNetConfig", {**STAGES, "embedding_size": 8, "groups_width": 4}, picture, 1),
    "mobilenet_v1": ("MobileNetV1" + IMAGE, "MobileNetV1Config", MOBILE, picture, 1),
    "mobilenet_v2": ("MobileNetV2" + IMAGE, "MobileNetV2Config", MOBILE, picture, 1),
    "vit": ("ViT" + IMAGE, "ViTConfig", PATCHES, picture, 1),
    "deit": ("DeiT" + IMAGE, "DeiTConfig", PATCHES, picture, 1),
    "dinov2": ("Dinov2" + IMAGE, "Dinov2Config", PATCHES, picture, 1),
    "beit": ("Beit" + IMAGE, "BeitConfig", {**PATCHES, "use_relative_position_bias": True}, picture, 1),
    "swin": ("Swin" + IMAGE, "SwinConfig", WINDOWS, picture, 1),
    "swinv2": ("Swinv2" + IMAGE, "Swinv2Config", WINDOWS, picture, 1),
    "convnext": ("ConvNext" + IMAGE, "ConvNextConfig", STAGES, picture, 1),
    "convnextv2": ("ConvNextV2" + IMAGE, "ConvNextV2Config", STAGES, picture, 1),
    "poolformer": ("PoolFormer" + IMAGE, "PoolFormerConfig", STAGES, picture, 1),
    "segformer": ("Segformer" + IMAGE, "SegformerConfig", {**STAGES, "num_attention_heads": [1, 2, 2, 2]}, picture, 1),
    "levit": ("Levit" + IMAGE, "LevitConfig", {**LEVIT, "image_size": 64, "num_labels": 3}, lambda: picture(64), 1),
    "focalnet": ("FocalNet" + IMAGE, "FocalNetConfig", {**VISION, **FOCAL}, picture, 1),
    "bert": ("Bert" + TEXT, "BertConfig", WORDS, words, 1),
    "roberta": ("Roberta" + TEXT, "RobertaConfig", WORDS, words, 1),
    "electra": ("Electra" + TEXT, "ElectraConfig", {**WORDS, "embedding_size": 16}, words, 1),
    "albert": ("Albert" + TEXT, "AlbertConfig", {**WORDS, "embedding_size": 16}, words, 1),
    "mpnet": ("MPNet" + TEXT, "MPNetConfig", WORDS, words, 1),
    "deberta": ("DebertaV2" + TEXT, "DebertaV2Config", {**WORDS, **DEBERTA}, words, 1),
    "distilbert": (
        "DistilBert" + TEXT, "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, words, 1,
    ),
    "funnel": (
        "Funnel" + TEXT, "FunnelConfig",
        {"vocab_size": 64, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}, words, 1,
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, words, (-1, 5)),
    "llama": ("Llama" + NEXT, "LlamaConfig", GROUPED, words, (-1, 5)),
    "qwen2": ("Qwen2" + NEXT, "Qwen2Config", GROUPED, words, (-1, 5)),
    "qwen3": ("Qwen3" + NEXT, "Qwen3Config", {**GROUPED, "head_dim": 8}, words, (-1, 5)),
    "gemma2": ("Gemma2" + NEXT, "Gemma2Config", {**GROUPED, "head_dim": 8}, words, (-1, 5)),
    "phi": ("Phi" + NEXT, "PhiConfig", WORDS, words, (-1, 5)),
    "opt": (
        "OPT" + NEXT, "OPTConfig",
        {**WORDS, "ffn_dim": 48, "word_embed_proj_dim": 32}, words, (-1, 5),
    ),
    "falcon": ("Falcon" + NEXT, "FalconConfig", WORDS, words, (-1, 5)),
    "gpt_neox": ("GPTNeoX" + NEXT, "GPTNeoXConfig", WORDS, words, (-1, 5)),
    "mixtral": ("Mixtral" + NEXT, "MixtralConfig", {**GROUPED, "num_local_experts": 4}, words, (-1, 5)),
    "qwen2_moe": ("Qwen2Moe" + NEXT, "Qwen2MoeConfig", {**GROUPED, **MOE}, words, (-1, 5)),
    "mamba": ("Mamba" + NEXT, "MambaConfig", MAMBA, words, (-1, 5)),
    "mamba2": (
        "Mamba2" + NEXT, "Mamba2Config",
        {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}, words, (-1, 5),
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", SEQ2SEQ, two_texts, (-1, 5)),
    "t5_gated": (
        "T5ForConditionalGeneration", "T5Config", {**SEQ2SEQ, "feed_forward_proj": "gated-gelu"}, two_texts, (-1, 5),
    ),
    "xlnet": ("XLNet" + TEXT, "XLNetConfig", {**XLNET, "num_labels": 3}, words, 1),
    "roformer": ("RoFormer" + TEXT, "RoFormerConfig", WORDS, words, 1),
    "clip_text": (
        "CLIPTextModelWithProjection", "CLIPTextConfig", {**WORDS, "projection_dim": 3}, words, text_embedding,
    ),
    "dinov2_registers": ("Dinov2WithRegisters" + IMAGE, "Dinov2WithRegistersConfig", PATCHES, picture, 1),
    "siglip": ("Siglip" + IMAGE, "SiglipConfig", {"vision_config": PATCHES, "num_labels": 3}, picture, 1),
    "gptj": ("GPTJ" + NEXT, "GPTJConfig", {**GPT2, "rotary_dim": 4}, words, (-1, 5)),
    "olmo2": ("Olmo2" + NEXT, "Olmo2Config", GROUPED, words, (-1, 5)),
    "stablelm": ("StableLm" + NEXT, "StableLmConfig", GROUPED, words, (-1, 5)),
    "deepseek_v3": ("DeepseekV3" + NEXT, "DeepseekV3Config", DEEPSEEK, words, (-1, 5)),
    "whisper": (
        "WhisperForAudioClassification", "WhisperConfig",
        {**BART, "num_mel_bins": 8, "max_source_positions": 16, "num_labels": 3},
        lambda: {"input_features": torch.randn(2, 8, 32)}, 1,
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART, two_texts, (-1, 5)),
    "wav2vec2": ("Wav2Vec2" + TEXT, "Wav2Vec2Config", SOUND, sound, 1),
    "hubert": ("Hubert" + TEXT, "HubertConfig", SOUND, sound, 1),
    "timesformer": (
        "TimesformerForVideoClassification", "TimesformerConfig", {**PATCHES, "num_frames": 2},
        lambda: {"pixel_values": torch.randn(2, 2, 3, 32, 32)}, 1,
    ),
    "perceiver": (
        "Perceiver" + TEXT, "PerceiverConfig",
        {
            "num_latents": 4, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
            "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "vocab_size": 64,
            "max_position_embeddings": 16, "num_labels": 3,
        },
        lambda: {"inputs": torch.randint(3, 60, (2, 8))}, 1,
    ),
    "patchtst": (
        "PatchTSTForClassification", "PatchTSTConfig",
        {
            "num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "num_targets": 3,
        },
        lambda: {"past_values": torch.randn(2, 32, 2)}, 1,
    ),
    "bloom": (
        "Bloom" + NEXT, "BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, words, (-1, 5),
    ),
    "sew_d": (
        "SEWDForSequenceClassification", "SEWDConfig",
        {**SOUND, "squeeze_factor": 1, "position_buckets": 8, "max_position_embeddings": 32}, sound, 1,
    ),
}  # fmt: skip


@functools.cache
def family(name):
    """The model in eval mode, an input of two samples, and a target; seeded."""
    import transformers

    model_class, config_class, config, make_input, target = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**config))
        return perturb(model, seed=1).eval(), make_input(), target
