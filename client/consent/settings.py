"""Read what a hospital configures for itself: `site.yaml`, which no server can see or change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dynammo_core.configuration.settings import SITE_NAME
from dynammo_core.data.datasets import DATASETS
from dynammo_core.memory.encryption import KEY_PLACES
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import Section, read_yaml, validate

RUNS = "runs"
"""Folder in the memory folder that holds what a site keeps of each run."""


class SiteData(Section):
    """Where this site's images are."""

    dataset: Annotated[str, DATASETS] = Field(
        default="manifest", description="layout of the images: manifest, image_folder, or a data set's name"
    )
    root: str = Field(description="the manifest file, or the folder of images")


class SiteMemory(Section):
    """The replay memory on this site's disk."""

    folder: Path = Field(
        default=Path("memory"), description="folder of the replay memories and of the site's other state"
    )
    key: str | None = Field(
        default=None, description=f"key that encrypts them: {KEY_PLACES} of 32 bytes in base64; null: plain files"
    )
    expiry_days: int | None = Field(default=None, ge=1, description="drop exemplars that are older")
    features_megabytes: int = Field(
        default=1024, ge=0, description="disk space for features of frozen layers; 0 keeps none"
    )
    images_megabytes: int = Field(
        default=16_000,
        ge=0,
        description="disk space for decoded images; 0: decode them for each message",
    )
    answers_megabytes: int = Field(default=2048, ge=1, description="disk space for the recorded answers of each run")
    answers_days: int = Field(default=90, ge=1, description="drop recorded answers that are older")


class SiteSettings(Section):
    """One site: its name, its server, its images and its memory. Relative paths start beside `site.yaml`."""

    site: str = Field(pattern=SITE_NAME, description="name under which the operator registers this site")
    superlink: str = Field(pattern=r"^[^\s/:]+:\d+$", description="host:port of the consortium's SuperLink")
    ca_certificate: Path = Field(default=Path("ca.pem"), description="certificate of the consortium's authority")
    private_key: Path = Field(default=Path("site.key"), description="key that identifies the site; it is never sent")
    data: SiteData
    memory: SiteMemory = SiteMemory()
    weights: str | None = Field(
        default=None, description="file of the backbone's weights on this machine; null: as the experiment says"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    device_megabytes: int | None = Field(
        default=None, ge=1, description="memory that the site may take on a GPU, in MB; null: all that is free"
    )
    state: Path = Field(default=Path("state"), description="folder for Flower's own files")
    log: Path = Field(
        default=Path("site.log"), description="log of what the site did and why a step failed; it may name images"
    )
    audit: Path = Field(default=Path("audit.jsonl"), description="audit log of what left the site")
    approval: Literal["required", "off"] = Field(
        default="required",
        description="required: nothing runs before a person approves it; off: all that the operator submits runs",
    )
    approvals: Path = Field(default=Path("approvals"), description="folder of proposals and decisions")
    policy: Path | None = Field(default=None, description="file of the site's policy; null: the defaults below")

    @field_validator("approval", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        # YAML reads a plain `off` as false.
        return "off" if value is False else value


def load_site(path: Path) -> SiteSettings:
    """Read a `site.yaml`; every path in the result is absolute.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is invalid (the error names file, line and key);
            or two settings name the same path, or one names a path among the memories of runs.
    """
    remedy = "Go to the folder that holds it, name it behind the command, or make one with `dynammo-site init`"
    data, tree = read_yaml(path, remedy=remedy)
    settings = validate(SiteSettings, data, str(path), tree)
    base = path.absolute().parent

    def place(value: Path | str) -> Path:
        return base / Path(value).expanduser()

    if place(settings.state) == place(settings.memory.folder):
        raise ConfigError(
            f"{path}: state and memory.folder are both {place(settings.state)}", remedy="Choose two different folders"
        )
    if place(settings.audit) == place(settings.log):
        raise ConfigError(f"{path}: log and audit are both {place(settings.log)}", remedy="Choose two different files")
    runs = _real(place(settings.memory.folder / RUNS))
    for name in ("state", "approvals", "log", "audit"):
        if _real(place(getattr(settings, name))).is_relative_to(runs):
            raise ConfigError(
                f"{path}: {name} is {place(getattr(settings, name))}, inside the folder of the runs' memories",
                accepted=f"a path outside {runs}",
                remedy="Choose another path: the operator chooses the names in that folder",
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
    """Return the path with links resolved.

    Raises:
        ConfigError: links form a loop.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be resolved: {error}", accepted="a path whose links do not form a loop"
        ) from None
