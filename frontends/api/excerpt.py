"""What a notebook shows of a compiled model: a small table of what it is and what was done to it.

Every text is escaped: names come from models. Nothing is decided here, and nothing is run.
"""

from html import escape

from elidir.frontends import Program
from elidir.ir import product
from elidir.passes import Applied


def excerpt(program: Program) -> str:
    """Return a fragment of HTML."""
    entries = (e for e in program.module.weights.values() if e.expr is None)
    sizes = (product(e.type.dims) for e in entries)
    options, layers = program.options, len(list(program.raised.layers()))
    rows = {
        "compiled": program.module.name,
        "size": f"{sum(n for n in sizes if isinstance(n, int)):,} parameters, {layers} layers",
        "for": f"target {options.target}, backends {', '.join(options.backends)}",
        "passes": ", ".join(_applied(program)) or "none that changed it",
        "cache": "yes" if "step" in program.module.functions else "none",
    }
    cells = (f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _applied(program: Program) -> list[str]:
    found = (r for record in program.result.records for r in record.remarks)
    return list(dict.fromkeys(r.by for r in found if isinstance(r, Applied)))
