"""`dynammo-site init`: write a commented site.yaml and policy.yaml, a key pair and a memory key; overwrite nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from client.consent.settings import SiteSettings, load_site
from dynammo_core.configuration.settings import SITE_NAME
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, readable_errors

PRIVATE_KEY, MEMORY_KEY, POLICY = "site.key", "memory.key", "policy.yaml"
SUPERLINK = r"^[^\s/:]+:\d+$"
CA, MEMORY, STATE = "ca.pem", "memory", "state"
TEMPLATE = """\
# Settings of one site, for `dynammo-site`. No server can see or change them. Relative paths start beside this file.

# The name under which the operator registers this site: small letters, digits and hyphens.
site: {site}
# host:port of the consortium's SuperLink, from the operator.
superlink: {superlink}
# The certificate of the consortium's authority, from the operator. This site trusts no other server.
ca_certificate: {ca}
# Identifies this site to the SuperLink. It is never sent; the operator gets {private_key}.pub.
private_key: {private_key}

data:
  # How the images are laid out: manifest (a CSV file), image_folder (one folder per class), or another data set.
  dataset: {dataset}
  # The manifest file, or the folder of images. Images are read there and never sent.
  root: {data}

memory:
  # Folder for images kept for rehearsal. It must belong to the site's account, with mode 0700.
  folder: {memory}
  # Encrypts them: file:PATH, env:NAME or keyring:SERVICE/ACCOUNT of 32 bytes in base64. Without this key nobody can
  # read them: keep a copy in a safe place.
  key: {memory_key}
  # Drop images after this many days; remove the # to use it.
  # expiry_days: 365
  # Disk space for image features, which later rounds then need not compute again; 0 keeps none.
  # features_megabytes: 1024
  # Disk space for decoded images, which later messages then need not decode again; 0 keeps none.
  # images_megabytes: 16000
  # Disk space for each run's answers, and how many days they are kept: the same question gets the same answer again.
  # Once an answer has been dropped, its question is refused.
  # answers_megabytes: 2048
  # answers_days: 90

