"""``educe export``, ``educe exports`` and ``educe serve``: a run in the tools that others use."""

from __future__ import annotations

from pathlib import Path

from educe.cli.opening import opened, telling
from educe.cli.options import SCREEN, Debug, Output, RunFolder
from educe.cli.streams import print_text
from educe.errors import ExportError
from educe.exports import FORMATS, check
from educe.exports import export as exported
from educe.options import Natural, Port


def export(
    run: RunFolder,
    /,
    *numbers: Natural,
    to: str,
    out: Path | None = None,
    push: str | None = None,
    output: Output = SCREEN,
) -> None:
    """Write perturbations of a run, or the run, in a format that another tool reads.

    Args:
        numbers: perturbations, as the table numbers them; none for parquet, csv, jsonl and inspect
        to: the format; educe exports lists them
        out: a new folder; by default one in the run, named after the format
        push: send what was written, hub to this repository, neuronpedia to the model that has this
            name there; without it nothing leaves this machine
    """
    from educe.files import check_free

    check(to, list(numbers), push)
    with opened(run, ()) as found:
        folder = out or run / "exports" / "-".join([to, *map(str, dict.fromkeys(numbers))])
        check_free(folder)
        from educe.exports.chosen import Chosen

        said = exported(Chosen(found, numbers, say=telling().say), to, folder, push=push)

    def tell() -> None:
        print_text("\n".join([*said, f"written: {folder}"]))

    output.put({"folder": folder, "said": said}, tell)


def exports(*, output: Output = SCREEN) -> None:
    """List the formats of educe export."""
    output.put(
        FORMATS,
        lambda: print_text("\n".join(f"{name}: {about}" for name, about in FORMATS.items())),
    )


def serve(
    run: RunFolder,
    /,
    *,
    host: str = "127.0.0.1",
    port: Port = 8000,
    debug: Debug = False,
) -> None:
    """Serve the perturbed models of a run by OpenAI's protocol: a request's model names one.

    The model base is the unperturbed one, 17 is perturbation 17. Requests that come together are
    written in one batch, with a perturbation in each row.

    Args:
        host: where to listen; anything but loopback lets others on the network ask
        port: 0 for any that is free
    """
    try:
        from educe.serving.batching import Batcher
        from educe.serving.listening import listening
        from educe.serving.listening import serve as answer
        from educe.serving.server import LOOPBACK, application
    except ImportError as error:
        raise ExportError("a server is needed: pip install 'educe[serve]'") from error

    with opened(run):
        pass
    with listening(host, port) as at:
        tells = telling()
        batcher = Batcher.of_run(run, say=tells.say)
        here = host in LOOPBACK
        if not here:
            tells.say(f"whoever reaches {host} can ask: there is no key")
        print_text(f"http://{host}:{at.getsockname()[1]}/v1  base, or a number as the model")
        try:
            answer(application(batcher, anywhere=not here), at, grace=5)
        finally:
            batcher.close()
