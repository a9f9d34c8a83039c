"""Foreign: perturbations in files that other tools wrote, as a set that any job takes.

    vector.gguf                  a control vector of llama.cpp or repeng
    .safetensors .pt .pth .npz   tensors: [d] or [n, d], added after the layer that is asked for, or
                                 a vector for each of several layers, by number
    a folder                     an adapter of PEFT, or a sparse autoencoder: rows of its decoder
    FILE:3,17,100-131            some rows of a file

Vectors have the length that they have there. Directions of a decoder have none: they are put at
the radii that are asked for. A vector of several layers is one perturbation, beside random ones
with its norm at every layer, of which its control is made. Nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from educe import files
from educe.errors import FileFormatError
from educe.model.language import LanguageModel
from educe.perturbation.joint import Joint
from educe.perturbation.kind import Kind, normed
from educe.perturbation.kinds import Vectors, adapters
from educe.perturbation.origin import Origin
from educe.perturbation.set import PerturbationSet
from educe.plain import read_object

#: Random vectors beside one of several layers.
BESIDE = 63
#: Rows that a range may name.
MOST = 1_000_000
#: Rows of a decoder that are taken without being named.
ROWS = 256
#: What files of sparse autoencoders call a decoder, and whether its columns are the directions.
DECODERS = {"W_dec": False, "decoder.weight": True}
#: Where folders of sparse autoencoders keep it.
SAES = ("sae_weights.safetensors", "sae.safetensors", "ae.pt", "params.npz")


class Read(NamedTuple):
    """What a file holds."""

    rows: Float[Tensor, "n d"]  #: perturbations of one layer; none where it has several
    layers: dict[int, Tensor]  #: or one vector for each of some layers
    layer: int | None = None  #: of the rows, where it is said
    directions: bool = False  #: whether they have no length of their own
    about: Mapping[str, str] = {}  #: what is said of model, revision and positions


def check(given: str) -> None:
    """Make sure that a file can be read, before anything slow begins.

    Raises:
        FileFormatError: It is missing, damaged, or holds something else.
    """
    path, _ = _split(given)
    if _is_ours(path):
        PerturbationSet.load(path)
    elif not (path / "adapter_config.json").is_file():
        _read(path)
    else:
        _lora(path)


def read(given: str, lm: LanguageModel, *, source: float | str, positions: str) -> PerturbationSet:
    """Read perturbations for a model, ours or others'.

    Args:
        given: The file or folder, with the rows that are wanted after a colon.
        lm: The model.
        source: The layer after which vectors are added whose file does not say it.
        positions: Where vectors are added; several layers and adapters act on every token.

    Raises:
        FileFormatError: The file cannot be read, or belongs to another model.
        LayerError: The model has no such layer.
    """
    path, wanted = _split(given)
    if _is_ours(path):
        found = PerturbationSet.load(path)
        return found if wanted is None else found.select(_within(given, wanted, len(found)))
    if (path / "adapter_config.json").is_file():
        return _adapter(path, lm)
    has = _read(path)
    hint = has.about.get("model_hint", "")
    if hint and hint != getattr(lm.unwrapped.config, "model_type", hint):
        ours = lm.unwrapped.config.model_type
        raise FileFormatError(f"{path} is for models of type {hint}, and {lm.name} is a {ours}")
    widths = {v.shape[-1] for v in (*has.layers.values(), has.rows) if v.numel()}
    if widths != {lm.width}:
        raise FileFormatError(
            f"{path} has vectors of width {', '.join(map(str, sorted(widths))) or 'none'}, and "
            f"those of {lm.name} are {lm.width} wide"
        )
    if len(has.rows) == lm.depth > 1 and has.layer is None and not has.directions:
        has = has._replace(layers={i: row for i, row in enumerate(has.rows) if row.any()})
    if len(has.layers) > 1:
        return _joint(path, has, lm)
    rows, layer = has.rows, has.layer
    if has.layers:
        ((layer, vector),) = has.layers.items()
        rows = vector[None]
    if layer is None:
        if isinstance(source, str):
            raise FileFormatError(f"{path} does not say its layer: give --source as a layer")
        layer = source  # type: ignore[assignment]
    if wanted is None and has.directions and len(rows) > ROWS:
        raise FileFormatError(
            f"{path} has {len(rows)} directions: name some, as in {path}:3,17,100-131"
        )
    rows = rows if wanted is None else rows[_within(given, wanted, len(rows))]
    if not rows.norm(dim=1).all():
        raise FileFormatError(f"{path} has a vector of length 0, which does nothing")
    kind = Vectors(lm.layer(layer), lm.width, has.about.get("positions", positions))  # type: ignore[arg-type]
    radius = torch.ones(len(rows)) if has.directions else rows.norm(dim=1)
    return _set(path, kind, normed(rows), radius, lm, has)


def _set(
    path: Path, kind: Kind, directions: Tensor, radius: Tensor, lm: LanguageModel, has: Read | None
) -> PerturbationSet:
    about = has.about if has else {}
    origin = Origin(
        model_id=about.get("model", path.name),
        model_revision=about.get("model_revision", ""),
        adapter="",
        d_model=lm.width,
        n_layers=lm.depth,
        source=kind.before,
        target=kind.last,
        readout="",
        unit=1.0,
        prompts_sha256="",
    )
    config = {"file": path.name, "scaled": not (has and has.directions)}
    return PerturbationSet(kind, directions, radius, origin, "given", 0, config=config)


def _joint(path: Path, has: Read, lm: LanguageModel) -> PerturbationSet:
    """Return a vector of several layers, in a space of it and of random ones."""
    layers = tuple(sorted(lm.layer(layer) for layer in has.layers))
    own = torch.stack([has.layers[layer] for layer in sorted(has.layers)])
    size = own.norm()
    draw = torch.Generator().manual_seed(0)
    beside = normed(torch.randn(BESIDE, *own.shape, generator=draw)) * own.norm(dim=1)[:, None]
    kind = Joint(layers, torch.cat([own[None], beside]) / size)
    return _set(path, kind, torch.eye(1, BESIDE + 1), size[None], lm, has)


def _within(given: str, wanted: list[int], count: int) -> list[int]:
    if max(wanted) >= count:
        raise FileFormatError(f"{given}: there are rows 0 to {count - 1}")
    return wanted


def _split(given: str) -> tuple[Path, list[int] | None]:
    """Return a file, and the rows of it that are named behind a colon."""
    found = re.fullmatch(r"(.+):(\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*)", given)
    try:
        there = Path(given).exists()
    except OSError as error:
        raise FileFormatError(f"cannot read {given[:99]}: {error.strerror}") from error
    if there or not found:
        return Path(given), None
    rows: list[int] = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        some = range(int(first), int(last or first) + 1)
        if not 0 < len(some) <= MOST:
            raise FileFormatError(f"{given}: {part} is no row, and no range of at most {MOST}")
        rows += some
    return Path(found[1]), rows


def _is_ours(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return files.read_tensors(path)[1].get("format") == "educe.perturbations"


# -- what files hold -----------------------------------------------------------------------------


def _read(path: Path) -> Read:
    """Read vectors from a file, or from the folder of a sparse autoencoder."""
    if path.is_dir():
        inside = next((path / name for name in SAES if (path / name).is_file()), None)
        if inside is None:
            raise FileFormatError(f"{path} holds neither an adapter nor a sparse autoencoder")
        path = inside
    if path.suffix == ".gguf":
        return _control_vector(path)
    held = _tensors(path)
    if not isinstance(held, Mapping):
        held = {"": held}
    named = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    for name, columns in DECODERS.items():
        if name in named:
            rows = named[name].T if columns else named[name]
            return Read(rows.float(), {}, _layer_of(path.parent / "cfg.json"), True)
    layers = {name: re.search(r"(?<![^._])(\d{1,9})(?![^._])", name) for name in named}
    if named and all(layers.values()) and all(v.squeeze().ndim == 1 for v in named.values()):
        by = {int(layers[n][1]): v.float().flatten() for n, v in named.items() if v.any()}  # type: ignore[index]
        return Read(torch.zeros(0, 0), by)
    parts = [v.float().reshape(-1, v.shape[-1]) for v in named.values() if v.ndim in (1, 2)]
    if not parts or len({part.shape[1] for part in parts}) > 1:
        raise FileFormatError(f"{path} holds no vectors of one width")
    return Read(torch.cat(parts), {})


def _tensors(path: Path) -> Any:
    """Return the tensors of a file, and nothing that has to be unpickled."""
    if not path.is_file():
        raise FileFormatError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return files.read_tensors(path)[0]
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: torch.from_numpy(held[name]) for name in held.files}
        if path.suffix in (".pt", ".pth", ".bin"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip, of pickle, or of torch's own reader
        raise FileFormatError(
            f"{path} is damaged, or holds objects of Python, which are never loaded: save its "
            "tensors alone, as in {layer: tensor}"
        ) from error
    raise FileFormatError(f"{path}: give .safetensors, .gguf, .pt, .pth, .npz, or a folder")


def _layer_of(config: Path) -> int | None:
    """Return the block after which a sparse autoencoder reads, by its configuration."""
    if not config.is_file():
        return None
    try:
        told = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"cannot read {config}: {error}") from error
    found = re.search(r'"hook_(?:name|point)":\s*"blocks\.(\d{1,9})\.hook_resid_(pre|post)"', told)
    return None if found is None else int(found[1]) - (found[2] == "pre")


def _control_vector(path: Path) -> Read:
    """Read a control vector."""
    if not path.is_file():
        raise FileFormatError(f"there is no file {path}")
    try:
        held = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in held.fields.items()}
        tensors = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in held.tensors}
    except Exception as error:  # whatever its reader meets in a damaged file
        raise FileFormatError(f"{path} is damaged: {error}") from error
    if (kind := fields.get("general.architecture")) != "controlvector":
        raise FileFormatError(f"{path} is no control vector, but a {kind}: give it as --model")
    found = {name: re.fullmatch(r"direction\.(\d{1,9})", name) for name in tensors}
    if other := [name for name, layer in found.items() if layer is None]:
        raise FileFormatError(f"{path} has {other[0]!r}, which is no direction of a layer")
    if other := [name for name, tensor in tensors.items() if tensor.ndim != 1]:
        raise FileFormatError(f"{path} has {other[0]!r}, which is no vector")
    layers = {int(layer[1]): tensors[name].float() for name, layer in found.items() if layer}
    about = {
        name.rpartition(".")[2]: str(value)
        for name, value in fields.items()
        if name.startswith(("educe.", "controlvector."))
    }
    return Read(torch.zeros(0, 0), layers, about=about)


def _lora(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Read the configuration of an adapter, and ``A`` and ``B`` of each module."""
    try:
        config = read_object((path / "adapter_config.json").read_text(encoding="utf-8"))
        scale = float(config["lora_alpha"]) / float(config["r"]) ** (
            0.5 if config.get("use_rslora") else 1.0
        )
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise FileFormatError(f"{path} is no low-rank adapter of PEFT: {error!r}") from error
    held = _tensors(path / "adapter_model.safetensors")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in held.items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if found is None:
            raise FileFormatError(f"{path} has {name}, which is no low-rank factor")
        parts.setdefault(found[1], {})[found[2]] = value.float()
    if not parts or any(len(pair) < 2 for pair in parts.values()):
        raise FileFormatError(f"{path} lacks a factor of a module")
    return config, {module: (pair["A"], scale * pair["B"]) for module, pair in parts.items()}


