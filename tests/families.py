"""A tiny random model of every causal language model of transformers, and what educe says of it.

``python tests/families.py`` tries all and writes ``docs/models.md``; tests try some and hold the
page against them.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import educe
from educe.model.language import LanguageModel
from educe.perturbation.vectors import Vectors

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
CLASSES: dict[str, str] = {
    **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}

# What the fields of configurations that say how large a model is are set to, where there are such.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), 262),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "n_embed"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_size", "lru_width", "projection_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 4),
    "depth": 2,
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("n_inner", "d_ff", "dff", "d_inner", "mlp_hidden_size"), 48),
    **dict.fromkeys(("head_dim", "global_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("rotary_dim",), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 130),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "top_k", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("shared_intermediate_size", "ffn_hidden_size", "expert_ffn_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_head_dim", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "image_size"), 16),
    **dict.fromkeys(("index_n_heads", "num_kv_shared_layers"), 2),
    **dict.fromkeys(("index_head_dim", "index_topk"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "sliding_window", "patch_size"), 8),
    "qk_head_dim": 16,
    "mamba_d_ssm": 64,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
# Those that are set although the default is none: it stands for a number that others need.
UNSAID = {
    *("head_dim", "num_key_value_heads", "bos_token_id", "pad_token_id", "eos_token_id"),
    *("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group", "n_shared_experts"),
}

# What else a configuration needs to be small, or to be one of a decoder.
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
SHARING = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
ROTATED = {"rope_parameters": SECTIONS}
BESIDES: dict[str, dict[str, Any]] = {
    "qwen2_vl_text": ROTATED,
    "qwen2_5_vl_text": ROTATED,
    "qwen2_5_omni_text": ROTATED,
    "glm4v_text": ROTATED,
    "glm_ocr_text": ROTATED,
    "paddleocr_vl_text": ROTATED,
    "hunyuan_vl_text": ROTATED,
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text", "gemma3n_text"), SHARING),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4},
    "xlm": {"emb_dim": 32, "n_words": 262},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0},
    "mpt": {"attn_config": {"alibi": True}},
    "zamba2": {"hybrid_layer_ids": [1, 3], "layers_block_type": ["mamba", "hybrid"] * 2},
}


def small(kind: type) -> Any:
    """Return a tiny configuration of a kind, its parts tiny too."""
    base = kind()
    known = {field.name for field in dataclasses.fields(kind)} | set(base.to_dict())
    fixed = {name for name in known if isinstance(getattr(kind, name, None), property)}
    stored = vars(base)
    given = {
        name: size
        for name, size in SIZES.items()
        if name in known - fixed
        and (name in UNSAID or isinstance(stored.get(name), int | float | str))
    }
    if "kv_lora_rank" in given:  # latent attention has as many keys as queries
        given["num_key_value_heads"] = 4
    for part in kind.sub_configs:
        if dataclasses.is_dataclass(stored.get(part)):
            given[part] = small(type(stored[part])).to_dict()
    if stored.get("layer_types") and "layer_types" not in fixed:
        given["layer_types"] = (list(dict.fromkeys(stored["layer_types"])) * 4)[:4]
    return kind(**(given | BESIDES.get(kind.model_type, {})))


def model_of(family: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """Return a random decoder, with weights so large that its blocks matter."""
    config = small(CONFIG_MAPPING[family])
    kind = getattr(transformers, CLASSES[family])
    if not isinstance(config, kind.config_class):
        config = config.get_text_config(decoder=True)
    if family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config.is_decoder = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind._from_config(config).to(dtype)
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "embed" not in name and "wte" not in name:
                weight.data *= 10
    return model.eval()


class Numbers:
    """A tokenizer as far as generation needs one: it writes token numbers down."""

    pad_token_id, eos_token_id, all_special_ids = 1, None, (0, 1, 2)

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(number) for number in text.split()]}

    def decode(self, ids: Any, **options: Any) -> str:
        return " ".join(str(int(token)) for token in ids)


def try_out(hf: Any, name: str) -> None:
    """Load a model, run its slice against the model, write in a batch and alone.

    Raises:
        EduceError: Loading refuses it.
        AssertionError: The slice or a batch says something else than the model.
    """
    lm = LanguageModel(hf, Numbers(), name=name)
    lengths = (5, 9)
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 250, (n,), generator=draw).tolist() for n in lengths]
    batch = lm.pad(rows)
    part = educe.Slice(lm, batch, source=1, target=lm.depth - 1)
    vectors = torch.randn(2, lm.width, generator=draw) * part.start.float().std().cpu()
    shift = part.effect(vectors).double()
    for vector, came in zip(vectors, shift, strict=True):
        expected = _effect(lm, batch, vector)
        assert (came - expected).norm() <= 1e-3 * expected.norm(), f"the slice of {name} is off"
    alone = [_written(lm, lm.pad([row]), vectors)[0] for row in rows]
    together = _written(lm, batch, vectors)
    assert together == alone, f"a batch of {name} writes something else"


@torch.no_grad()
def _effect(lm: LanguageModel, batch: Any, vector: torch.Tensor) -> torch.Tensor:
    """Return the change of the last block's stream by the model's own calls, a prompt at a time."""
    changes = []
    for ids, length in zip(batch.ids, batch.lengths, strict=True):
        given, ends = ids[None, -length:], []
        for added in (0 * vector, vector):
            with (
                lm.adding(1, lambda x, v=added: v.to(x).expand_as(x)),
                lm.watching([lm.depth - 1]) as streams,
            ):
                lm.hf(input_ids=given)
            ends.append(streams[lm.depth - 1][0, -3:].double().mean(0))
        changes.append(ends[1] - ends[0])
    return torch.stack(changes).mean(0)


def _written(lm: LanguageModel, batch: Any, vectors: torch.Tensor) -> list[list[tuple[int, ...]]]:
    """Return what is written for each prompt, by each perturbation."""
    kind = Vectors(1, lm.width)
    rows = educe.rows_of(len(vectors), len(batch))
    done = [
        completion
        for some in educe.generate(lm, batch, rows, vectors, kind=kind, max_new_tokens=6)
        for completion in some
    ]
    done.sort(key=lambda completion: completion.row)
    return [[c.tokens for c in done if c.row.prompt == at] for at in range(len(batch))]


def verdict(family: str) -> str:
    """Return ``proven``, the sentence of refusal, or why there is no tiny model to try."""
    try:
        hf = model_of(family)
        with torch.no_grad():
            hf(input_ids=torch.arange(3, 9)[None])
    except Exception as error:
        return f"not tried: its tiny model does not run on text ({type(error).__name__})"
    try:
        try_out(hf, family)
    except educe.EduceError as error:
        return f"refused: {error}"
    except AssertionError as error:
        return f"wrong: {error}"
    return "proven"


def row(family: str, said: str) -> str:
    """Return the line of the page that tells of one architecture."""
    said = re.sub(r", by \S+ of how they vary", "", said).replace("|", "/")
    return f"| `{family}` | {CLASSES[family]} | {said} |\n"


def page(said: dict[str, str]) -> str:
    """Return the page that tells of all."""
    proven = sum(verdict == "proven" for verdict in said.values())
    rows = "".join(row(family, said[family]) for family in sorted(said))
    return HEAD.format(proven=proven, version=transformers.__version__) + rows


HEAD = """# Models

