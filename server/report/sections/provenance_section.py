"""Fill the report's section on how a run was made: when, where, with which versions, and how to make it again."""

from __future__ import annotations

from datetime import UTC, datetime

from server.run_directory.run_files import Json, RunFiles

TEMPLATE = r"""
{% if provenance %}
<h2>How it was made</h2>
<dl class="facts">
{% for title, value, note in provenance %}
  {{ fact(title, value, note) }}
{% endfor %}
</dl>
{% endif %}
"""
"""A template that is used with the page's own macros."""


def provenance_section(run: RunFiles) -> list[tuple[str, str, str]]:
    """Return titles, values and remarks; what a run of an earlier version did not log is left out."""
    if not run.started:
        return []
    first, ended = run.of_kind("run_started")[0], run.of_kind("run_finished")
    hospitals = bool(run.started.get("approval"))
    machine, versions = run.started.get("machine"), run.started.get("versions")
    rows = [
        ("Started", _moment(first), "once more " + _moment(run.started) if first is not run.started else ""),
        ("Finished", _moment(ended[-1]) if ended else "not yet", ""),
    ]
    if machine:
        gpu = "no GPU" if machine["gpu"] == "none" else machine["gpu"]
        where = "the server’s; sites have their own" if hospitals else ""
        rows.append(("Machine", f"{machine['processor']}, {machine['cores']} cores, {gpu}, {machine['system']}", where))
    if versions:
        rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()), ""))
    command = "dynammo-server run config.yaml" if hospitals else "dynammo-sim run config.yaml"
    return [*rows, ("To make it again", command, "config.yaml in this directory holds every setting")]


def _moment(event: Json) -> str:
    return f"{datetime.fromtimestamp(event['time'], UTC):%Y-%m-%d %H:%M} UTC" if "time" in event else "–"
