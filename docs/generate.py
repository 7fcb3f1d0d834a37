"""Write the parts of the reference pages that the code decides: `make docs`. A test compares the pages with the code.

Such a part stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else of a page is written by hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from client.cli import app as site_app
from client.consent.policy import Policy
from client.consent.settings import SiteSettings
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method
from dynammo_core.plan import Stage, Summarise
from server.cli import app as server_app
from server.consortium.settings import ServerSettings
from simulations.cli import app as simulation_app

PAGES = Path(__file__).parent / "reference"
PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))

Row = Sequence[str]


def render(page: str) -> str:
    """Return the page with every generated part made anew."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", page)


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table; `|` within a cell is escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines).replace("| --- ", "|---")


def commands(program: str, app: typer.Typer) -> str:
    """Return a table of every command of a program with the first sentence of its help."""
    rows: list[Row] = []

    def walk(command: Any, words: str) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{words} {name}")
        if not hasattr(command, "commands"):
            rows.append((f"`{words}`", str(command.help).split("\n\n")[0].replace("\n", " ")))

    walk(typer.main.get_command(app), program)
    return table(("Command", "What it does"), rows)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, str]]:
    """Yield the key, the field and the description of every setting, those of nested sections too."""
    for name, field in model.model_fields.items():
        nested = getattr(field.annotation, "__bound__", field.annotation)  # a section's type may be a variable
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if not issubclass(nested, Optimisation):
                yield from leaves(nested, f"{prefix}{name}.")
        elif not field.exclude:
            yield f"{prefix}{name}", field, _description(model, name)


def _description(model: type[BaseModel], name: str) -> str:
    """Return what a field means; a model that only changes a default inherits the description."""
    fields = [above.model_fields[name] for above in model.__mro__ if name in getattr(above, "model_fields", {})]
    return next((field.description for field in fields if field.description), "")


def accepts(field: FieldInfo) -> str:
    """Return which values a setting takes: its words, or its bounds, or nothing if the description has to say it."""
    words = [word for kind in (field.annotation, *get_args(field.annotation)) for word in _words(kind)]
    bounds = [
        f"{sign} {getattr(bound, name):g}" for bound in field.metadata for name, sign in BOUNDS if hasattr(bound, name)
    ]
    return ", ".join([*(f"`{word}`" for word in dict.fromkeys(words)), *bounds])


def _words(kind: Any) -> tuple[Any, ...]:
    return ("true", "false") if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()


def default(field: FieldInfo) -> str:
    """Return a setting's default as one writes it in YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    written = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{written}`"


def settings(model: type[BaseModel]) -> str:
    """Return a table of all settings of a model."""
    rows = [(f"`{key}`", accepts(field), default(field), meaning) for key, field, meaning in leaves(model)]
    return table(("Key", "Accepts", "Default", "Meaning"), rows)


def parameters() -> str:
    """Return a table of what each method adds to the section `method`; methods that agree share a row."""
    found: dict[Row, list[str]] = {}
    for name, method in METHODS.items():
        for key, field, meaning in leaves(method.Params):
            if key != "name":
                found.setdefault((f"`method.{key}`", accepts(field), default(field), meaning), []).append(name)
    rows = [
        (key, ", ".join(f"`{name}`" for name in names), values, given, meaning)
        for (key, values, given, meaning), names in sorted(found.items(), key=lambda item: item[0][0].strip("`"))
    ]
    return table(("Key", "Methods", "Accepts", "Default", "Meaning"), rows)


def stage_columns() -> Mapping[str, Optimisation]:
    """Return the defaults of each training stage by its name; of a method that differs by `method: stage`."""
    by_stage: dict[str, dict[str, Optimisation]] = {}
    for name, method in METHODS.items():
        for stage, field in method.Params.model_fields.items():
            if isinstance(field.default, Optimisation):
                by_stage.setdefault(stage, {})[name] = field.default
    usual = {stage: _most_common(list(given.values())) for stage, given in sorted(by_stage.items())}
    others = {
        f"{name}: {stage}": given
        for stage, by_method in sorted(by_stage.items())
        for name, given in by_method.items()
        if given != usual[stage]
    }
    return usual | others


def _most_common(given: Sequence[Optimisation]) -> Optimisation:
    counts = Counter(one.model_dump_json() for one in given)
    return next(one for one in given if one.model_dump_json() == counts.most_common(1)[0][0])


def stages() -> str:
    """Return a table of the settings of a training stage, with a column of defaults for each stage."""
    columns = stage_columns()
    rows = []
    for key, field, meaning in leaves(Optimisation):
        given = (FieldInfo(default=getattr(column, key)) for column in columns.values())
        rows.append((f"`{key}`", accepts(field), *map(default, given), meaning))
    return table(("Key", "Accepts", *(f"`{name}`" for name in columns), "Meaning"), rows)


def travelling_stages() -> Iterator[tuple[str, Stage]]:
    """Yield each method's name and each of its stages: those of the first task alone, then those of a second task.

    A method that merges is taken with the one merge operator that has a stage of its own.
    """
    stream = TaskStream(((0, 1), (2, 3)))
    for name, method in METHODS.items():
        merging = {"merge": "fisher"} if "merge" in method.Params.model_fields else {}
        made = method(method.Params(name=name, **merging), stream)
        first, second = made.all_stages(0), [*made.all_stages(1), *corrections(made)]
        names = {stage.name for stage in second}
        for stage in (*(stage for stage in first if stage.name not in names), *second):
            yield name, stage


def corrections(method: Method[Any]) -> list[Stage]:
    """Return the stages beside the plan, in which records leave the sums that the server keeps."""
    found = (stage.correction() for stage in method.stages(1) if isinstance(stage, Summarise))
    return [stage for stage in found if stage]


def travelling() -> str:
    """Return a table of the tensors that go down to a site and come up from it; methods that agree share a row."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, stage in travelling_stages():
        cells = (f"`{stage.name}`", f"`{stage.action.value}`", _patterns(stage.down), _patterns(stage.up))
        found.setdefault(cells, []).append(f"`{name}`")
    rows = [(stage, action, ", ".join(names), down, up) for (stage, action, down, up), names in found.items()]
    return table(("Stage", "Action", "Methods", "Down, to the site", "Up, from the site"), rows)


def _patterns(patterns: Sequence[str]) -> str:
    return ", ".join(f"`{pattern}`" for pattern in patterns) or "nothing"


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "dynammo-sim": lambda: commands("dynammo-sim", simulation_app),
        "dynammo-server": lambda: commands("dynammo-server", server_app),
        "dynammo-site": lambda: commands("dynammo-site", site_app),
        "experiment": lambda: settings(Config),
        "parameters": parameters,
        "stages": stages,
        "travelling": travelling,
        "site-yaml": lambda: settings(SiteSettings),
        "policy-yaml": lambda: settings(Policy),
        "server-yaml": lambda: settings(ServerSettings),
    }
)

if __name__ == "__main__":
    for file in sorted(PAGES.glob("*.md")):
        file.write_text(render(file.read_text(encoding="utf-8")), encoding="utf-8")
