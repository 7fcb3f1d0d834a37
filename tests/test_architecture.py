"""The import law and the house rules that a linter does not know, read from the syntax trees of all source files."""

from __future__ import annotations

import ast
import os
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
BY_NAME = {path.relative_to(ROOT).as_posix(): path for path in FILES}
SHARED_BY_METHODS = {
    *("base", "decisions", "rehearsal"),
    *("heads", "distillation", "imprinting", "adapted_closed_form"),
    *("closed_form", "closed_form_sums", "closed_form_personal"),
    *("feature_maps", "nearest_mean"),
    *("adapters", "merged_adapters", "task_heads"),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


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
    return {name for node in nodes(path) for name in imported(node)}


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


def test_consoles_are_terminals_that_no_name_commands() -> None:
    made = [
        (name, node.lineno)
        for name, path in BY_NAME.items()
        for node in nodes(path)
        if isinstance(node, ast.Call) and "Console" in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
    ]
    assert made == []


def test_import_law() -> None:
    for name, path in BY_NAME.items():
        room = name.partition("/")[0]
        reached = {module.split(".")[0] for module in all_imports(path)}
        assert (reached & set(ROOMS)) <= MAY_IMPORT[room], name
        if room == "dynammo_core" and name != "dynammo_core/wire/envelope.py":
            assert not reached & set(FLOWER), name


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
        for name, path in BY_NAME.items()
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and records & {alias.name for alias in node.names}
    }
    assert users == {
        "client/hospital/door.py",
        "dynammo_core/wire/envelope.py",
        "simulations/bench/engines/plain_flower.py",
        "simulations/bench/growth.py",
        "simulations/comparisons/wires.py",
    }


def test_private_modules_of_flower_are_used_in_few_files() -> None:
    """The local grid, the envelope, the gate and what starts Flower's programs behind it, a site's processes."""
    public = {"flwr", "flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp"}
    users = {
        name
        for name, path in BY_NAME.items()
        for node in nodes(path)
        for module in _modules_of_flower(node)
        if module not in public
    }
    assert users == {
        "dynammo_core/wire/envelope.py",
        "simulations/engines/local_grid.py",
        "server/gate/gate.py",
        "server/gate/signatures.py",
        "server/consortium/control_api.py",
        "server/consortium/flower_app.py",
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


def test_a_method_derives_from_method_alone() -> None:
    """What methods share are functions, so that what a method does stands in its own file."""
    assert {name: method.__bases__ for name, method in METHODS.items()} == dict.fromkeys(METHODS, (Method,))


def test_nobody_asks_for_a_stages_name() -> None:
    """A stage carries what it does; its name is for people, logs and seeds."""
    asked = [
        (name, node.lineno)
        for name, path in BY_NAME.items()
        for node in nodes(path)
        if isinstance(node, ast.Compare | ast.Match) and _asks(node)
    ]
    assert asked == []


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
        ("dynammo_core.wire.protocol", ("torch", "dynammo_core.models.", "dynammo_core.methods")),
        ("client.consent.approvals", ("torch", "flwr")),
        ("server.consortium.launch", ("torch", "flwr")),
        ("server.jobs.jobs", ("torch", "flwr")),
        ("server.run_directory.extension", ("torch", "flwr")),
    ],
)
def test_settings_a_plan_and_a_message_are_read_without_networks(module: str, unneeded: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    names = set(loaded.stdout.split()) - {"dynammo_core.models.names"}
    assert module.rpartition(".")[0] in names
    assert not [name for name in names if name.startswith(unneeded)]


def test_command_lines_start_without_networks(tmp_path: Path) -> None:
    """What a person waits for: a module of PyTorch or Flower takes a second, so none is loaded."""
    program = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from client.cli import app as site
from server.cli import app as server
from server.consortium.consortium import make_consortium
from simulations.cli import app as researcher
make_consortium(Path("consortium"), ["localhost"], port=9, listen="127.0.0.1")
Path("site.yaml").write_text("{site: a, superlink: 'a:1', ca_certificate: ca.pem, data: {dataset: digits, root: .}}")
configs, runner = sys.argv[1:], CliRunner()
for app, words in (
    (researcher, ["--help"]),
    (researcher, ["validate", *configs]),
    (server, ["status", "--once"]),
    (site, ["approve"]),
    (site, ["approve", "--config", configs[0], "--list"]),
):
    if (done := runner.invoke(app, words)).exit_code:
        sys.exit(f"{words} {done.output} {done.exception!r}")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    configs = [path for path in sorted((ROOT / "configs").glob("*.yaml")) if "timm/" not in path.read_text()]
    assert len(configs) > 5  # a network of timm is looked up in timm
    command = [sys.executable, "-c", program, *map(str, configs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "torchvision", "timm", "flwr", "ray"} & set(done.stdout.split())


def test_server_and_client_never_name_a_method() -> None:
    of_this_package = {"server/run_directory/start.py", "client/doctor/checks.py"}  # its name, and its version
    for name, path in BY_NAME.items():
        if not name.startswith(("server/", "client/")):
            continue
        docstrings = {id(docstring) for docstring in _docstrings(path)}
        named = {
            node.value
            for node in nodes(path)
            if isinstance(node, ast.Constant) and node.value in METHODS and id(node) not in docstrings
        }
        assert named <= ({"dynammo"} if name in of_this_package else set()), name
        of_methods = {module for module in all_imports(path) if module.startswith("dynammo_core.methods")}
        allowed = ("dynammo_core.methods.base", "dynammo_core.methods.rehearsal")
        assert all(module.startswith(allowed) for module in of_methods), name


def _docstrings(path: Path) -> Iterator[ast.Constant]:
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            statement = node.body[0]
            assert isinstance(statement, ast.Expr)
            assert isinstance(statement.value, ast.Constant)
            yield statement.value


def test_files_are_short() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in BY_NAME.items()}
    assert {name: count for name, count in lines.items() if count > 300} == {}


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


def test_public_things_say_what_they_are_for() -> None:
    """Modules, classes, functions; a method that overrides says what its base says, so methods are the linter's."""
    silent = [
        f"{name}: {node.name}"
        for name, path in BY_NAME.items()
        for node in tree(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert silent == []
    written = {name: path for name, path in BY_NAME.items() if not name.endswith("__init__.py") or path.read_text()}
    assert [name for name, path in written.items() if ast.get_docstring(tree(path)) is None] == []
