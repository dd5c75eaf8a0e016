"""The shape of the repository: packages, direction of imports, start-up, and the size of things.

These are the house rules that a machine can check; what import-linter and ruff check is not said
here again. A rule that is broken names the file, the line and the figure. No test here imports
torch or runs a model.
"""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]

# Top-level packages in the order of imports, each with its folder; `elidir` itself is the face.
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]
LAYERS = ("elidir.ir", "elidir.cost_models", "elidir.passes", "elidir.backends", "elidir.frontends")

SHIPPED = [path for folder in FOLDERS.values() for path in sorted((ROOT / folder).rglob("*.py"))]
OTHER = [
    path
    for folder in ("tests", "benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

MAX_FUNCTION_LINES = 40
MEDIAN_FUNCTION_LINES = 8
MAX_PASS_LINES = 200
MAX_NESTING = 2
MAX_DOCSTRING_LINES = 10

Function = ast.FunctionDef | ast.AsyncFunctionDef
NESTING = (ast.If, ast.For, ast.While, ast.Match, ast.ExceptHandler)


def where(path: Path) -> str:
    """Name a file as a reader of the repository would."""
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    """A file, parsed once for all tests."""
    return ast.parse(path.read_text())


@cache
def functions(path: Path) -> tuple[Function, ...]:
    """Every function and method in a file, nested ones too."""
    return tuple(node for node in ast.walk(tree(path)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    doc = function.body[0]
    return lines - (doc.end_lineno - doc.lineno + 1)


def is_elif(parent: ast.AST, node: ast.AST) -> bool:
    """An elif is an If that stands alone in its parent's else, and nests no deeper."""
    return isinstance(parent, ast.If) and isinstance(node, ast.If) and parent.orelse == [node]


def nesting(node: ast.AST, depth: int = 0) -> int:
    """The deepest level of if, for, while, match and except below a node; with and try are none."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            continue
        deeper = isinstance(child, NESTING) and not is_elif(node, child)
        deepest = max(deepest, nesting(child, depth + deeper))
    return deepest


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module name that a file imports, at its top or inside a function."""
    nodes = list(ast.walk(tree(path)))
    whole = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    return (*whole, *(n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)))


def package_of(folder: Path) -> str:
    """The import name of a folder, by the longest match in package-dir."""
    name, top = next((n, ROOT / t) for n, t in FOLDERS.items() if folder.is_relative_to(ROOT / t))
    return ".".join([name, *folder.relative_to(top).parts])


def test_packages_in_pyproject_are_the_folders_that_hold_python() -> None:
    assert {package_of(path.parent) for path in SHIPPED} == set(SETUPTOOLS["packages"])


def test_every_package_has_an_init_file() -> None:
    assert not [
        where(path.parent) for path in SHIPPED if not (path.parent / "__init__.py").exists()
    ]


def test_no_folder_at_the_root_shadows_the_package() -> None:
    assert not (ROOT / "elidir").exists()


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_the_face(layer: str) -> None:
    """`elidir` above its layers is the face; a layer imports `elidir.ir` and its like only."""
    files = (ROOT / FOLDERS[layer]).rglob("*.py")
    wrong = [
        f"{where(path)}: {name}"
        for path in files
        for name in imports(path)
        if name.split(".")[0] == "elidir" and not name.startswith(LAYERS)
    ]
    assert not wrong, "a layer may not import the root package"


@pytest.mark.parametrize("name", LAYERS)
def test_nobody_imports_deeper_than_a_package(name: str) -> None:
    """Public names come from `elidir.ir`; its modules are imported inside `elidir.ir` only."""
    packages = set(SETUPTOOLS["packages"])
    wrong = [
        f"{where(path)}: {imported}"
        for path in SHIPPED
        if not package_of(path.parent).startswith(name)
        for imported in imports(path)
        if imported.startswith(f"{name}.") and imported not in packages
    ]
    assert not wrong, f"import these from {name} or one of its packages"


@pytest.mark.parametrize("path", SHIPPED + OTHER, ids=where)
def test_file_opens_with_a_docstring(path: Path) -> None:
    """Of 3 to 10 lines where it ships; a test or a script may say it in one."""
    lines = len((ast.get_docstring(tree(path)) or "").splitlines())
    least = 3 if path in SHIPPED else 1
    assert least <= lines <= MAX_DOCSTRING_LINES, "say what lives here, and what may not"


@pytest.mark.parametrize("path", SHIPPED + OTHER, ids=where)
def test_functions_are_short_and_shallow(path: Path) -> None:
    found = [(f, body_lines(f), nesting(f)) for f in functions(path)]
    wrong = [
        f"{where(path)}:{f.lineno} {f.name}: {lines} lines, {depth} levels"
        for f, lines, depth in found
        if lines > MAX_FUNCTION_LINES or depth > MAX_NESTING
    ]
    assert not wrong


@pytest.mark.parametrize("path", SHIPPED + OTHER, ids=where)
def test_functions_are_annotated(path: Path) -> None:
    wrong = [f"{where(path)}:{f.lineno} {f.name}" for f in functions(path) if not annotated(f)]
    assert not wrong


def annotated(function: Function) -> bool:
    """Whether every parameter but self and cls, and the result, has an annotation."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    typed = all(a.annotation or a.arg in ("self", "cls") for a in named)
    return typed and (function.returns is not None or function.name == "__init__")


@pytest.mark.parametrize("layer", LAYERS)
def test_the_median_function_of_a_layer_is_short(layer: str) -> None:
    files = (ROOT / FOLDERS[layer]).rglob("*.py")
    lengths = [body_lines(function) for path in files for function in functions(path)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


def test_a_file_that_registers_a_pass_is_short() -> None:
    passes = [path for path in (ROOT / "passes").rglob("*.py") if registers(path)]
    assert passes, "no pass is registered"
    wrong = {where(path): len(path.read_text().splitlines()) for path in passes}
    assert not {name: lines for name, lines in wrong.items() if lines > MAX_PASS_LINES}


def registers(path: Path) -> bool:
    """Whether a file has a class under the `register` decorator."""
    classes = (n for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef))
    return any(ast.unparse(d) == "register" for c in classes for d in c.decorator_list)


def test_only_the_cli_prints() -> None:
    wrong = [
        where(path)
        for path in SHIPPED
        if path.name != "cli.py" and re.search(r"^\s*print\(", path.read_text(), re.MULTILINE)
    ]
    assert not wrong


HEAVY = {"networkx", "numpy", "pydantic", "safetensors", "sympy", "tokenizers", "torch", "yaml"}


@pytest.mark.parametrize(
    ("module", "heavy"), [("elidir", HEAVY | {"rich", "typer"}), ("elidir.cli", HEAVY)]
)
def test_import_waits_for_nothing_heavy(module: str, heavy: set[str]) -> None:
    """`import elidir` loads the standard library; the CLI's --help may load typer and rich."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not heavy & set(run.stdout.split())
