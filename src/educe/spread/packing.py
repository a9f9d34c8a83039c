"""Packing: how jobs and results travel, and the bench at which a worker does them.

A model does not travel: the job says how it was loaded, and the worker loads it on its own device,
once, and refuses one that is not the same by its digests. Tensors travel by way of the processor's
memory; one that lay on a device comes out on the worker's.
"""

from __future__ import annotations

import io
import os
import pickle
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from educe.errors import SpreadError
from educe.model.digest import others
from educe.model.language import LanguageModel
from educe.model.loading import load

#: Values that jobs share which a worker keeps, and models, the last ones that it got.
KEPT = 4


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        """Return what stands for a model, or for a tensor of a device."""
        if isinstance(thing, LanguageModel):
            return "model", _loading(thing), dict(thing.parts)
        if isinstance(thing, Tensor) and thing.device.type != "cpu":
            return "tensor", thing.cpu()
        return None


def _loading(lm: LanguageModel) -> dict[str, Any]:
    """Return how a worker loads a model.

    Raises:
        SpreadError: It cannot.
    """
    if lm.how is None:
        raise SpreadError(
            f"{lm.name} was loaded here, and a worker cannot load it again: name the model, or "
            "leave --on out"
        )
    if lm.how["device_map"] is not None:
        raise SpreadError(
            "a worker has one device, and --device-map lays a model over several: leave one out"
        )
    return {name: value for name, value in lm.how.items() if name != "device_map"}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, bench: Bench | None) -> None:
        super().__init__(io.BytesIO(data))
        self.bench = bench

    def persistent_load(self, said: Any) -> Any:
        """Return the model or the tensor that something stands for."""
        if said[0] == "model":
            assert self.bench is not None, "no worker returns a model"
            return self.bench.model(*said[1:])
        return said[1].to(self.bench.device) if self.bench else said[1]


def packed(value: Any) -> bytes:
    """Return a value as bytes, in which models stand by how they were loaded.

    Raises:
        SpreadError: A model cannot be loaded again.
    """
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def unpacked(data: bytes, bench: Bench | None = None) -> Any:
    """Return the value that `packed` made bytes of.

    Args:
        data: The bytes, of a worker or of who gives it work: nobody else's.
        bench: Where models and tensors of devices belong.
    """
    return _Unpickler(data, bench).load()


class Bench:
    """What a worker has: a device, the models that it loaded, and what its last jobs shared.

    Args:
        device: As torch names it.
        folder: Where whoever gives the work is: names of files are meant from there.
    """

    def __init__(self, device: str, folder: str) -> None:
        self.device = torch.device(device)
        self._models: dict[bytes, LanguageModel] = {}
        self._shared: dict[str, tuple[Any, ...]] = {}
        with suppress(FileNotFoundError):  # on another machine, which need not have it
            os.chdir(folder)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # as many workers as cores; and one rounds as another

    def model(self, how: Mapping[str, Any], parts: Mapping[str, str]) -> LanguageModel:
        """Return the model that is loaded in some way.

        Raises:
            SpreadError: It is another one than where the work comes from.
            ModelError: It cannot be loaded.
        """
        key = pickle.dumps((how, parts))
        lm = self._models.pop(key, None)
        if lm is None:
            for old in list(self._models)[: len(self._models) + 1 - KEPT]:
                del self._models[old]
            lm = load(**how, device=self.device, progress=lambda sentence: None)
            if changed := others(parts, lm.parts):
                raise SpreadError(
                    f"a worker found another model under {lm.name}: {', '.join(changed)} differ; "
                    "give all workers the same files"
                )
        self._models[key] = lm
        return lm

    def do(self, job: bytes, key: str, shared: bytes) -> bytes:
        """Do a job, and return what came or what was raised.

        Args:
            job: The job.
            key: What that is known by which it shares with others.
            shared: This.
        """
        try:
            if key not in self._shared:
                for old in list(self._shared)[: len(self._shared) + 1 - KEPT]:
                    del self._shared[old]
                self._shared[key] = unpacked(shared, self)
            do, given = unpacked(job, self)
            return packed((do(*self._shared[key], *given), None))
        except Exception as error:
            error.add_note("In a worker:\n" + traceback.format_exc())
            return packed((None, error))
