"""Small programs as text, for the tests of the analyses."""

from elidir.ir import Module, Region, Value, parse_module, verify

WEIGHTS = {
    "table": "f32[50, 8]",
    "places": "f32[64, 8]",
    "w": "f32[8, 8]",
    "g": "f32[8]",
    "freqs": "f32[2]",
    "slopes": "f32[2]",
    "kernel": "f32[8, 8, 3]",
    "square": "f32[8, 8]",
}
IDS = "%ids: i64[B, T], %valid: bool[B, T], %pos: i64[B, T]"


def program(
    lines: str, *, params: str = IDS, before: str = "", symbols: tuple[str, ...] = ()
) -> Module:
    """A verified module whose `@forward` has these lines, and the weights that they name."""
    text = before + lines
    used = [f"  weight @{n}: {t}" for n, t in WEIGHTS.items() if f"@{n}" in text]
    body = "\n".join(f"    {line.strip()}" for line in lines.strip().splitlines())
    head = "module @program stage=raised {\n  sym B in [1, inf]\n  sym T in [1, 64]\n"
    head += "".join(f"  sym {s} in [1, inf]\n" for s in symbols)
    table = "".join(f"{line}\n" for line in used)
    function = f"  func @forward({params}) {{\n{body}\n  }}\n}}\n"
    module = parse_module(head + table + before + function)
    verify(module)
    return module


def named(region: Region, name: str) -> Value:
    """The value of a name."""
    values = [*region.params, *(r for op in region.ops for r in op.results)]
    (found,) = [v for v in values if v.name == name]
    return found
