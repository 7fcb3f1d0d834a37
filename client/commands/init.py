"""`dynammo-site init`: a commented site.yaml and policy.yaml, a key pair, a memory key; never in place of others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from client.consent.policy import POLICY_TEMPLATE
from client.consent.settings import SiteSettings, load_site
from dynammo_core.configuration.settings import SITE_NAME
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, readable_errors

PRIVATE_KEY, MEMORY_KEY, POLICY = "site.key", "memory.key", "policy.yaml"
SUPERLINK = r"^[^\s/:]+:\d+$"
CA, MEMORY, STATE = "ca.pem", "memory", "state"
TEMPLATE = """\
# One site of a federation, for `dynammo-site`; no server can see or change it. Relative paths start beside this file.

# The name under which the operator registers this site: small letters, digits and hyphens.
site: {site}
# host:port of the consortium's SuperLink, as the operator gave it.
superlink: {superlink}
# The certificate of the consortium's authority, which the operator gives out: no other server is believed.
ca_certificate: {ca}
# Proves to the SuperLink who we are. It is never sent; the operator gets {private_key}.pub.
private_key: {private_key}

data:
  # How the images are laid out: manifest (a CSV file), image_folder (a folder for each class), or another data set.
  dataset: {dataset}
  # The manifest, or the folder of the images. They are read there and never sent.
  root: {data}

memory:
  # Where chosen images are kept for rehearsal; needs an account's own folder, mode 0700.
  folder: {memory}
  # Encrypts them: file:PATH, env:NAME or keyring:SERVICE/ACCOUNT of 32 bytes in base64. Without this key nobody can
  # read them: keep a copy safe.
  key: {memory_key}
  # Images kept for more than so many days are dropped; remove the # to use it.
  # expiry_days: 365
  # Disk space for features of images, which later rounds would compute again; 0: none.
  # features_megabytes: 1024
  # Disk space for decoded images, which each message would decode again; 0: none.
  # images_megabytes: 16000
  # Disk space for each run's answers, and days that they are kept: the same question gets the same answer again. Of an
  # answer that had to go, the question stays, and is refused.
  # answers_megabytes: 2048
  # answers_days: 90

# The file of the backbone's weights on this machine, where the experiment names one; remove the # to use it.
# weights: /srv/weights/backbone.pth
# Where to compute: auto (a GPU, if there is one), cpu, cuda or cuda:N.
device: auto
# A folder for Flower's own files.
state: {state}
# What the site did, and why a step failed; it may name images, so it stays here.
log: site.log
# What left this site, a line for each answer: `dynammo-site audit`. Never edit or rotate it, its lines are chained.
audit: audit.jsonl
# Nothing runs on the images before a person here approved it: `dynammo-site approve`. Or off: whatever is asked runs.
approval: required
# A folder for what waits for an approval, and for what was decided.
approvals: approvals
# What this site takes part in at all.
policy: {policy}
"""
console = Terminal(highlight=False, emoji=False)


def init(
    site: Annotated[str | None, typer.Option(help="Name of the site: small letters, digits, hyphens.")] = None,
    superlink: Annotated[str | None, typer.Option(help="host:port that the operator gave you.")] = None,
    data: Annotated[str | None, typer.Option(help="The manifest, or the folder of the images.")] = None,
    dataset: Annotated[str | None, typer.Option(help="manifest, image_folder, or another data set.")] = None,
    memory: Annotated[str | None, typer.Option(help="Folder for the exemplars.")] = None,
    ca: Annotated[str | None, typer.Option(help="The consortium's ca.pem.")] = None,
    output: Annotated[Path, typer.Option(help="The file to write; keys go beside it.")] = Path("site.yaml"),
    no_input: Annotated[
        bool, typer.Option("--no-input", help="Ask for nothing; what is not given is refused.")
    ] = False,
) -> None:
    """Set up a site: write site.yaml, make its keys, and say what to send to the operator."""
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
            "Read to the operator over the telephone, so that nobody can put in a key of his own:",
            f"  the fingerprint    {key_print}",
            "",
            f"Keep a copy of {private.with_name(MEMORY_KEY)} in a safe place: without it the memory cannot be read.",
            *([] if settings.ca_certificate.exists() else [f"Put the operator's ca.pem at {settings.ca_certificate}."]),
            f"Say in {settings.policy} what this site takes part in. Then: dynammo-site doctor {output}",
        ):
            console.say(line)


def write_site(output: Path, options: Mapping[str, str | None]) -> tuple[SiteSettings, str]:
    """Write a site's settings and keys; all of them or none.

    Args:
        output: the YAML file, which is not there yet; the keys go beside it.
        options: site, superlink, data, and optionally dataset, memory and ca; relative paths start in the working
            directory.

    Returns:
        The settings as they are read again, and the fingerprint of the public key.

    Raises:
        ConfigError: a value is missing or wrong, something is there already, or a file cannot be written.
    """
    from client.service.node_key import fingerprint, load_private_key, new_key_pair
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
            raise ConfigError(
                f"the site cannot be written: {error}", remedy="Permit writing there, or name another --output"
            ) from error
        raise


def _site_yaml(options: Mapping[str, str | None]) -> str:
    """The text of site.yaml. JSON's strings are YAML's too."""
    missing = [name for name in ("site", "superlink", "data") if not options.get(name)]
    if missing:
        raise ConfigError(
            f"not given: {', '.join(f'--{name}' for name in missing)}",
            remedy="Give them, or leave --no-input out to be asked",
        )
    options = {**options, "dataset": options.get("dataset") or "manifest"}
    for name, check in CHECKS.items():
        check(str(options[name]))
    places = {"ca": CA, "memory": MEMORY}
    values = {name: str(options.get(name) or default) for name, default in places.items()}
    # A default lies beside site.yaml; what a person types is meant from where he is.
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
    """What is given, and the answers to questions about the rest; a wrong answer is asked for again."""
    questions = {
        "site": ("Name of this site, as agreed with the operator", None),
        "superlink": ("The SuperLink's host:port", None),
        "dataset": ("How are the images laid out (manifest, image_folder, ...)", "manifest"),
        "data": ("The manifest, or the folder of the images", None),
        "memory": ("Folder for the chosen images (the memory)", MEMORY),
        "ca": ("The consortium's certificate (ca.pem, from the operator)", CA),
    }

    def checked(name: str) -> Callable[[str], str]:
        def check(value: str) -> str:
            try:
                CHECKS.get(name, str)(value)
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


CHECKS: Mapping[str, Callable[[str], object]] = {
    "site": _is_site_name,
    "superlink": _is_address,
    "dataset": _is_dataset,
}


def _refuse_what_is_there(output: Path) -> None:
    folder = output.absolute().parent
    names = (PRIVATE_KEY, f"{PRIVATE_KEY}.pub", MEMORY_KEY, POLICY)
    there = [path for path in (output, *(folder / name for name in names)) if os.path.lexists(path)]
    if there:
        raise ConfigError(
            f"there already: {', '.join(map(str, there))}; nothing was written",
            remedy="Use what is there, move it away, or name an --output in another folder. A key that the operator "
            "knows, or that a memory depends on, cannot be made again",
        )


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; whole or not at all."""
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
