"""The table of methods. A new method is one file and one line here, or a package of its own (`dynammo.methods`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dynammo_core.support.registry import Registry, resolved

if TYPE_CHECKING:
    from dynammo_core.configuration.settings import MethodSettings
    from dynammo_core.methods.base import Method

M = TypeVar("M", bound="type[Method[Any]]")


def _is_method(name: str, value: Any) -> bool:
    from dynammo_core.methods.base import Method

    return isinstance(value, type) and issubclass(value, Method) and getattr(value, "name", None) == name


BUILT_IN: Mapping[str, tuple[str, str]] = {
    "dynammo": ("dynammo:DynaMMo", "settings.adapters:DynaMMoSettings"),
    "fine_tune": ("fine_tune:FineTune", "settings.heads:SingleHeadSettings"),
    "replay": ("replay:Replay", "settings.heads:RehearsalSettings"),
    "joint": ("joint:Joint", "settings.heads:JointSettings"),
    "icarl": ("icarl:ICaRL", "settings.heads:ICaRLSettings"),
    "wa": ("wa:WA", "settings.heads:WASettings"),
    "lucir": ("lucir:LUCIR", "settings.heads:LUCIRSettings"),
    "podnet": ("podnet:PODNet", "settings.heads:PODNetSettings"),
    "dark_er": ("dark_er:DarkER", "settings.heads:DarkERSettings"),
    "dynamic_er": ("dynamic_er:DynamicER", "settings.heads:DynamicERSettings"),
    "acl": ("acl:ACL", "settings.adapters:TaskHeadsSettings"),
    "ridge": ("ridge:Ridge", "settings.closed_form:RidgeSettings"),
    "streaming_ridge": ("streaming_ridge:StreamingRidge", "settings.closed_form:StreamingRidgeSettings"),
    "dynammo_ridge": ("dynammo_ridge:DynaMMoRidge", "settings.adapted_closed_form:DynaMMoRidgeSettings"),
    "moving_ridge": ("moving_ridge:MovingRidge", "settings.adapted_closed_form:MovingRidgeSettings"),
    "first_session": ("first_session:FirstSession", "settings.adapted_closed_form:FirstSessionSettings"),
    "ranpac": ("ranpac:RanPAC", "settings.closed_form:RanPACSettings"),
    "fecam": ("fecam:FeCAM", "settings.closed_form:FeCAMSettings"),
}
"""The class of each method of this project, and that of its parameters, which lies where PyTorch is not needed."""

METHODS: Registry[type[Method[Any]]] = Registry(
    "method",
    "dynammo.methods",
    {name: f"{__name__}.{method}" for name, (method, _) in BUILT_IN.items()},
    accepted="a subclass of dynammo_core.methods.base.Method whose attribute `name` is the name in the table",
    accepts=_is_method,
)


def settings_of(name: str, key: str) -> type[MethodSettings]:
    """Return the type of the parameters of the method that a key names; for one of this project without PyTorch.

    Raises:
        ConfigError: as when the method itself is looked up.
    """
    if name in BUILT_IN and not METHODS.problem(name):
        found: type[MethodSettings] = resolved(f"{__name__}.{BUILT_IN[name][1]}")
        return found
    return METHODS.find(name, key).Params


def register_method(method: M) -> M:
    """Add a method to the table under its `name`: `@register_method` above the class.

    Raises:
        ConfigError: the name is taken or is not a name, or the class is not a method.
    """
    METHODS.register(str(getattr(method, "name", "")), method, method)
    return method
