"""Show, in rows for pages and cards, what a run promised about its training images and what it has spent."""

from __future__ import annotations

from server.run_directory.run_files import Json, RunFiles


def privacy_rows(run: RunFiles) -> list[tuple[str, str]]:
    """Return pairs of a title and its text, with everything that is needed to interpret epsilon.

    A run without a summary, or from before there was privacy, has no rows.
    """
    if "privacy" not in run.summary:
        return []
    secure = run.config.get("federation", {}).get("secure_aggregation", False)
    seen = "only sums over sites (secure aggregation)" if secure else "each site's answers"
    facts = run.summary["privacy"]
    if facts is None:
        return [("Differential privacy", "none: weights may reveal training images"), ("The server sees", seen)]
    return [
        ("Epsilon, spent", _spent(facts)),
        ("Delta", f"{facts['delta']:g}"),
        ("Of", facts["neighbours"]),
        ("Mechanism", f"{facts['mechanism']}; noise multiplier {facts['noise_multiplier']:g}"),
        ("Accountant", facts["accountant"]),
        ("The server sees", seen),
    ]


def _spent(facts: Json) -> str:
    """Return what was spent, by the site that spent most if sites count for themselves."""
    by_site = "epsilon_by_site" in facts
    return f"{facts['epsilon']:.2f} of {facts['budget']:g}" + (", at the site that spent most" if by_site else "")
