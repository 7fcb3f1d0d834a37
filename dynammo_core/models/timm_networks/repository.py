"""What is taken from a hub repository's `config.json`: what its network is, and nothing that could be loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dynammo_core.models.timm_networks.hub import hub_file
from dynammo_core.support.errors import WeightsError

MOST_BYTES = 65536
"""Largest `config.json`."""

Side = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=16384)]
Count = Annotated[int, Field(ge=0, le=256)]
Positive = Annotated[float, Field(gt=0, lt=math.inf)]
Level = Annotated[float, Field(gt=-math.inf, lt=math.inf)]
Word = Annotated[str, Field(pattern=r"^[a-z0-9_]{0,32}$")]


class Facts(BaseModel):
    """What the weights were trained on; other keys, such as places of files, are left out."""

    input_size: tuple[Literal[3], Side, Side] | None = None
    fixed_input_size: bool | None = None
    mean: tuple[Level, Level, Level] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    license: Annotated[str, Field(max_length=100)] | None = None


class Arguments(BaseModel):
    """What a constructor of timm may be told, as vision transformers for medical images need it; nothing else."""

    model_config = ConfigDict(extra="forbid")

    img_size: Side | tuple[Side, Side] | None = None
    patch_size: Side | None = None
    in_chans: Literal[3] | None = None
    num_classes: Annotated[int, Field(ge=0)] | None = Field(default=None, exclude=True)  # is always 0 here
    embed_dim: Width | None = None
    depth: Count | None = None
    num_heads: Count | None = None
    mlp_ratio: Annotated[Positive, Field(le=64)] | None = None
    init_values: Positive | None = None
    class_token: bool | None = None
    reg_tokens: Count | None = None
    no_embed_class: bool | None = None
    dynamic_img_size: bool | None = None
    dynamic_img_pad: bool | None = None
    pos_embed: Word | None = None
    global_pool: Word | None = None
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    pre_norm: bool | None = None
    final_norm: bool | None = None
    fc_norm: bool | None = None
    act_layer: Word | None = None
    norm_layer: Word | None = None


class Content(BaseModel):
    """The whole file: older ones state the facts at its top."""

    architecture: str = ""
    pretrained_cfg: Facts
    model_args: Arguments = Arguments()

    @model_validator(mode="before")
    @classmethod
    def _of_one_level(cls, content: Any) -> Any:
        flat = isinstance(content, dict) and "pretrained_cfg" not in content
        return {**content, "pretrained_cfg": content} if flat else content


@dataclass(frozen=True)
class Description:
    """What a repository says of its network.

    Attributes:
        architecture: timm's name of it.
        facts: of the weights, by timm's names.
        arguments: of the constructor.
        canonical: all of this as the same bytes for the same content.
    """

    architecture: str
    facts: dict[str, Any]
    arguments: dict[str, Any]
    canonical: bytes


def read_description(repository: str) -> Description:
    """Read what the `config.json` of a repository says of its network, downloading the file if necessary.

    Raises:
        WeightsError: the file cannot be had from here, is too large, describes no network of timm, or sets more than is
            accepted.
    """
    from timm import is_model

    file = hub_file(repository, "config.json", most=MOST_BYTES)
    if (size := file.stat().st_size) > MOST_BYTES:  # an old copy in the cache
        raise WeightsError(f"config.json of {repository} has {size:,} bytes", accepted=f"at most {MOST_BYTES:,}")
    try:
        content = Content.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsError(
            f"config.json of {repository}: {key[:80]!r} is not accepted ({first['msg'][:200]})",
            accepted=f"repositories of networks of timm; in model_args: {', '.join(Arguments.model_fields)}",
            remedy="Or name the architecture as timm/NAME, and its file as backbone.weights",
        ) from error
    if not is_model(content.architecture):
        raise WeightsError(
            f"config.json of {repository} describes no network of timm (architecture: {content.architecture[:80]!r})",
            accepted="repositories whose page says how timm loads them",
        )
    facts, arguments = (part.model_dump(exclude_none=True) for part in (content.pretrained_cfg, content.model_args))
    return Description(content.architecture, facts, arguments, content.model_dump_json(exclude_none=True).encode())
