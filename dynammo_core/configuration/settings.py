"""The sections of an experiment's YAML: frozen pydantic models with their defaults and bounds, no behaviour."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dynammo_core.configuration.pixels import KnownNormalisation, KnownWindow
from dynammo_core.data.datasets import DATASETS
from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Fit, Reading
from dynammo_core.models import BACKBONES
from dynammo_core.support.errors import require_printable, unknown_name
from dynammo_core.support.registry import UNKNOWN
from dynammo_core.support.yaml_files import Section

if TYPE_CHECKING:
    from dynammo_core.configuration.federation import FederationSettings

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""Pattern of a hospital's name, which appears in file names and certificates."""
WEIGHTS_BY_NAME = ("imagenet", "pretrained", "random")
WEIGHTS_SUFFIXES, FOLDER = (".pth", ".pt", ".safetensors"), "/"
"""Names of pretrained weights, the kinds of files that other weights are in, and how the name of a folder ends."""
HUB = "hf_hub:"
"""How the names of networks begin that a repository of the Hugging Face hub describes."""
_KINDS = ", ".join(WEIGHTS_SUFFIXES)
ACCEPTED_WEIGHTS = f"{', '.join(WEIGHTS_BY_NAME)}, or the path of a file ({_KINDS}) or, ending in {FOLDER}, a folder"


def _windows_in_words() -> str:
    return ", ".join(f"`{name}` [{centre:g}, {width:g}]" for name, (centre, width) in WINDOWS.items())


