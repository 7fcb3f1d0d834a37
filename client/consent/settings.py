"""What a hospital configures for itself: `site.yaml`, which no server can see or change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from client.state.run_folders import RUNS
from dynammo_core.configuration.settings import SITE_NAME, Section
from dynammo_core.data.datasets import DATASETS
from dynammo_core.memory.encryption import KEY_PLACES
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import read_yaml, validate


class SiteData(Section):
    """Where this site's images are."""

    dataset: Annotated[str, DATASETS] = Field(
        default="manifest", description="how they are laid out: manifest, image_folder, or another"
    )
    root: str = Field(description="the manifest, or the folder of the images")


class SiteMemory(Section):
    """The replay memory on this site's disk."""

    folder: Path = Field(default=Path("memory"), description="where exemplars are kept")
    key: str | None = Field(
        default=None, description=f"encrypts them: {KEY_PLACES} of 32 bytes in base64; without it, plain files"
    )
    expiry_days: int | None = Field(default=None, ge=1, description="exemplars older than this are dropped")
    features_megabytes: int = Field(
        default=1024, ge=0, description="disk space for features of images, kept from round to round; 0: none"
    )
    answers_megabytes: int = Field(
        default=2048, ge=1, description="disk space for each run's answers, given again where the same is asked again"
    )
    answers_days: int = Field(default=90, ge=1, description="answers older than this are dropped, and not given again")


class SiteSettings(Section):
    """One site: its name, its server, its images and its memory. Relative paths start beside `site.yaml`."""

    site: str = Field(pattern=SITE_NAME, description="the name under which the operator registers this site")
    superlink: str = Field(pattern=r"^[^\s/:]+:\d+$", description="host:port of the consortium's SuperLink")
    ca_certificate: Path = Field(default=Path("ca.pem"), description="the certificate authority of the consortium")
    private_key: Path = Field(default=Path("site.key"), description="proves to the SuperLink who we are; never sent")
    data: SiteData
    memory: SiteMemory = SiteMemory()
    weights: str | None = Field(default=None, description="file of the backbone's weights; default: as the experiment")
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N of this machine")
    state: Path = Field(default=Path("state"), description="folder for Flower's own files")
    log: Path = Field(default=Path("site.log"), description="what the site did, and why a step failed")
    audit: Path = Field(default=Path("audit.jsonl"), description="the audit log: what left the site, line by line")
    approval: Literal["required", "off"] = Field(
        default="required", description="whether a person must approve an experiment before it runs here"
    )
    approvals: Path = Field(default=Path("approvals"), description="folder of what waits, and of what was decided")
    policy: Path | None = Field(default=None, description="what this site takes part in at all; default: anything")

    @field_validator("approval", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a plain `off` as false.
        return "off" if value is False else value


def load_site(path: Path) -> SiteSettings:
    """Read a `site.yaml`; every path in the result is absolute.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is invalid (the error names file, line and key);
            or two things lie in one place, or one of the site's own among the memories of runs.
    """
    data, tree = read_yaml(path)
    settings = validate(SiteSettings, data, str(path), tree)
    base = path.absolute().parent

    def place(value: Path | str) -> Path:
        return base / Path(value).expanduser()

    if place(settings.state) == place(settings.memory.folder):
        raise ConfigError(
            f"{path}: state and memory.folder are both {place(settings.state)}", remedy="Flower's files need their own"
        )
    if place(settings.audit) == place(settings.log):
        raise ConfigError(
            f"{path}: log and audit are both {place(settings.log)}", remedy="Each line of the audit log seals the last"
        )
    runs = _real(place(settings.memory.folder / RUNS))
    for name in ("state", "approvals", "log", "audit"):
        if _real(place(getattr(settings, name))).is_relative_to(runs):
            raise ConfigError(
                f"{path}: {name} is {place(getattr(settings, name))}, in the folder of the runs' memories",
                accepted=f"a place outside of {runs}",
                remedy="Who starts a run names what lies there",
            )
    key = settings.memory.key
    if key is not None and key.startswith("file:"):
        key = f"file:{place(key.removeprefix('file:'))}"
    return settings.model_copy(
        update={
            "ca_certificate": place(settings.ca_certificate),
            "private_key": place(settings.private_key),
            "data": settings.data.model_copy(update={"root": str(place(settings.data.root))}),
            "memory": settings.memory.model_copy(update={"folder": place(settings.memory.folder), "key": key}),
            "weights": settings.weights and str(place(settings.weights)),
            "state": place(settings.state),
            "log": place(settings.log),
            "audit": place(settings.audit),
            "approvals": place(settings.approvals),
            "policy": settings.policy and place(settings.policy),
        }
    )


def _real(path: Path) -> Path:
    """Return where a path leads, links followed.

    Raises:
        ConfigError: it leads nowhere, as in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} leads nowhere: {error}", accepted="a path with an end") from None
