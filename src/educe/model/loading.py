"""Loading: a `LanguageModel` from a name, a folder, a file or a loaded pair.

What can be said is what transformers can be told; an adapter of PEFT stays beside the weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from educe.errors import ModelError, as_model_error
from educe.model import complete, converted, embedded, quantized
from educe.model.language import LanguageModel
from educe.model.pair import auto_class, plain_model, plain_tokenizer
from educe.model.quiet import quiet
from educe.options import ModelOptions

#: Where the adapters of the organisms are that come with the package, by name.
ORGANISMS = Path(__file__).parents[1] / "organisms" / "data"


def load(
    model: str | Path | tuple[Any, Any] = "embedded",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    adapter: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        model: A Hub id, a folder, a ``.gguf`` file (converted once, see `educe.model.converted`),
            ``"embedded"``, or a loaded pair ``(model, tokenizer)``.
        device: Where to put it; by default a GPU when there is one. Not with ``device_map``.
        dtype: As in transformers. ``"auto"`` is the checkpoint's own, but float32 on processors
            without bfloat16 instructions, where bfloat16 is 8 to 40 times slower.
        device_map: As in transformers.
        revision: As in transformers.
        attn_implementation: As in transformers.
        quantization_config: As in transformers.
        load_in_4bit: Quantize the weights with bitsandbytes, by its defaults; for other ways, give
            a ``quantization_config``. See `educe.model.quantized`.
        load_in_8bit: Likewise.
        adapter: A folder or Hub id of a PEFT adapter, loaded beside the weights, never merged; or
            the name of an organism that comes with the package.
        trust_remote_code: As in transformers.
        progress: Called with one sentence at each slow step, and with what transformers and PEFT
            warn of; without it, the latter are Python's own warnings.

    Raises:
        ModelError: The model or adapter cannot be found or loaded, weights are missing, not used,
            or no numbers (see `educe.model.complete`), or the model is no stack of blocks.

    Example:
        >>> again = educe.load((lm.hf, lm.tokenizer))
        >>> again.digest == lm.digest
        True
    """
    say = progress or (lambda sentence: None)
    warn = progress or warnings.warn
    device = _device(device) or (None if isinstance(model, tuple) else _default_device())
    quantization_config = quantized.quantization(load_in_4bit, load_in_8bit, quantization_config)
    options = {
        "revision": revision,
        "dtype": dtype,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    how = None
    if isinstance(model, str | Path):
        name = str(model)
        options["dtype"] = _dtype(dtype, device if device_map is None else None)
        how = {"model": name, "adapter": adapter, "trust_remote_code": trust_remote_code} | options
        if not quantization_config:
            del options["quantization_config"]
        elif device_map is None:  # such weights cannot always be moved when they are loaded
            options["device_map"] = {"": device}
        place = _place(name, say)
        if revision is not None and (name == "embedded" or Path(place).exists()):
            raise ModelError(f"{name} has no revision {revision}: only models on the Hub have some")
        options["trust_remote_code"] = trust_remote_code
        hf, tokenizer = _read(name, place, options, warn)
    else:
        hf, tokenizer = _pair(model, options)
        name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
    quantized.make_plain(hf)
    if device is not None and device_map is None and quantization_config is None:
        with as_model_error(f"{name} on {device}"):
            hf = hf.to(device)
    if adapter is not None:
        hf = _adapted(hf, str(adapter), embedded.NAME if name == "embedded" else name, warn)
    complete.check_numbers(name if adapter is None else f"{name} with {adapter}", hf)
    lm = LanguageModel(
        hf,
        tokenizer,
        name=name,
        revision=revision,
        adapter=str(adapter) if adapter is not None else None,
        how=how,
    )
    if hasattr(hf, "disable_adapter") and _idle(lm):
        what = adapter or f"in {name}"
        warn(f"the adapter {what} changes no logit: the model is as it is without it")
    return lm


def configuration(options: ModelOptions) -> Any:
    """Return the configuration of a model that need not be loaded for it.

    Raises:
        ModelError: There is no such model.
    """
    from transformers import AutoConfig

    about = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    with as_model_error(options.model):
        return AutoConfig.from_pretrained(_place(options.model, lambda sentence: None), **about)


def _pair(model: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return a loaded model and its tokenizer; how they are loaded is decided already."""
    if not isinstance(model, tuple) or len(model) != 2:
        raise ModelError(
            f"{type(model).__name__} is no model: give a name, a folder, a file, or a pair "
            "(model, tokenizer)"
        )
    for option, value in options.items():
        if value is not None and (option, value) != ("dtype", "auto"):
            raise ModelError(f"a model that is loaded has its {option}: leave {option} out")
    return plain_model(model[0]), plain_tokenizer(model[1])


def _place(name: str, say: Callable[[str], None]) -> str:
    """Return the folder or Hub id of a model."""
    if name == "embedded":
        return str(embedded.folder(progress=say))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise ModelError(f"there is no file {name}")
        return str(converted.from_gguf(Path(name), say))
    if name.startswith(("/", ".", "~")) and not Path(name).exists():
        raise ModelError(f"there is no file or folder {name}")
    return name


def _read(
    name: str, place: str, options: Mapping[str, Any], warn: Callable[[str], None]
) -> tuple[Any, Any]:
    """Return a model, complete, and its tokenizer."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    about = {key: options[key] for key in ("revision", "trust_remote_code")}
    with quiet() as remarks, as_model_error(name):
        tokenizer = AutoTokenizer.from_pretrained(place, **about)
        # Weights of another shape are an error below, which names them.
        hf, info = auto_class(name, AutoConfig.from_pretrained(place, **about)).from_pretrained(
            place, **options, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ModelError(f"{name} is an adapter: load its base model, and it as the adapter")
    complete.check_checkpoint(name, info)
    complete.check_stored(name, _stored(place, options["revision"]), hf)
    if _found(place, GENERATION_CONFIG_NAME, options["revision"]):  # a broken one is passed over
        with as_model_error(name):
            GenerationConfig.from_pretrained(place, revision=options["revision"])
    for remark in remarks:
        warn(f"{name}: {remark}")
    return hf, tokenizer


def _stored(place: str, revision: str | None) -> dict[str, Path]:
    """Return the files of weights of a checkpoint in a folder, or as the Hub's cache has them."""
    names = [complete.WHOLE, complete.INDEX]
    if index := _found(place, complete.INDEX, revision):
        names += sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    return {file: path for file in names if (path := _found(place, file, revision))}


def _found(place: str, file: str, revision: str | None) -> Path | None:
    """Return a file of a checkpoint, if it has such a file."""
    from transformers.utils import cached_file

    there = cached_file(place, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(there) if there else None


def _adapted(hf: Any, adapter: str, base: str, warn: Callable[[str], None]) -> Any:
    """Return a model of a name with an adapter, complete, beside its weights."""
    from peft import PeftConfig, PeftModel

    place = _shipped(adapter)
    with quiet() as remarks, as_model_error(f"the adapter {adapter}"):
        kind = PeftConfig.from_pretrained(place)
        if kind.is_prompt_learning:
            raise ModelError(
                f"the adapter {adapter} puts tokens of its own before each prompt "
                f"({kind.peft_type.value}): only adapters that change weights can be audited"
            )
        hf = PeftModel.from_pretrained(hf, place)
        complete.check_adapter(place, hf)
    for remark in remarks:
        warn(f"the adapter {adapter}: {remark}")
    own = hf.peft_config[hf.active_adapter].base_model_name_or_path
    if own and Path(own).name != Path(base).name:
        warn(f"the adapter {adapter} was made for {own}: it fits {base}, if that is another model")
    return hf


def _shipped(adapter: str) -> str:
    """Return where an adapter is: by its name when it comes with the package, else as given.

    Raises:
        ModelError: The name means another adapter as well.
    """
    place, here = ORGANISMS / adapter, Path(adapter)
    config = "adapter_config.json"
    if adapter != place.name or not (place / config).exists():
        return adapter
    if (here / config).exists() and not here.samefile(place):
        raise ModelError(
            f"{adapter} is an organism that comes with the package, and an adapter in this folder: "
            f"write ./{adapter} for the latter, or name the former from another folder"
        )
    return str(place)


@torch.no_grad()
def _idle(lm: LanguageModel) -> bool:
    """Return whether an adapter does nothing to a few tokens."""
    batch = lm.pad([list(range(5, 21))], ("",))
    adapted = lm.forward(batch.ids, batch.mask, last=0)
    with quiet(), lm.hf.disable_adapter():
        return torch.equal(adapted, lm.forward(batch.ids, batch.mask, last=0))


def _device(device: str | torch.device | None) -> torch.device | None:
    """Read a device.

    Raises:
        ModelError: There is none of that name.
    """
    try:
        return None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"there is no device {device}: give cpu, cuda, cuda:1 or mps") from error


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def fast_dtype() -> str:
    """Return ``bfloat16`` where a GPU or this processor computes with it, else ``auto``.

    The embedded model comes in 32 bits, which take more than twice the time.
    """
    there = _default_device() != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if there else "auto"


def _dtype(dtype: str | torch.dtype, device: str | torch.device | None) -> str | torch.dtype:
    if dtype != "auto":
        known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(known, torch.dtype) or not known.is_floating_point:
            raise ModelError(f"dtype {dtype}: give auto, float32, bfloat16 or float16")
    on_cpu = device is not None and torch.device(device).type == "cpu"
    if dtype == "auto" and on_cpu and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return dtype
