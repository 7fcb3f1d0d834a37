"""`dynammo-site doctor`: everything that would keep a site from taking part, each in one line with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from client.doctor.findings import Finding
from dynammo_core.support.errors import DataError, DynammoError
from dynammo_core.support.terminal import Terminal, printable

if TYPE_CHECKING:
    from client.consent.settings import SiteSettings
    from dynammo_core.configuration.config import Config

Advance = Callable[[int, int], None]
STYLES = {"ok": "green", "note": "blue", "warning": "yellow", "wrong": "bold red"}


def doctor(
    site_yaml: Annotated[Path, typer.Argument(metavar="SITE.YAML", help="The site's settings.")] = Path("site.yaml"),
    experiment: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="The experiment's YAML: its classes and weights.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without the names of images.")] = False,
) -> None:
    """Check all that a site needs: software, GPU, disks, keys, TLS, clock, authentication, data; exit code 1 if not."""
    from dynammo_core.data.sheet.show import progress

    console, findings = Terminal(highlight=False, emoji=False), []  # a fingerprint may hold ":cd:"
    with progress("decoding images", hidden=as_json) as advance:
        for finding in examine(site_yaml, experiment, advance):
            findings.append(finding)
            if not as_json:
                _show(console, finding)
    wrong = any(finding.state == "wrong" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ready": not wrong, "findings": [_public(finding) for finding in findings]}, indent=2))
    raise typer.Exit(1 if wrong else 0)


def examine(site_yaml: Path, experiment: Path | None, advance: Advance) -> Iterator[Finding]:
    """Yield the findings of every check, quick ones first; a check that breaks says so and does not stop the others.

    Args:
        site_yaml: the site's settings.
        experiment: an experiment's configuration, or none: then what depends on it is left out.
        advance: is told how many images of how many are decoded.
    """
    from client.consent.settings import load_site
    from client.doctor import checks as doctor_checks
    from client.doctor.connection import connection_findings
    from client.doctor.data import data
    from dynammo_core.configuration.config import load_config

    settings: SiteSettings | None = None
    config: Config[Any] | None = None

    def read_settings() -> Iterator[Finding]:
        nonlocal settings
        settings = load_site(site_yaml)
        yield Finding("settings", "ok", f"{site_yaml} is the site {settings.site}")

    def read_experiment(path: Path) -> Iterator[Finding]:
        nonlocal config
        config = load_config(path)
        yield from doctor_checks.membership(settings, config) if settings else ()

    yield from _guarded("software", doctor_checks.software)
    yield from _guarded("settings", read_settings)
    if experiment is not None:
        yield from _guarded("experiment", read_experiment, experiment)
    if settings is None:
        return
    yield from _guarded("GPU", doctor_checks.gpu, settings)
    yield from _guarded("disk", doctor_checks.disks, settings, config)
    yield from _guarded("secrets", doctor_checks.secrets, settings)
    yield from _guarded("approval", doctor_checks.governance, settings, config)
    yield from _guarded("connection", connection_findings, settings)
    if config is not None:
        yield from _guarded("weights", doctor_checks.weights, settings, config)
    yield from _guarded("data", data, settings, config, advance)


def _guarded(name: str, check: Callable[..., Iterable[Finding]], *arguments: object) -> Iterator[Finding]:
    try:
        yield from check(*arguments)
    except DataError as error:  # it names images
        yield Finding(name, "wrong", "the data set cannot be opened", details=(str(error),))
    except DynammoError as error:
        yield Finding(name, "wrong", str(error))
    except Exception as error:  # whatever breaks here, the engineer wants to know the rest too
        what = f"this check broke off ({type(error).__name__})"
        yield Finding(name, "wrong", what, "It is a defect of dynammo-site: report it", details=(str(error),))


def _public(finding: Finding) -> dict[str, str]:
    """Return findings as plain data without the details, which may name patients: JSON travels beyond the screen."""
    return {"check": finding.check, "state": finding.state, "what": finding.what, "remedy": finding.remedy}


def _show(console: Terminal, finding: Finding) -> None:
    style = STYLES[finding.state]
    line = f"[{style}]{finding.state:<8}[/]{finding.check:<22} {escape(printable(finding.sentence))}"
    console.print(line, soft_wrap=True)
    for detail in finding.details:
        console.say(f"{'':30} {detail}")
