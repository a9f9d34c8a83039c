"""llama.cpp itself, over ctypes, out of the shared object of ``xllamacpp``.

Structures that it takes and returns by value are larger here than there, which does no harm: it
reads and writes its own part. Its loader of control vectors is C++, so a vector of one
``{float strength; std::string fname}`` is laid out as the wheel's ABI on x86-64 has it, where a
string is a pointer.
"""

from __future__ import annotations

import ctypes as c
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest


class _Params(c.Structure):
    _fields_ = [("raw", c.c_byte * 1024)]


class _Batch(c.Structure):
    _fields_ = [("raw", c.c_byte * 56)]


class _Info(c.Structure):
    _fields_ = [("strength", c.c_float), ("name", c.c_char_p)]


class _Vector(c.Structure):
    _fields_ = [("begin", c.c_void_p), ("end", c.c_void_p), ("room", c.c_void_p)]


class _Data(c.Structure):
    _fields_ = [("n_embd", c.c_int), ("data", _Vector)]


VERSION = "2026.10.11549"
LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


def library() -> c.CDLL:
    """Return llama.cpp, or skip the test."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is needed")
    if (platform.machine(), version("xllamacpp")) != ("x86_64", VERSION):
        pytest.skip(f"the layout of C++ objects is known for xllamacpp {VERSION} on x86-64")
    (file,) = Path(xllamacpp.__path__[0]).glob("*.so")
    lib = c.CDLL(str(file))
    lib.llama_model_default_params.restype = _Params
    lib.llama_context_default_params.restype = _Params
    lib.llama_model_load_from_file.restype = c.c_void_p
    lib.llama_model_load_from_file.argtypes = [c.c_char_p, _Params]
    lib.llama_init_from_model.restype = c.c_void_p
    lib.llama_init_from_model.argtypes = [c.c_void_p, _Params]
    lib.llama_batch_get_one.restype = _Batch
    lib.llama_decode.argtypes = [c.c_void_p, _Batch]
    lib.llama_get_logits_ith.restype = c.POINTER(c.c_float)
    lib.llama_get_logits_ith.argtypes = [c.c_void_p, c.c_int32]
    lib.llama_set_adapter_cvec.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t, *[c.c_int32] * 3]
    lib.llama_free.argtypes = lib.llama_model_free.argtypes = [c.c_void_p]
    return lib


class Model:
    """A model that llama.cpp runs.

    Args:
        file: Its GGUF.
        blocks: How many it has.
        vocabulary: How many tokens it knows.
    """

    def __init__(self, file: Path, blocks: int, vocabulary: int) -> None:
        self.lib, self.blocks, self.vocabulary = library(), blocks, vocabulary
        log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
        self.quiet = log(lambda *told: None)
        self.lib.llama_log_set(self.quiet, None)
        self.model = self.lib.llama_model_load_from_file(
            str(file).encode(), self.lib.llama_model_default_params()
        )
        assert self.model, f"llama.cpp does not read {file}"

    def logits(self, ids: Sequence[int], control: Path | None = None) -> np.ndarray:
        """Return the logits behind some tokens, with a control vector at its own strength."""
        lib = self.lib
        context = lib.llama_init_from_model(self.model, lib.llama_context_default_params())
        try:
            if control is not None:
                read = self.read(control)
                assert read.n_embd > 0, f"llama.cpp does not read {control}"
                many = (read.data.end - read.data.begin) // 4
                where = (read.n_embd, 1, self.blocks)
                assert not lib.llama_set_adapter_cvec(context, read.data.begin, many, *where)
            tokens = (c.c_int32 * len(ids))(*ids)
            assert not lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids)))
            last = lib.llama_get_logits_ith(context, -1)
            return np.ctypeslib.as_array(last, (self.vocabulary,)).copy()
        finally:
            lib.llama_free(context)

    def read(self, control: Path) -> _Data:
        """Read a control vector with llama.cpp's own loader; its width is -1 where it refuses."""
        info = _Info(1.0, str(control).encode())
        first = c.addressof(info)
        some = _Vector(first, first + c.sizeof(info), first + c.sizeof(info))
        came = _Data()
        load = self.lib[LOAD]
        load.restype, load.argtypes = c.c_void_p, [c.c_void_p, c.c_void_p]
        load(c.addressof(came), c.addressof(some))
        return came
