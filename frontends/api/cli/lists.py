"""`elidir passes | targets | backends`: what there is, from the registries, all or one.

Third parties' are listed as elidir's own. `targets --measure` is the one that writes: the target
file of this host.
"""

import inspect
from typing import Annotated, Any

import typer

from elidir.cli import options as opts
from elidir.cli import output

Name = Annotated[str | None, typer.Argument(help="Only this one, with all that is known of it.")]


def passes(name: Name = None, json: opts.Json = False) -> None:
    """List the passes and presets: what each promises, and its options."""
    from elidir.passes import find_pass, passes

    if name is not None and not _is_preset(name):
        return _one_pass(find_pass(name), json)
    presets = [_preset(n) for n in _preset_names() if name in (None, n)]
    found = [] if name else [_pass(cls) for cls in passes().values()]
    if json:
        return output.say_json({"passes": found, "presets": presets})
    if found:
        head = ("pass", "promise", "what it does")
        output.table(head, [(p["name"], p["invariant"], p["summary"]) for p in found])
        typer.echo()
    return output.table(("preset", "pipeline"), [(p["name"], p["pipeline"]) for p in presets])


def _preset_names() -> tuple[str, ...]:
    from elidir.passes import preset_names

    return preset_names()


def _is_preset(name: str) -> bool:
    return name in _preset_names()


def _preset(name: str) -> dict[str, str]:
    from elidir.passes import Pipeline

    return {"name": name, "pipeline": str(Pipeline.of(name))}


def _pass(cls: Any) -> dict[str, Any]:
    from elidir.passes import options_of

    return {
        "name": cls.name,
        "invariant": cls.invariant.name.lower(),
        "summary": _summary(cls),
        "options": [str(o) for o in options_of(cls)],
        "stages": [s.value for s in cls.requires if hasattr(s, "value")],
        "needs": list(cls.needs),
        "module": cls.__module__,
    }


def _summary(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ")


def _one_pass(cls: Any, json: bool) -> None:
    data = _pass(cls) | {"description": inspect.getdoc(cls) or ""}
    if json:
        return output.say_json(data)
    lines = [f"{data['name']} ({data['module']})", "", data["description"], ""]
    lines.append(f"promise: {data['invariant']}")
    lines.append(f"stages: {', '.join(data['stages']) or 'any'}")
    lines += [f"needs: {', '.join(data['needs'])}"] if data["needs"] else []
    lines += (
        ["options:", *(f"  {o}" for o in data["options"])] if data["options"] else ["options: none"]
    )
    return output.say("\n".join(lines))


# ---- targets


def targets(
    name: Name = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this host first.")] = False,
    json: opts.Json = False,
) -> None:
    """List the targets: each number with its kind and source."""
    from elidir.cost_models import load_target
    from elidir.cost_models import targets as known

    one = load_target(name) if name else None
    if measure:
        _measure(name)
        one = load_target("cpu")
    if one is not None:
        return output.say_json(_target(one)) if json else output.say(_target_text(one))
    found = known()
    if json:
        return output.say_json([_target(t) for t in found.values()])
    rows = [(t.name, ", ".join(t.aliases), t.title) for t in found.values()]
    return output.table(("target", "aliases", "what it is"), rows)


def _measure(name: str | None) -> None:
    from elidir.ir import ElidirError

    if name not in (None, "cpu", "host"):
        raise ElidirError(f"only this host can be measured, not {name}; leave the name out")
    from elidir.backends.cpu import write_host

    with output.progress() as notify:
        notify("measuring this host")
        file = write_host()
    output.note(f"written to {file}")


def _target(target: Any) -> dict[str, Any]:
    import yaml

    from elidir.cost_models import dump_target

    data: dict[str, Any] = yaml.safe_load(dump_target(target))
    return data


def _target_text(target: Any) -> str:
    from elidir.cost_models import dump_target

    return dump_target(target)


# ---- backends


def backends(name: Name = None, json: opts.Json = False) -> None:
    """List the backends: whether each can run here, and which ops it takes."""
    from elidir.backends import backend, backend_names

    names = (backend(name).name,) if name else tuple(backend_names())
    found = [_backend(n) for n in names]
    if json:
        return output.say_json(found)
    rows = [
        (b["name"], b["available"], str(len(b["ops"])) if b["ops"] else "", b["summary"])
        for b in found
    ]
    output.table(("backend", "runs here", "ops", "what it is"), rows)
    if name:
        output.say("\nops: " + ", ".join(found[0]["ops"]))
    return None


def _backend(name: str) -> dict[str, Any]:
    from elidir.backends import backend, backend_names

    made = backend(name)
    answer = made.available()
    kernels = getattr(inspect.getmodule(type(made)), "KERNELS", {})
    return {
        "name": name,
        "available": "yes" if answer else f"no: {getattr(answer, 'reason', '')}",
        "ops": sorted(kernels),
        "summary": _summary(type(made)),
        "from": backend_names()[name],
    }
