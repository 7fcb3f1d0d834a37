"""The import law and the house rules that a linter does not know, read from the syntax trees of all source files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method

ROOT = Path(__file__).parent.parent
ROOMS = ("dynammo_core", "server", "client", "simulations")
MAY_IMPORT = {
    "dynammo_core": {"dynammo_core"},
    "server": {"server", "dynammo_core"},
    "client": {"client", "dynammo_core"},
    "simulations": set(ROOMS),
}
FLOWER = ("flwr", "flwr_datasets")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
SHARED_BY_METHODS = {
    *("base", "decisions", "governance", "rehearsal"),
    *("heads", "distillation", "imprinting", "closed_form", "closed_form_sums", "adapted_closed_form"),
    *("adapters", "merged_adapters", "task_heads"),
}
every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported(node: ast.AST) -> list[str]:
    """Full names that one import statement brings in; `from a import b` names both a and a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide which room they reach into"
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def all_imports(path: Path) -> set[str]:
    """Everywhere in the file, functions and TYPE_CHECKING blocks included."""
    return {name for node in ast.walk(tree(path)) for name in imported(node)}


def import_time_imports(path: Path) -> set[str]:
    """What importing the file imports: everything outside functions and what only type checkers read."""

    def statements(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in nodes:
            typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if not typing and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node
                yield from statements([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])

    return {name for node in statements(tree(path).body) for name in imported(node)}


def test_there_is_a_house_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ROOMS)
    assert "dynammo_core.configuration.settings" in all_imports(ROOT / "dynammo_core" / "configuration" / "config.py")
    assert "server.run.run" in all_imports(ROOT / "server" / "app.py")
    assert "server.run.run" not in import_time_imports(ROOT / "server" / "app.py")


@every_file
def test_consoles_are_terminals_that_no_name_commands(path: Path) -> None:
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert "Console" not in {name.id for name in calls if isinstance(name, ast.Name)}
    assert "Console" not in {name.attr for name in calls if isinstance(name, ast.Attribute)}


@every_file
def test_import_law(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    reached = {name.split(".")[0] for name in all_imports(path)}
    assert (reached & set(ROOMS)) <= MAY_IMPORT[room]
    if room == "dynammo_core" and path != ROOT / "dynammo_core" / "wire" / "envelope.py":
        assert not reached & set(FLOWER)


def test_rooms_form_no_circle() -> None:
    """What a room imports never imports it, by however many steps; the files at the door of a package stand outside."""
    needs: dict[str, set[str]] = {}
    for path in FILES:
        room = ".".join(path.relative_to(ROOT).parts[:2])
        if path.relative_to(ROOT).parts[0] == "dynammo_core" or len(path.relative_to(ROOT).parts) < 3:
            continue
        reached = {".".join(name.split(".")[:2]) for name in all_imports(path) if name in MODULES}
        needs.setdefault(room, set()).update(reached - {room})
    while needs:
        free = {room for room, needed in needs.items() if not needed & set(needs)}
        assert free, f"these rooms import each other: {sorted(needs)}"
        needs = {room: needed for room, needed in needs.items() if room not in free}


def test_messages_are_written_and_read_in_one_file() -> None:
    """Beside the envelope, Flower's records are known to the door, which trusts no encoder, and to what forges them."""
    records = {"ArrayRecord", "ConfigRecord", "MetricRecord"}
    users = {
        name
        for path, name in zip(FILES, NAMES, strict=True)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and records & {alias.name for alias in node.names}
    }
    assert users == {
        "client/hospital/door.py",
        "dynammo_core/wire/envelope.py",
        "simulations/bench/growth.py",
        "simulations/comparisons/wires.py",
    }


def test_private_modules_of_flower_are_used_in_few_files() -> None:
    """The grid of the local engine, the gate and what starts Flower's programs behind it, the processes of a site."""
    public = {"flwr", "flwr.app", "flwr.serverapp", "flwr.clientapp"}
    users = {
        name
        for path, name in zip(FILES, NAMES, strict=True)
        for node in ast.walk(tree(path))
        for module in _modules_of_flower(node)
        if module not in public
    }
    assert users == {
        "simulations/engines/local_grid.py",
        "server/gate/gate.py",
        "server/gate/signatures.py",
        "server/consortium/flower_programs.py",
        "client/service/own_app.py",
        "client/service/own_node.py",
    }


def _modules_of_flower(node: ast.AST) -> Iterator[str]:
    """What `from flwr... import` and `import_module("flwr...")` name."""
    named = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_module":
        named = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
    yield from (name for name in named if name.split(".")[0] == "flwr")


def test_methods_do_not_import_each_other() -> None:
    folder = ROOT / "dynammo_core" / "methods"
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) > len(SHARED_BY_METHODS)
    own = {f"dynammo_core.methods.{path.stem}" for path in files if path.stem not in SHARED_BY_METHODS}
    for path in files:
        assert not all_imports(path) & own, path.name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_derives_from_method_alone(name: str) -> None:
    """What methods share are functions, so that what a method does stands in its own file."""
    assert METHODS[name].__bases__ == (Method,)


