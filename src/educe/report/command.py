"""Shell lines that repeat a run."""

from __future__ import annotations

import json
import shlex
from typing import Any

from educe.visible import visible


def command(config: dict[str, Any]) -> str:
    """Return shell lines that repeat a run."""
    lines, words = [], ["educe discover"]
    for name, prompts in (("prompts", config["prompts"]), ("fresh", config.get("fresh") or ())):
        simple = all(isinstance(p, str) and "\n" not in p and visible(p) == p for p in prompts)
        if name == "prompts" and simple and len(prompts) <= 3:
            words += [_quoted(p) for p in prompts]
        elif prompts:
            file = f"{name}.txt" if simple else f"{name}.jsonl"
            said = [p if simple else _in_json(p) for p in prompts]
            lines += [f"cat > {file} <<'END'", *said, "END"]
            words.append(f"--{name} {file}")
    flags = "model adapter revision dtype device method given control within ball retain retain_by"
    flags += " retain_prompts n source target"
    flags += " positions readout radius baseline samples temperature max_new_tokens seed look_for"
    flags += " prefill"
    words += [
        f"--{flag.replace('_', '-')} {_quoted(str(config[flag]))}"
        for flag in flags.split()
        if config.get(flag) not in (None, "")
        and (flag != "ball" or config.get("within"))
        and (flag not in ("retain", "retain_by", "retain_prompts") or _retains(config))
    ]
    for name, value in (config.get("method_settings") or {}).items():
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(f"--set {_quoted(f'{name}={text}')}")
    return "\n".join([*lines, " \\\n  ".join(words)])


def audit_command(config: dict[str, Any], options: dict[str, Any], given: int) -> str:
    """Return shell lines that repeat an audit.

    Args:
        config: Settings of its run.
        options: What the audit was asked for.
        given: How many of the prompts were given, the first ones.
    """
    lines, words = [], [f"educe audit {_quoted(config['model'])}"]
    said = [_in_json(p) for p in config["prompts"][:given]]
    for name, file, own in (
        ("prompts", "prompts.jsonl", said),
        ("topics", "topics.txt", options["topics"]),
    ):
        if own:
            lines += [f"cat > {file} <<'END'", *own, "END"]
            words.append(f"--{name} {file}")
    for flag in ("adapter", "revision", "dtype", "device"):
        if config.get(flag) not in (None, "auto"):
            words.append(f"--{flag} {_quoted(str(config[flag]))}")
    if options["sources"]:
        words.append(f"--sources {_quoted(','.join(options['sources']))}")
    for flag in ("reference", "budget", "judge", "max_new_tokens", "seed"):
        if options[flag] is not None:
            words.append(f"--{flag.replace('_', '-')} {_quoted(str(options[flag]))}")
    return "\n".join([*lines, " \\\n  ".join(words)])


def _quoted(word: str) -> str:
    """Quote a word for a shell: hidden signs are escapes there, as bash and zsh read them."""
    if visible(word) == word:
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{visible(escaped)}'"


def _in_json(prompt: Any) -> str:
    text = json.dumps(prompt, ensure_ascii=False)
    return text if visible(text) == text else json.dumps(prompt)


def _retains(config: dict[str, Any]) -> bool:
    """Return whether a run had retain prompts."""
    return bool(config.get("retain")) or config.get("method") == "generalised"
