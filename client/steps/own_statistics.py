"""Estimate a site's own batch-norm statistics, which adapt the model to its scanner and never leave.

Source: SiloBN (Andreux et al., arXiv 2008.07424), where sites share scales and shifts, and not statistics; FedBN (Li et
al., arXiv 2102.07623) shares neither. For a frozen backbone AdaBN (Li et al., arXiv 1603.04779).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from client.steps.site import Site
from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic, pool_batch_norm
from dynammo_core.data.feature_cache import fingerprint
from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.data.transforms import to_input
from dynammo_core.deployed.model_files import deployed_tensors, tensors_sha256
from dynammo_core.models.backbones import Backbone
from dynammo_core.models.batch_statistics import batch_statistics
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action, Step
from dynammo_core.support.seeding import seeded_generator
from dynammo_core.training import shuffled
from dynammo_core.wire.protocol import names_up

PRIOR = 16
"""Images that the statistics received count for beside a site's own images: few of those say little of a variance
(Schneider et al., arXiv 2006.16971)."""


@torch.no_grad()
def with_own_statistics(model: IncrementalModel, step: Step, site: Site) -> IncrementalModel:
    """Return the model as received, or a copy with the site's own statistics, as `scanners.own_statistics` says.

    Those of a frozen backbone are estimated on the bare backbone, with the first images that the site may train on,
    and kept for the run: what is summed in one task fits the next. Those of what is trained are estimated anew
    in each step, over the balanced set, but for those that the step sends up, which are the sites' common ones. So the
    server holds pooled statistics, for sites that have none of their own yet. What a model is tested with is kept, so
    that it can be used as it was tested.
    """
    wanted = site.experiment.config.scanners.own_statistics
    if wanted == "none":
        return model
    samples = site.rehearsal(step.task).balanced()
    own = copy.deepcopy(model)  # all models of a process share a frozen backbone
    if wanted in ("frozen", "all"):
        _normalise_backbone(own, samples, site)
    if wanted in ("trained", "all") and len(samples) > 1:
        _normalise_trained(own, samples, step, site)
    if step.stage.action is Action.EVALUATE:
        _keep_tested(model, own, step, site)
    return own


def _keep_tested(received: IncrementalModel, own: IncrementalModel, step: Step, site: Site) -> None:
    method = site.experiment.method
    statistics = {
        name: tensor for name, tensor in deployed_tensors(method, own).items() if is_batch_norm_statistic(name)
    }
    site.statistics.save_tested(statistics, task=step.task, model=tensors_sha256(deployed_tensors(method, received)))


def _normalise_backbone(model: IncrementalModel, samples: Samples, site: Site) -> None:
    backbone = next((part for part in model.modules() if isinstance(part, Backbone) and part.frozen), None)
    if backbone is None:
        return
    kept = site.statistics.load()
    if not kept and len(samples) > 1:
        names = [name for name in backbone.state_dict() if is_batch_norm_statistic(name)]
        kept = _estimated(backbone, names, samples, site, backbone)
        site.statistics.save(kept)
    backbone.load_state_dict(kept, strict=False)


def _normalise_trained(model: IncrementalModel, samples: Samples, step: Step, site: Site) -> None:
    common = set(names_up(model, step.stage))
    names = [name for name in travelling_names(model) if is_batch_norm_statistic(name) and name not in common]
    if not names:
        return
    state = model.state_dict()
    key = fingerprint({name: state[name] for name in deciding_names(model)})

    def estimate() -> Tensor:
        estimated = _estimated(model, names, samples, site, model.extractor)
        return torch.cat([estimated[name] for name in names])

    tensor = site.once((model.network, "statistics", key), samples, estimate)
    own = torch.split(tensor, [state[name].numel() for name in names])
    model.load_state_dict(dict(zip(names, own, strict=True)), strict=False)


def deciding_names(model: IncrementalModel) -> list[str]:
    """Return the names of the extractor's tensors that may differ between steps or between sites."""
    travelling = set(travelling_names(model))
    names = matching(model.state_dict(), ("extractor.*",))
    return [name for name in names if name in travelling or is_batch_norm_statistic(name)]


def _estimated(
    model: nn.Module, names: Sequence[str], samples: Samples, site: Site, forward: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return statistics of the samples, with those in the model counted as `PRIOR` more images."""
    config, device = site.experiment.config, site.experiment.device
    size = max(site.experiment.frozen_batch, FEWEST_SAMPLES)
    state = model.state_dict()
    received = {name: state[name].clone() for name in names}
    batches = (
        (to_input(samples.images[index], config.normalisation, device), index)
        for index in shuffled(len(samples), size, seeded_generator(config.seed, "own statistics", site.index))
    )
    model.eval()
    own = batch_statistics(model, names, batches, forward)
    model.eval()
    return pool_batch_norm([own, received], [len(samples), PRIOR])
