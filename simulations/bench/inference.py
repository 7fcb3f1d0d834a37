"""`dynammo-sim bench inference`: how long an answer takes as tasks come in, beside the model with a pass a task."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from torch import Tensor

    from dynammo_core.configuration.config import Config
    from dynammo_core.scoring.cost import Deployed

console = Terminal()
PASS_PER_TASK = "acl"
Key = tuple[str, int, int]
"""How a model is run, its number T of tasks, and the images at a time."""


def inference(
    config: ConfigFile,
    tasks: Annotated[
        list[int] | None, typer.Option(help="Number T of tasks. Repeatable.", show_default="1, 5, 10")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Number of images per batch. Repeatable.", show_default="1, 32")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements of each; the best one counts.")] = 20,
    set_: Overrides = None,
) -> None:
    """Time the deployed model after T tasks: as trained, with batch norm folded, and by ONNX Runtime.

    Beside it the model of `acl`, folded too, which makes a pass for each task. All take turns, so that what else the
    machine does meets all alike: read the ratios. Threads are those of compute.threads; of a single one the processor
    time is taken, which other programs cannot lengthen by waiting.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.experiment import Experiment

        settings = load_config(config, parse_overrides(set_ or []))
        Experiment(settings).use_torch()
        numbers, batches = tasks or [1, 5, 10], batch or [1, 32]
        seconds = latencies(settings, numbers, batches, repeats)
        first = min(numbers)
        table = Table("model", "T", "images", "ms", f"/ folded, T = {first}")
        for (model, count, images), taken in seconds.items():
            base = seconds["folded", first, images]
            table.add_row(model, str(count), str(images), f"{1e3 * taken:.2f}", f"{taken / base:.2f}")
        console.print(table)
        for count in numbers:
            for images in batches:
                ratio = seconds[f"{PASS_PER_TASK}, folded", count, images] / seconds["folded", count, images]
                text = f"T = {count}, {images} at a time: {PASS_PER_TASK} takes {ratio:.2f} times as long"
                console.print(text, highlight=False)


def latencies(settings: Config[Any], tasks: Sequence[int], batches: Sequence[int], repeats: int) -> Mapping[Key, float]:
    """Return each model's best seconds per number of images; nothing is trained, as no weight changes them."""
    import torch

    from dynammo_core.models.backbones import build_backbone
    from dynammo_core.models.folding import fold_batch_norm
    from dynammo_core.scoring.cost import classes_in_first, deployed_after, method_settings

    backbone = build_backbone(settings.backbone, settings.seed, settings.data.image_size)
    own, other = method_settings([settings.method.name, PASS_PER_TASK], settings.method)
    size = settings.data.image_size
    inputs = {
        count: torch.rand(count, 3, size, size).contiguous(memory_format=torch.channels_last) for count in batches
    }
    example = torch.rand(2, 3, size, size)
    models: dict[tuple[str, int], Callable[[Tensor], object]] = {}
    for count in tasks:
        grown = [
            deployed_after(count, method, backbone, classes_in_first(settings.tasks)) for method in (own, own, other)
        ]
        trained, folded, passes = (model.to(memory_format=torch.channels_last) for model in grown)
        for model in (folded, passes):
            fold_batch_norm(model.model.extractor, example)
        models |= {("as trained", count): trained, ("folded", count): folded}
        models |= {(f"{PASS_PER_TASK}, folded", count): passes, ("ONNX Runtime", count): _by_onnx(folded, example)}
    best: dict[Key, float] = {(name, count, images): float("inf") for name, count in models for images in batches}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.no_grad():
        for _ in track(range(repeats), "Measuring", console=console, transient=True):
            for (name, count), ask in models.items():
                for images, batch in inputs.items():
                    started = clock()
                    ask(batch)
                    taken = clock() - started
                    best[name, count, images] = min(best[name, count, images], taken)
    return best


def _by_onnx(model: Deployed, example: Tensor) -> Callable[[Tensor], object]:
    """Return the model in ONNX Runtime, with as many threads as PyTorch."""
    import onnxruntime
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["images"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images.contiguous().numpy()})
