"""Tiny models with random weights, in a hub cache of their own, under the names that PEFT's tests ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

REVISION = "0" * 40
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
BERT: dict[str, Any] = {**WIDE, "intermediate_size": 64, "max_position_embeddings": 512}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2, "pad_token_id": 0}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024, "n_positions": 512}
OPT: dict[str, Any] = {**WIDE, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 64}
OPT |= {"max_position_embeddings": 512, "num_hidden_layers": 5}
T5: dict[str, Any] = {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
BART: dict[str, Any] = {"vocab_size": 1024, "d_model": 32, "bos_token_id": 0, "eos_token_id": 2}
BART |= dict.fromkeys(("encoder_layers", "decoder_layers"), 2) | {"decoder_start_token_id": 2}
BART |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
BART |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64)

# name on the hub → transformers' model class, and its configuration
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", OPT),
    "peft-internal-testing/opt-125m": (
        "OPTForCausalLM",
        {**OPT, "hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 12, "num_attention_heads": 4},
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    "peft-internal-testing/tiny-random-BloomForCausalLM": ("BloomForCausalLM", {**GPT, "n_layer": 5}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", LLAMA),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", LLAMA),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", LLAMA),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", LLAMA),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", LLAMA),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**LLAMA, "head_dim": 8}),
    "trl-internal-testing/tiny-GptOssForCausalLM": (
        "GptOssForCausalLM",
        {**LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "trl-internal-testing/tiny-Llama4ForCausalLM": (
        "Llama4ForCausalLM",
        {**LLAMA, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 4, "interleave_moe_layer_step": 1},
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", BERT),
    "hf-internal-testing/tiny-random-BertModel": ("BertModel", BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", BERT),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", BERT),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", BERT),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": ("RobertaForSequenceClassification", BERT),
    **dict.fromkeys(
        (
            "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated",
            "peft-internal-testing/tiny-random-T5ForConditionalGeneration",
            "peft-internal-testing/tiny-random-t5",
        ),
        ("T5ForConditionalGeneration", T5),
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", BART),
}


def tokenizer() -> Any:
    """A token a byte, after four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokens = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def make_models(home: Path) -> None:
    """Writes them all; `home` is for HF_HOME."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name, (kind, settings) in MODELS.items():
        torch.manual_seed(0)
        model_class = getattr(transformers, kind)
        model = model_class(model_class.config_class(**settings))
        folder = home / "hub" / f"models--{name.replace('/', '--')}"
        model.save_pretrained(folder / "snapshots" / REVISION)
        tokenizer().save_pretrained(folder / "snapshots" / REVISION)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(REVISION, encoding="utf-8")
