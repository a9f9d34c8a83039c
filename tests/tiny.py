"""Tiny random models of many architectures, a byte-level tokenizer, and oracles by brute force.

The oracles know nothing of educe: they run one sequence at a time, without padding or cache, with
hooks on blocks that are found by a path written down here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SIZE = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
FFN = {"intermediate_size": 48}
GROUPED = {"num_key_value_heads": 2}
CONTEXT = {"max_position_embeddings": 128}
TOKENS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}

COMMON = SIZE | FFN | GROUPED | CONTEXT | TOKENS

# Architecture: (configuration class, its arguments). The windows are shorter than the prompts.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", COMMON),
    "mistral": ("MistralConfig", COMMON | {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", COMMON),
    "qwen3": ("Qwen3Config", COMMON | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", COMMON | {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", COMMON | {"head_dim": 8, "sliding_window": 8}),
    "gpt2": (
        "GPT2Config",
        TOKENS | {"vocab_size": 262, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    ),
    "gpt_neox": ("GPTNeoXConfig", SIZE | FFN | CONTEXT | TOKENS),
    "opt": ("OPTConfig", SIZE | CONTEXT | TOKENS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi3": ("Phi3Config", COMMON),
    "falcon": ("FalconConfig", SIZE | TOKENS | {"alibi": False, "multi_query": True}),
    "falcon_alibi": ("FalconConfig", SIZE | TOKENS | {"alibi": True, "multi_query": False}),
    "olmo2": ("Olmo2Config", COMMON),
    "mixtral": ("MixtralConfig", COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "GptOssConfig",
        COMMON
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        COMMON
        | {
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "bamba": (
        "BambaConfig",
        COMMON
        | {
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        COMMON | {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
    # Its forward hands ``use_cache`` on without naming it, and caches when it is left out.
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        COMMON
        | {
            "layer_types": ["mamba", "attention"] * 2,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
        },
    ),
    # It takes no position numbers.
    "bloom": (
        "BloomConfig",
        TOKENS | {"vocab_size": 262, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    ),
}

# Architectures whose cache is not the one of transformers: one ignores it, one raises an error.
OWN_CACHE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": (
        "MambaConfig",
        TOKENS | {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 8},
    ),
    "minimax": ("MiniMaxConfig", COMMON | {"num_local_experts": 4, "block_size": 8, "head_dim": 8}),
}

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<bos>", "<eos>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"]


def tokenizer(*, chat: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes; with ``bos`` it puts one before plain text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(letters + SPECIAL)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
    )
    if chat:
        made.chat_template = TEMPLATE
    return made


def hf_model(
    architecture: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """Return a random model, with weights so large that its blocks matter and its text varies."""
    kind, arguments = (ARCHITECTURES | OWN_CACHE)[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**arguments)).to(dtype)
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "embed" not in name and "wte" not in name:
                weight.data *= 10
    return model.eval()


def write_gguf(file: Path, hf: Any) -> None:
    """Write a tiny Llama and its tokenizer as llama.cpp's own converter would."""
    config = hf.config
    out = gguf.GGUFWriter(str(file), "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    tokens = tokenizer().convert_ids_to_tokens(range(config.vocab_size))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list([*tokens[:-1], "ab"])  # a merge is required, and so is what it makes
    out.add_token_merges(["a b"])
    out.add_token_types([1] * 256 + [3] * 5 + [1])
    out.add_bos_token_id(config.bos_token_id)
    out.add_eos_token_id(config.eos_token_id)
    out.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    rotated = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in hf.state_dict().items():
        if heads := rotated.get(name.split(".")[-2]):
            pairs = weight.reshape(heads, 2, -1, weight.shape[1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# Where the blocks are, by model type; "model.layers" for the others.
PATHS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "falcon": "transformer.h",
    "bloom": "transformer.h",
}


def path(hf: Any) -> str:
    """Return the path of a model's list of blocks, from memory rather than by search."""
    return PATHS.get(hf.config.model_type, "model.layers")


def ragged(lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
    """Return random sequences of tokens, none of them special."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=draw).tolist() for n in lengths]


def chosen(positions: str, prompt: int, generated: int = 0) -> Tensor:
    """Return which of the tokens of one unpadded sequence ``positions`` means, ``[tokens]``."""
    at = torch.arange(prompt + generated)
    if positions.startswith("last:"):
        return (at < prompt) & (at >= prompt - int(positions[5:]))
    if positions.startswith("at:"):
        return at == prompt - int(positions[3:])
    return {"all": at >= 0, "prompt": at < prompt, "generated": at >= prompt}[positions]


def run(
    hf: Any,
    ids: Sequence[int],
    *,
    source: int | None = None,
    vector: Tensor | None = None,
    at: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run one sequence, ``vector`` added after block ``source`` at the tokens ``at``.

    Returns the logits ``[tokens, vocabulary]`` and the streams leaving the blocks
    ``[tokens, width]``, differentiable in ``vector``.
    """
    streams: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        if len(streams) == source:
            stream = stream + at[:, None].to(stream) * vector
        streams.append(stream[0])
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handles = [block.register_forward_hook(hook) for block in hf.get_submodule(path(hf))]
    try:
        logits = hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits, streams


@torch.no_grad()
def greedy(
    hf: Any,
    prompt: Sequence[int],
    steps: int,
    *,
    source: int | None = None,
    vector: Tensor | None = None,
    positions: str = "all",
    ends: Collection[int] = (),
) -> list[int]:
    """Write token after token, each from the whole sequence anew."""
    written: list[int] = []
    for _ in range(steps):
        at = chosen(positions, len(prompt), len(written))
        logits, _ = run(hf, [*prompt, *written], source=source, vector=vector, at=at)
        token = int(logits[-1].argmax())
        if token in ends:
            break
        written.append(token)
    return written
