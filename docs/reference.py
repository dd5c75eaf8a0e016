"""Pages of the site that are made from the registries, and the front page, which is the README.

mkdocs loads this file as a hook. Each pass, op, target, backend and command is described by its own
docstring, so a page cannot lag behind. The example on the card of a pass is one of its golden
tests, and is run here: a build fails where the passes no longer do what the example shows. A card
that somebody wrote, `docs/passes/<name>.md`, is put before what is made.
"""

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

from elidir.backends import backend, backend_names
from elidir.cli import app
from elidir.cost_models import dump_target, targets
from elidir.ir import OPS, ElidirError, fields_of, format_module
from elidir.passes import options_of, passes, read_reproducer

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "passes"
OBSERVING = GOLDEN / "observing.py"  # observations for passes that need some
WRITTEN = ROOT / "docs" / "passes"
LINE = "// ----\n"


def pages() -> dict[str, str]:
    """Return the text of every made page by its path in the site."""
    cards = {f"passes/{name}.md": card(name) for name in passes()}
    return cards | {
        "index.md": front_page(),
        "reference/passes.md": pass_list(),
        "reference/ops.md": op_list(),
        "reference/targets.md": target_list(),
        "reference/backends.md": backend_list(),
        "reference/commands.md": command_list(),
    }


def front_page() -> str:
    """Return the README, with its links as seen from the site."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return text.replace("[LICENSE](LICENSE)", "LICENSE")


# ---- passes


def card(name: str) -> str:
    """Return the card of a pass: what was written about it, what it says of itself, an example."""
    cls = passes()[name]
    written = WRITTEN / f"{name}.md"
    parts = [written.read_text() if written.exists() else f"# {name}\n\n{prose(cls)}"]
    parts.append(f"## In short\n\n{facts(cls)}")
    parts.append(f"## An example that is run\n\n{example(name)}")
    return "\n\n".join(parts) + "\n"


def facts(cls: Any) -> str:
    """Return what a pass declares."""
    stages = ", ".join(s.value for s in cls.requires if hasattr(s, "value")) or "any"
    rows = [
        ("promise", f"{cls.invariant.name.lower()} ({cls.invariant.value})"),
        ("runs at stage", stages),
        ("needs of calibration", ", ".join(cls.needs) or "nothing"),
        *((f"option `{o.name}`", f"`{o}`") for o in options_of(cls)),
    ]
    return "\n".join(f"- {what}: {said}" for what, said in rows)


def example(name: str) -> str:
    """Return a golden test of a pass, run once more."""
    folder = GOLDEN / name.replace("-", "_")
    shown = [p for p in folder.glob("*.ir") if f"applied {name}" in p.read_text()]
    if not shown:
        raise ElidirError(f"{name} has no golden test in which it applies; add one to {folder}")
    path = min(shown, key=lambda p: len(p.read_text()))
    before, _, after = path.read_text().partition(LINE)
    pipeline, module = read_reproducer(before)
    seen = runpy.run_path(str(OBSERVING))["observed"](module)
    result = pipeline.run(module, observations=seen)
    found = format_module(result.module)
    found += "".join(f"// remarks: {remark}\n" for remark in result.remarks)
    if found != after:
        raise ElidirError(f"the example {path.name} of {name} does not come out as it says")
    header, _, text = before.partition("\n")
    run = header.removeprefix("// run: ")
    return f"{fence(text)}\n\nafter `{run}`:\n\n{fence(after)}"


def pass_list() -> str:
    """Return the list of passes, each with a link to its card."""
    rows = [
        (f"[`{name}`](../passes/{name}.md)", cls.invariant.name.lower(), summary(cls))
        for name, cls in passes().items()
    ]
    return f"# Passes\n\n{table(('pass', 'promise', 'what it does'), rows)}\n"


# ---- ops, targets, backends, commands


def op_list() -> str:
    """Return every op kind: its meaning, operands and attributes."""
    return "# Ops\n\n" + "\n\n".join(_op(kind, cls) for kind, cls in sorted(OPS.items())) + "\n"


def _op(kind: str, cls: Any) -> str:
    rows = [(f"`{f.name}`", f.kind.value, f"`{_annotation(f.annotation)}`") for f in fields_of(cls)]
    known = table(("field", "is", "type"), rows) if rows else ""
    return f"## `{kind}`\n\n{fence(inspect.getdoc(cls) or '')}\n\n{known}".rstrip()


def _annotation(annotation: Any) -> str:
    return re.sub(r"[\w.]+\.(\w+)", r"\1", inspect.formatannotation(annotation))


def target_list() -> str:
    """Return every target with each of its numbers, their units, kinds and sources."""
    parts = [
        f"## {name}\n\n{target.title}.\n\n{fence(dump_target(target), 'yaml')}"
        for name, target in targets().items()
    ]
    return "# Targets\n\n" + "\n\n".join(parts) + "\n"


def backend_list() -> str:
    """Return every backend and the ops that it has kernels for."""
    parts = []
    for name in backend_names():
        made = backend(name)
        kernels = getattr(inspect.getmodule(type(made)), "KERNELS", {})
        ops = ", ".join(f"`{kind}`" for kind in sorted(kernels))
        parts.append(f"## {name}\n\n{prose(type(made))}\n\nOps: {ops or 'all it can'}.")
    return "# Backends\n\n" + "\n\n".join(parts) + "\n"


def command_list() -> str:
    """Return every command with its help."""
    import typer

    group = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        options = [_option(p) for p in command.params if not getattr(p, "hidden", False)]
        known = table(("argument or option", "what it is"), options)
        parts.append(f"## `elidir {name}`\n\n{command.help or ''}\n\n{known}")
    return "# Commands\n\n" + "\n\n".join(parts) + "\n"


def _option(param: Any) -> tuple[str, str]:
    spelled = ", ".join(param.opts) if param.param_type_name == "option" else param.name.upper()
    return f"`{spelled}`", getattr(param, "help", None) or ""


# ---- text


def prose(thing: Any) -> str:
    """Return a docstring as Markdown: what `::` introduces becomes a block of code."""
    text = inspect.getdoc(thing) or ""
    return re.sub(
        r"::\n\n((?:    .*\n?|\n)+)",
        lambda m: f":\n\n{fence(inspect.cleandoc(m[1]))}\n\n",
        f"{text}\n",
    ).strip()


def summary(thing: Any) -> str:
    """Return the first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def fence(text: str, language: str = "text") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- what mkdocs calls


def on_files(files: Any, config: Any) -> Any:
    """Add the made pages; a written card gives way to the card that holds it."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        if old := files.get_file_from_path(path):
            files.remove(old)
        files.append(File.generated(config, path, content=text))
    return files