class DataSettings(Section):
    """Which images, how many, and how they become tensors."""

    dataset: Annotated[str, DATASETS] = Field(description="name of the data set")
    root: str | None = Field(default=None, description="folder or manifest file of the data; ~ is expanded")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="class names in a fixed order, for image_folder and manifest; any other label is refused, a class "
        "without images is not; null: the names found, sorted",
    )
    sets: tuple[str, ...] | None = Field(
        default=None, description="MedMNIST sets to learn one after another: the file names without .npz"
    )
    split: Literal["published", "patient"] = Field(
        default="published",
        description="published: as the data say, else 80/20 by patient or, if unknown, by content; patient: 80/20 by "
        "patient or lesion, whatever the data say",
    )
    duplicates: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="images under two labels, named twice, or in training though they, their record or their patient "
        "are in the test: refuse the data, or drop them (the test stays) and say how many",
    )
    image_size: int = Field(default=64, ge=8, le=1024, description="side in pixels to which every image is resized")
    fit: Fit = Field(
        default="stretch",
        description="how an image that is not square becomes one: stretch it, pad the shorter side with black, or crop "
        "the longer side to its middle",
    )
    window: KnownWindow = Field(
        default=FROM_FILE,
        description="how values of more than 8 bits, and grey ones of DICOM, become 0..255: `file` as each DICOM file "
        "declares, refusing other files of more than 8 bits; `[centre, width]` in the file's own units; or a window "
        f"for CT by its name, in Hounsfield units: {_windows_in_words()}",
    )
    frame: int | None = Field(
        default=None, ge=1, description="frame or page to take from files with several, from 1; null: refuse such files"
    )
    normalisation: KnownNormalisation = Field(
        default="half",
        description="half: (x - 0.5) / 0.5; imagenet: ImageNet's mean and standard deviation; backbone: those that the "
        "backbone's pretrained weights were trained with; or `[[R, G, B], [R, G, B]]`: a mean and a standard deviation "
        "of each channel of images scaled to 0..1",
    )
    augmentation: Literal["none", "flip", "crop", "crop_flip"] = Field(
        default="none",
        description="flip: left-right mirroring of every second image, at random; crop: random shifts of up to an "
        "eighth of the side; crop_flip: both",
    )
    train_per_class: int | None = Field(default=None, ge=1, description="keep this many training images per class")
    test_per_class: int | None = Field(default=None, ge=1, description="keep this many test images per class")
    validation_per_class: int = Field(
        default=0,
        ge=0,
        description="hold out this many training images per class and test on them instead of the test set",
    )

    @property
    def reading(self) -> Reading:
        """Return how image files are read."""
        return Reading(self.window, self.frame)

    @field_validator("classes")
    @classmethod
    def _registry(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not all(classes) or not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"{list(classes)} must name at least one class, none of them empty or twice")
        require_printable("class", classes or ())
        return classes

    @field_validator("sets")
    @classmethod
    def _no_set_twice(cls, sets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if sets is not None and (not sets or len(set(sets)) < len(sets)):
            raise ValueError(f"{list(sets)} must name at least one set, none of them twice")
        return sets


class TaskSettings(Section):
    """How classes arrive."""

    sizes: Literal["all"] | int | tuple[int, ...] = Field(
        default=2, description="classes per task, or a list with one number for each task; all: one task of all classes"
    )
    class_order: Literal["fixed", "shuffled"] | tuple[int | str, ...] = Field(
        default="fixed",
        description="order of arrival; fixed: by class index; shuffled: by the seed, as in PyCIL; or a list of class "
        "names, or indices from 0, where a class that is not listed takes no part",
    )

    @field_validator("sizes")
    @classmethod
    def _positive(cls, sizes: str | int | tuple[int, ...]) -> str | int | tuple[int, ...]:
        if isinstance(sizes, int) and sizes < 1:
            raise ValueError(f"{sizes} classes per task are too few; a task needs at least 1")
        if isinstance(sizes, tuple) and (not sizes or min(sizes) < 1):
            raise ValueError(f"{list(sizes)} must contain at least one task, each with at least one class")
        return sizes

    @field_validator("class_order")
    @classmethod
    def _no_class_twice(cls, order: str | tuple[int | str, ...]) -> str | tuple[int | str, ...]:
        if isinstance(order, tuple):
            if not order or any(isinstance(label, int) and label < 0 for label in order):
                raise ValueError("name at least one class, by its name or its index from 0")
            if twice := [label for label in dict.fromkeys(order) if order.count(label) > 1]:
                raise ValueError(
                    f"each class must be named once, and {twice[0]!r} is there {order.count(twice[0])} times"
                )
        return order


class BackboneSettings(Section):
    """A pretrained network and where its weights come from."""

    name: Annotated[str, BACKBONES] = Field(
        default="efficientnet_lite0",
        description="name of the backbone network; `timm/NAME` or `timm/NAME.TAG`: any network of timm; "
        "`hf_hub:OWNER/NAME`: one of the Hugging Face hub in timm's format",
    )
    weights: str = Field(
        default="imagenet",
        description="initial weights: pretrained (those of the name; of this project's own networks also called "
        "imagenet), random (drawn from the seed), or the path of a weights file, or of a folder with one "
        "`.safetensors` in it, ending in a slash; default with `timm/` and `hf_hub:`: pretrained",
    )
    sha256: str | None = Field(
        default=None,
        description="required SHA-256 of the weights file, with `hf_hub:` of the file and its description, as "
        "`dynammo-sim backbone show` prints it; null: any, but not among hospitals if the weights come from the net",
    )

    image_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="side in pixels to which the network resizes images; null: it sees them at data.image_size",
    )

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_name(cls, section: Any) -> Any:
        if isinstance(section, dict) and "weights" not in section and BACKBONES.is_open(str(section.get("name"))):
            return {**section, "weights": "pretrained"}
        return section

    @model_validator(mode="after")
    def _imagenet_if_so(self) -> Self:
        if self.weights == "imagenet" and BACKBONES.is_open(self.name):
            accepted = "pretrained, random, or the path of a file"
            raise ValueError(f"weights: imagenet does not say which weights of {self.name}; accepted: {accepted}")
        return self

    @property
    def comes_from_the_net(self) -> bool:
        """Tell whether the owner of a hub's repository decides what is loaded: its weights, or its description."""
        return self.name.startswith(HUB) or (BACKBONES.is_open(self.name) and self.weights == "pretrained")

    @field_validator("weights")
    @classmethod
    def _a_name_or_a_file(cls, weights: str) -> str:
        if weights not in WEIGHTS_BY_NAME and not weights.endswith((*WEIGHTS_SUFFIXES, FOLDER)):
            unknown = unknown_name("weights", PurePath(weights).name, WEIGHTS_BY_NAME)
            words = {"unknown": unknown, "accepted": ACCEPTED_WEIGHTS}
            raise PydanticCustomError(UNKNOWN, "{unknown}; accepted: {accepted}", words)
        return weights


