"""The text of `Compiled.explain()`: what was found, what each pass did, what runs where.

Each line says one thing: a remark of capture or of a pass, or a backend and the ops that it runs.
Nothing is decided here, and nothing is run.
"""

from collections import Counter

from elidir.frontends import Program
from elidir.ir import KV, Attention, Linear, Module, Opaque
from elidir.passes import Applied, Missed

WIDTH = 20


def explain_program(program: Program) -> str:
    """Return one line for each thing that happened, in order; misses with their reason."""
    lines = [_line("(raised)", _structure(program.raised))]
    lines += [_line("(capture)", r) for r in program.remarks]
    lines += [_line("opaque", f"{o.target} at {o.loc or 'no module'}") for o in _opaque(program)]
    for record in program.result.records:
        lines += [_remark(r) for r in record.remarks if isinstance(r, Applied | Missed)]
    lines += _backends(program)
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _line(head: str, text: str) -> str:
    return f"{head:<{WIDTH}}{text}"


def _structure(module: Module) -> str:
    layers = list(module.layers())
    ops = [o for f in module.functions.values() for o in f.region.ops]
    ops += [o for layer in layers for o in layer.body.region.ops]
    kinds = Counter(type(o) for o in ops)
    bodies = f"of {len(module.bodies)} {'body' if len(module.bodies) == 1 else 'bodies'}"
    return (
        f"{len(layers)} layers {bodies}, {kinds[Linear]} linear, {kinds[Attention]} attention, "
        f"{kinds[Opaque]} opaque"
    )


def _opaque(program: Program) -> list[Opaque]:
    return [o for o in program.raised.ops() if isinstance(o, Opaque)]


def _remark(remark: Applied | Missed) -> str:
    at = f" at {remark.at}" if remark.at else ""
    if isinstance(remark, Applied):
        return _line(remark.by, f"applied{at}{f'   {remark.what}' if remark.what else ''}")
    remedy = f"; {remark.remedy}" if remark.remedy else ""
    return _line(remark.by, f"missed{at}: {remark.reason}{remedy}")


def _backends(program: Program) -> list[str]:
    """Say what runs where, for what has been lowered already, and how the cache looks."""
    lines = []
    for name in ("forward", "step"):
        executable = vars(program).get(name)
        if executable is not None:
            taken = ", ".join(f"{n} ops on {b}" for b, n in executable.taken().items())
            lines.append(_line(f"@{name}", taken))
    if "step" in program.module.functions:
        kinds = [p.type for p in program.module["step"].region.params if isinstance(p.type, KV)]
        lines.append(_line("cache", f"{len(kinds)} of type {kinds[0]}" if kinds else "none"))
    return lines