# File of the backbone's weights on this machine, if the experiment names one; remove the # to use it.
# weights: /srv/weights/backbone.pth
# Device to compute on: auto (a GPU, if there is one), cpu, cuda or cuda:N.
device: auto
# Memory that the site may take on a GPU, in MB; all that is free, if it is not named.
# device_megabytes: 8000
# Folder for Flower's own files.
state: {state}
# Log of what the site did and why a step failed. It may name images, so it stays here.
log: site.log
# Audit log: a line for each answer that left, see `dynammo-site audit`. Never edit or rotate it: lines are chained.
audit: audit.jsonl
# required: nothing runs before a person approves it: `dynammo-site approve`; off: whatever the operator submits runs.
approval: required
# Folder for experiments that wait for approval, and for decisions.
approvals: approvals
# Limits on the experiments that this site takes part in.
policy: {policy}
"""
console = Terminal(highlight=False, emoji=False)


def init(
    site: Annotated[str | None, typer.Option(help="Name of the site: small letters, digits, hyphens.")] = None,
    superlink: Annotated[str | None, typer.Option(help="host:port of the SuperLink, from the operator.")] = None,
    data: Annotated[str | None, typer.Option(help="The manifest file, or the folder of images.")] = None,
    dataset: Annotated[str | None, typer.Option(help="manifest, image_folder, or another data set.")] = None,
    memory: Annotated[str | None, typer.Option(help="Folder for the exemplars.")] = None,
    ca: Annotated[str | None, typer.Option(help="The consortium's ca.pem.")] = None,
    output: Annotated[Path, typer.Option(help="The file to write; keys go beside it.")] = Path("site.yaml"),
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask no questions; refuse missing values.")] = False,
) -> None:
    """Set up a site: write site.yaml, create its keys, and say what to send to the operator."""
    with readable_errors():
        _refuse_what_is_there(output)
        options = {"site": site, "superlink": superlink, "dataset": dataset, "data": data, "memory": memory, "ca": ca}
        settings, key_print = write_site(output, options if no_input else _asked(options))
        private = settings.private_key
        for line in (
            f"Written: {output}, {settings.policy}, {private}, {private}.pub, {private.with_name(MEMORY_KEY)}",
            "",
            "Send to the operator:",
            f"  the file           {private}.pub",
            f"  the site's name    {settings.site}",
            "Read this to the operator over the telephone, so that nobody can substitute another key:",
            f"  the fingerprint    {key_print}",
            "",
            f"Keep a copy of {private.with_name(MEMORY_KEY)} in a safe place: without it nobody can read the memory.",
            *([] if settings.ca_certificate.exists() else [f"Put the operator's ca.pem at {settings.ca_certificate}."]),
            f"Set this site's limits in {settings.policy}. Then run: dynammo-site doctor {output}",
        ):
            console.say(line)


def write_site(output: Path, options: Mapping[str, str | None]) -> tuple[SiteSettings, str]:
    """Write a site's settings and keys: all of them or none.

    Args:
        output: the YAML file, which must not exist yet; the keys go beside it.
        options: site, superlink, data, and optionally dataset, memory and ca; relative paths start in the working
            directory.

    Returns:
        The settings as they are read again, and the fingerprint of the public key.

    Raises:
        ConfigError: a value is missing or invalid, a file exists already, or one cannot be written.
    """
    from client.consent.policy import POLICY_TEMPLATE
    from client.state.node_key import fingerprint, load_private_key, new_key_pair
    from dynammo_core.memory.encryption import new_key_file

    text = _site_yaml(options)
    _refuse_what_is_there(output)
    private, public = new_key_pair(str(options["site"]))
    folder = output.absolute().parent
    key = folder / PRIVATE_KEY
    written: list[Path] = []

    def write(path: Path, make: Callable[[Path], None]) -> None:
        make(path)
        written.append(path)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(key, lambda path: _write_new(path, private, 0o600))
        write(folder / f"{PRIVATE_KEY}.pub", lambda path: _write_new(path, public, 0o644))
        write(folder / MEMORY_KEY, new_key_file)
        write(folder / POLICY, lambda path: _write_new(path, POLICY_TEMPLATE.encode(), 0o644))
        write(output, lambda path: _write_new(path, text.encode(), 0o644))
        settings = load_site(output)
        for private_folder in (settings.memory.folder, settings.state):
            if not private_folder.exists():
                private_folder.mkdir(mode=0o700, parents=True)
                written.append(private_folder)
        return settings, fingerprint(load_private_key(key))
    except BaseException as error:
        for path in reversed(written):
            path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, OSError):
            remedy = "Give write permission there, or choose another --output"
            raise ConfigError(f"the site cannot be written: {error}", remedy=remedy) from error
        raise


def _site_yaml(options: Mapping[str, str | None]) -> str:
    """Return the text of site.yaml. Every JSON string is also a YAML string."""
    missing = [name for name in ("site", "superlink", "data") if not options.get(name)]
    if missing:
        what = f"missing: {', '.join(f'--{name}' for name in missing)}"
        raise ConfigError(what, remedy="Add them, or drop --no-input to be asked")
    options = {**options, "dataset": options.get("dataset") or "manifest"}
    for name, check in CHECKS.items():
        if options.get(name):
            check(str(options[name]))
    _is_there(str(options["data"]), str(options["dataset"]))
    places = {"ca": CA, "memory": MEMORY}
    values = {name: str(options.get(name) or default) for name, default in places.items()}
    # A default lies beside site.yaml; a typed path is relative to the working directory.
    values = {
        name: value if value == places[name] else str(Path(value).expanduser().absolute())
        for name, value in values.items()
    }
    values |= {"site": str(options["site"]), "superlink": str(options["superlink"])}
    values |= {"data": str(Path(str(options["data"])).expanduser().absolute())}
    values |= {"dataset": str(options["dataset"]), "state": STATE}
    quoted = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return TEMPLATE.format(private_key=PRIVATE_KEY, memory_key=f"file:{MEMORY_KEY}", policy=POLICY, **quoted)


def _asked(options: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the given options, and ask for the rest until each answer is valid."""
    questions = {
        "site": ("Name of this site, as agreed with the operator", None),
        "superlink": ("The SuperLink's host:port", None),
        "dataset": ("Layout of the images (manifest, image_folder, ...)", "manifest"),
        "data": ("The manifest file, or the folder of images", None),
        "memory": ("Folder for the chosen images (the memory)", MEMORY),
        "ca": ("The consortium's certificate (ca.pem, from the operator)", CA),
    }

    def checked(name: str) -> Callable[[str], str]:
        def check(value: str) -> str:
            try:
                CHECKS.get(name, str)(value)
                if name == "data":
                    _is_there(value, str(answers["dataset"]))
            except ConfigError as error:
                raise typer.BadParameter(str(error)) from error
            return value

        return check

    answers = dict(options)
    for name, (question, default) in questions.items():
        if not options[name]:
            answers[name] = typer.prompt(question, default=default, value_proc=checked(name))
    return answers


