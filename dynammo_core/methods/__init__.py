"""The table of methods. A new method is one file and one line here, or a package of its own (`dynammo.methods`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from dynammo_core.methods.base import Method

M = TypeVar("M", bound="type[Method[Any]]")


def _is_method(name: str, value: Any) -> bool:
    from dynammo_core.methods.base import Method

    return isinstance(value, type) and issubclass(value, Method) and getattr(value, "name", None) == name


METHODS: Registry[type[Method[Any]]] = Registry(
    "method",
    "dynammo.methods",
    {
        "dynammo": "dynammo_core.methods.dynammo:DynaMMo",
        "fine_tune": "dynammo_core.methods.fine_tune:FineTune",
        "replay": "dynammo_core.methods.replay:Replay",
        "joint": "dynammo_core.methods.joint:Joint",
        "icarl": "dynammo_core.methods.icarl:ICaRL",
        "wa": "dynammo_core.methods.wa:WA",
        "lucir": "dynammo_core.methods.lucir:LUCIR",
        "podnet": "dynammo_core.methods.podnet:PODNet",
        "dark_er": "dynammo_core.methods.dark_er:DarkER",
        "dynamic_er": "dynammo_core.methods.dynamic_er:DynamicER",
        "acl": "dynammo_core.methods.acl:ACL",
        "ridge": "dynammo_core.methods.ridge:Ridge",
        "streaming_ridge": "dynammo_core.methods.streaming_ridge:StreamingRidge",
        "dynammo_ridge": "dynammo_core.methods.dynammo_ridge:DynaMMoRidge",
        "moving_ridge": "dynammo_core.methods.moving_ridge:MovingRidge",
        "first_session": "dynammo_core.methods.first_session:FirstSession",
        "ranpac": "dynammo_core.methods.ranpac:RanPAC",
        "fecam": "dynammo_core.methods.fecam:FeCAM",
    },
    accepted="a subclass of dynammo_core.methods.base.Method whose attribute `name` is the name in the table",
    accepts=_is_method,
)


def register_method(method: M) -> M:
    """Add a method to the table under its `name`: `@register_method` above the class.

    Raises:
        ConfigError: the name is taken or is not a name, or the class is not a method.
    """
    METHODS.register(str(getattr(method, "name", "")), method, method)
    return method