def _adapter(path: Path, lm: LanguageModel) -> PerturbationSet:
    """Return an adapter of PEFT on one output projection of consecutive blocks.

    The length of each column of ``a`` goes to that of ``b``; the radius is their mean square, so
    that random adapters of that radius are a control of the same size.
    """
    _, factors = _lora(path)
    blocks = {p: i for i, block in enumerate(lm.blocks) for p in _paths(lm, block)}
    band = sorted({blocks[module] for module in factors if module in blocks})
    rank = len(next(iter(factors.values()))[0])
    for projection in ("attention", "mlp"):
        if not band or len(band) != len(factors) or band != list(range(band[0], band[-1] + 1)):
            break
        kind = adapters(lm, first=band[0], blocks=len(band), projection=projection, rank=rank)
        if set(kind.paths) == set(factors):
            pairs = [(a[None], b.T[None]) for a, b in (factors[p] for p in kind.paths)]
            sizes = torch.cat([(a.norm(dim=2) * b.norm(dim=2))[0] for a, b in pairs])
            radius = sizes.square().mean().sqrt()
            unit = [(normed(a), b * a.norm(dim=2)[..., None] / radius) for a, b in pairs]
            return _set(path, kind, kind.joined(unit), radius[None], lm, None)
    raise FileFormatError(
        f"{path} is not on one output projection of each of some consecutive blocks from 1 on, as "
        "what educe perturbs is: load it beside the model with --adapter"
    )


def _paths(lm: LanguageModel, block: Any) -> list[str]:
    prefix = next(path for path, module in lm.unwrapped.named_modules() if module is block)
    return [f"{prefix}.{name}" for name, _ in block.named_modules()]