{proven} architectures of transformers {version} are proven, each on a tiny random model in
float32 on a CPU. `python tests/families.py` tries all of them and writes this page; the tests
compare some of its lines with a trial.

*Proven* means three things:

- **Loading.** educe's forward, left padding, a batch and a cache give the logits of the model's own
  plain call; later tokens change no earlier logit; adding `v` after a block moves the input of
  the next one by exactly `v`, and moves the logits. The tolerance is 16 roundings of the
  floating-point type of the logits, and at least 1e-3, as a share of how the logits vary at a
  position. In float32 and float64 the worst position counts. In half precision the median one
  counts, since a rounding there can send a token to another expert.
- **The slice.** The effect of a vector in the slice is its effect in the model's own calls.
- **Generation.** A perturbed model writes the same texts in a batch as for each prompt alone.

The proof of loading runs at every loading, on the model itself. *Not tried* means that the script
has no tiny model of the architecture that runs on text: some need an image, others need sizes that
the script does not know.

- Models that read images or sound run on text.
- The last blocks of Gemma 4 take keys and values from blocks below. Vectors have to be added
  below those: a higher source is refused, and the message names the highest possible one.
- Decoders that count positions in their own way (the RoBERTa family) are refused, and so are
  models that read later tokens (BERT that was not made as a decoder, PaliGemma, XLNet).
- A model needs at least two blocks: a source and a target.
- A model that `torch.compile` returned is unwrapped; a model with compiled parts is refused.
- Encoder-decoders, models without a language-model head and classifiers are refused by class.

| model type | class | outcome |
|---|---|---|
"""


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    said = {}
    for family in sys.argv[1:] or sorted(CLASSES):
        said[family] = verdict(family)
        print(row(family, said[family]), end="", flush=True)
    if len(said) == len(CLASSES):
        PAGE.write_text(page(said), encoding="utf-8")


if __name__ == "__main__":
    main()
