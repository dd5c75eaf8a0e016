"""`elidir compile`: a model compiled into a folder, which every verb then takes for a model.

What is compiled and how it is saved is `elidir.cache` and `elidir.saving`; here it is asked for.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output


def compile(
    model: opts.Model,
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to save to.")],
    pipeline: opts.Pipeline = "lossless",
    target: opts.Target = "cpu",
    backend: opts.Backend = "cpu",
    dtype: opts.Dtype = None,
    calibration: opts.Calibration = None,
    json: opts.Json = False,
) -> None:
    """Compile a model and save it to a folder; a saved model that is there is replaced."""
    chosen = opts.compile_options(pipeline, target, backend, dtype)
    from elidir.cache import compile_named

    with output.progress() as notify:
        compiled = compile_named(model, chosen, notify, calibration=calibration)
        notify(f"saving to {out}")
        sha = compiled.save(out)
    data = _data(model, out, sha, compiled)
    if json:
        return output.say_json(data)
    for remark in data["remarks"]:
        output.note(remark)
    return output.say(f"{out}: {data['bytes'] / 1e6:.1f} MB, sha256 {sha}")


def _data(model: str, out: Path, sha: str, compiled: Any) -> dict[str, Any]:
    program = compiled.program
    sizes = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
    return {
        "model": model,
        "path": str(out),
        "sha256": sha,
        "bytes": sum(sizes.values()),
        "files": sizes,
        "tokenizer": compiled.tokenizer is not None,
        "seconds": compiled.stats["seconds"],
        "remarks": list(program.remarks),
    }