def _is_site_name(name: str) -> None:
    if not re.fullmatch(SITE_NAME, name):
        raise ConfigError(
            f"{name!r} is not a valid site name",
            accepted="small letters, digits and hyphens, such as st-elsewhere",
        )


def _is_address(address: str) -> None:
    if not re.fullmatch(SUPERLINK, address):
        raise ConfigError(f"{address!r} is not an address", accepted="host:port, such as superlink.example.org:9092")


def _is_dataset(name: str) -> None:
    from dynammo_core.data.datasets import DATASETS

    DATASETS.find(name, "data.dataset")


def _is_there(data: str, dataset: str) -> None:
    """Refuse a manifest or a folder of images that is not there; other data sets may fetch theirs."""
    place = Path(data).expanduser()
    if dataset == "manifest" and not place.is_file():
        what = f"there is no file {place}"
        raise ConfigError(what, accepted="the manifest, a CSV file", remedy="Write the manifest first")
    if dataset == "image_folder" and not place.is_dir():
        raise ConfigError(f"there is no folder {place}", accepted="the folder that holds one folder per class")


def _is_folder(memory: str) -> None:
    place = Path(memory).expanduser()
    if os.path.lexists(place) and not place.is_dir():
        raise ConfigError(f"{place} is a file", accepted="a folder for the exemplars, which need not exist yet")


def _is_certificate(ca: str) -> None:
    """Refuse a file that is none; one that is not there yet can be put there later."""
    from cryptography import x509

    place = Path(ca).expanduser()
    try:
        found, *more = x509.load_pem_x509_certificates(place.read_bytes())
        if not (more or found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca):
            what = f"{place} is the certificate of a server, not of an authority"
            raise ConfigError(what, remedy="Ask the operator for ca.pem")
    except (FileNotFoundError, x509.ExtensionNotFound):
        return
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place} is no certificate in PEM format", remedy="Ask the operator for ca.pem") from error


CHECKS: Mapping[str, Callable[[str], object]] = {
    "site": _is_site_name,
    "superlink": _is_address,
    "dataset": _is_dataset,
    "memory": _is_folder,
    "ca": _is_certificate,
}


def _refuse_what_is_there(output: Path) -> None:
    folder = output.absolute().parent
    names = (PRIVATE_KEY, f"{PRIVATE_KEY}.pub", MEMORY_KEY, POLICY)
    there = [path for path in (output, *(folder / name for name in names)) if os.path.lexists(path)]
    if there:
        raise ConfigError(
            f"already exists: {', '.join(map(str, there))}; nothing was written",
            remedy="Use these files, move them away, or choose an --output in another folder. A key that the operator "
            "knows, or that a memory depends on, cannot be recreated",
        )


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a new file: whole or not at all."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        path.chmod(mode)
    except BaseException:
        path.unlink()
        raise