@every_file
def test_nobody_asks_for_a_stages_name(path: Path) -> None:
    """A stage carries what it does; its name is for people, logs and seeds."""
    asked = [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Compare | ast.Match) and _asks(node)]
    assert not asked


@pytest.mark.parametrize("question", ["stage.name == 'a'", "'a' in (stage.name, 'b')", "step.stage.name in x"])
def test_questions_for_a_stages_name_are_found(question: str) -> None:
    (node,) = [node for node in ast.walk(ast.parse(question)) if isinstance(node, ast.Compare)]
    assert _asks(node)


def _asks(node: ast.Compare | ast.Match) -> bool:
    """Whether the name of something called `stage` is among what is compared."""
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
    parts = [part for side in sides for part in (side.elts if isinstance(side, ast.Tuple | ast.Set) else [side])]
    names = [part.value for part in parts if isinstance(part, ast.Attribute) and part.attr == "name"]
    return any(((isinstance(of, ast.Name) and of.id) or getattr(of, "attr", "")) == "stage" for of in names)


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("dynammo_core.plan", ("torch",)),
        ("dynammo_core.configuration.config", ("torch",)),
        ("client.consent.settings", ("torch", "flwr")),
        ("client.consent.policy", ("torch", "flwr")),
        ("server.consortium.settings", ("torch", "flwr")),
        ("dynammo_core.models.names", ("torch",)),
        ("dynammo_core.wire.protocol", ("dynammo_core.models.", "dynammo_core.methods", "torchvision", "timm")),
    ],
)
def test_settings_a_plan_and_a_message_are_read_without_networks(module: str, unneeded: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    names = set(loaded.stdout.split()) - {"dynammo_core.models.names"}
    assert module.rpartition(".")[0] in names
    assert not [name for name in names if name.startswith(unneeded)]


@pytest.mark.parametrize("path", [path for path in FILES if path.relative_to(ROOT).parts[0] in ("server", "client")])
def test_server_and_client_never_name_a_method(path: Path) -> None:
    docstrings = {id(docstring) for docstring in _docstrings(tree(path))}
    named = {
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in METHODS and id(node) not in docstrings
    }
    if path in (ROOT / "server" / "run" / "results.py", ROOT / "client" / "doctor" / "checks.py"):
        named -= {"dynammo"}  # there it is this package, and its version
    assert not named
    of_methods = {name for name in all_imports(path) if name.startswith("dynammo_core.methods")}
    assert all(name.startswith(("dynammo_core.methods.base", "dynammo_core.methods.rehearsal")) for name in of_methods)


def _docstrings(module: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            yield statement.value


@every_file
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_rooms_are_small() -> None:
    """A folder has at most a dozen files beside its door; methods and data sets, one file each, may be many."""
    alike = {"dynammo_core/methods", "dynammo_core/data/datasets"}
    rooms = Counter(path.relative_to(ROOT).parent.as_posix() for path in FILES if path.name != "__init__.py")
    assert alike < set(rooms)
    assert {room: files for room, files in rooms.items() if files > 12 and room not in alike} == {}


def test_files_of_tests_have_names_of_their_own() -> None:
    """Their folders are no packages, so that pytest cannot tell two files of one name apart."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) > 100
    assert [name for name, files in names.items() if files > 1] == []


def test_no_import_cycles() -> None:
    """Depth-first over what modules import while they are being imported."""
    graph = {
        name: {found for found in import_time_imports(path) if found in MODULES and found != name}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > len(MODULES)  # it is a real graph
    assert find_cycle(graph) == []
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for below in sorted(graph[name]):
            if cycle := visit(below, [*path, name]):
                return cycle
        done.add(name)
        return []

    for name in sorted(graph):
        if cycle := visit(name, []):
            return cycle
    return []


@every_file
def test_public_things_say_what_they_are_for(path: Path) -> None:
    """Modules, classes, functions; a method that overrides says what its base says, so methods are the linter's."""
    silent = [
        node.name
        for node in tree(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not silent
    if path.name != "__init__.py" or path.read_text():
        assert ast.get_docstring(tree(path))
