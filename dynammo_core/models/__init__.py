"""Networks (backbones, adapters and heads), and the table of backbones that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from dynammo_core.models.backbones import BackboneSpec

    MakeSpec = Callable[[], BackboneSpec]


def _is_spec(_: str, value: Any) -> bool:
    from dynammo_core.models.backbones import BackboneSpec

    return isinstance(value, BackboneSpec)


BACKBONES: Registry[BackboneSpec] = Registry(
    "backbone",
    "dynammo.backbones",
    {
        "resnet18": "dynammo_core.models.backbones:RESNET18",
        "mobilenet_v2": "dynammo_core.models.backbones:MOBILENET_V2",
        "efficientnet_b0": "dynammo_core.models.backbones:EFFICIENTNET_B0",
        "efficientnet_lite0": "dynammo_core.models.backbones:EFFICIENTNET_LITE0",
        "efficientnet_lite1": "dynammo_core.models.backbones:EFFICIENTNET_LITE1",
        "efficientnet_lite2": "dynammo_core.models.backbones:EFFICIENTNET_LITE2",
        "small_cnn": "dynammo_core.models.backbones:SMALL_CNN",
    },
    accepted="a dynammo_core.models.backbones.BackboneSpec",
    accepts=_is_spec,
    open_names={
        "timm/": "dynammo_core.models.timm_networks.catalogue",
        "hf_hub:": "dynammo_core.models.timm_networks.catalogue",
    },
)


def register_backbone(name: str) -> Callable[[MakeSpec], MakeSpec]:
    """Add a backbone to the table: `@register_backbone("name")` above a function that returns its BackboneSpec.

    Raises:
        ConfigError: the name is taken or invalid, or the function returns something else.
    """

    def register(make: MakeSpec) -> MakeSpec:
        BACKBONES.register(name, make, make())
        return make

    return register