class LaterBackbone(BackboneSettings):
    """A network that takes the place of the one before, from a task on."""

    task: int = Field(ge=2, description="the first task that it learns, counted from 1")


class FirstBackbone(BackboneSettings):
    """The pretrained network, and those that come after it."""

    changes: tuple[LaterBackbone, ...] = Field(
        default=(),
        description="networks that take its place, each from a task on: `{task: 3, name: efficientnet_lite2}`, and "
        "weights, sha256 and image_size as above; their weights have a name, since a site names one file",
    )

    @field_validator("changes")
    @classmethod
    def _in_order(cls, changes: tuple[LaterBackbone, ...]) -> tuple[LaterBackbone, ...]:
        tasks = [later.task for later in changes]
        if tasks != sorted(set(tasks)):
            raise ValueError(f"changes at the tasks {tasks} must ascend, one network a task")
        if files := [later for later in changes if later.weights not in WEIGHTS_BY_NAME]:
            named = ", ".join(WEIGHTS_BY_NAME)
            raise ValueError(f"weights {files[0].weights} of {files[0].name} must be one of {named}")
        return changes


class MemorySettings(Section):
    """The private replay memory: exemplars stay on the disk of the site that holds the images."""

    exemplars: int = Field(
        default=200,
        ge=0,
        description="number of exemplars at all sites together, divided equally among sites and among their classes; a "
        "site with more classes than exemplars keeps one of as many classes as it can",
    )
    selection: Literal["herding", "random", "closest_to_mean"] = Field(
        default="herding", description="rule that chooses the exemplars"
    )
    quota_megabytes: float = Field(
        default=1024, gt=0, description="disk space for the images of a site's memory, in MB"
    )


class MethodSettings(Section):
    """The section `method`: each method adds its own parameters to the name, and says what these do not go with.

    Attributes:
        forgets: whether withdrawn records can be taken out of the model: a stage keeps sums and says how to `correct`
            them.
        outlives_network: whether what the method has learnt goes over to another network, which `grow` then meets in a
            model with `features_before`.
    """

    forgets: ClassVar[bool] = False
    outlives_network: ClassVar[bool] = False

    name: str = Field(description="name of the method")

    def fitted_to(self, backbone: BackboneSettings, federation: FederationSettings) -> Self:
        """Return these parameters with the defaults that depend on those sections."""
        return self

    def misfit(self, federation: FederationSettings, backbone: BackboneSettings) -> str:
        """Explain why these parameters do not go with those sections, with the remedy; empty if they do."""
        return ""

    def obstacle_to_privacy(self, mechanism: str) -> str:
        """Explain why noise by a mechanism (`example` or `client`) protects nobody, with the remedy; empty if it does.

        It does if one image changes a training set by itself alone, a batch's loss is the mean of its samples' own, and
        what is sent are gradients, or sums that a stage `computes_privately`.
        """
        return "there is no bound on how much one image can change what a site sends"

    @model_validator(mode="before")
    @classmethod
    def _complete_stages(cls, section: Any) -> Any:
        """Fill in what a stage's section leaves out from the method's defaults of that stage, not the general ones."""
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        if not isinstance(section, dict):
            return section
        return {
            name: {**defaults[name].model_dump(), **value}
            if isinstance(value, dict) and isinstance(defaults.get(name), Section)
            else value
            for name, value in section.items()
        }
