"""Was this image trained on? Attacks that ask the deployed model alone, and what they get right."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

from dynammo_core.data.samples import Samples
from dynammo_core.deployed.predictor import DeployedModel, Predictor
from dynammo_core.scoring.evaluation import embed_samples
from dynammo_core.support.errors import RunError
from dynammo_core.support.seeding import derive_seed
from simulations.attacks.audited_run import AuditedRun, Records
from simulations.attacks.findings import AttackResult, Finding, Flags, Tell, Values
from simulations.attacks.shadows import shadow_models

FALSE_POSITIVES = 0.01
RESAMPLES = 500
LEAST = 1e-300
"""Smaller probabilities are all alike."""


@torch.no_grad()
def confidences(predictor: Predictor, samples: Samples) -> Values:
    """Compute how sure a model is of the true class of N images: log(p / (1 - p)), [N].

    The logit scaling of Carlini et al. (arXiv 2112.03570, equation 4), which makes confidences near Gaussian; it falls
    with the cross-entropy -log p, so that a threshold on the one is a threshold on the other. The heads compute in
    double precision, and 1 - p is summed up from what the head gives its other rows: the surest images would tie.

    Args:
        predictor: the model.
        samples: images of classes that it has learnt, labelled by the indices of the model's own registry.
    """
    assert isinstance(predictor.module, DeployedModel)  # of a run, never an exported graph
    method, facts = predictor.module.method, predictor.facts
    model = copy.deepcopy(predictor.module.model)
    features = embed_samples(model, samples, facts.normalisation, predictor.device)
    model.heads.double()
    scaled = torch.full((len(samples),), torch.nan, dtype=torch.float64)
    probabilities = method.decision.probabilities(model, features.double())
    for head, probability in zip(method.decision.heads(model), probabilities, strict=True):
        own = samples.labels.unsqueeze(1) == torch.tensor(head.rows)
        true, rest = ((probability.cpu() * part).sum(dim=1).clamp_min(LEAST) for part in (own, ~own))
        scaled = torch.where(own.any(dim=1), true.log() - rest.log(), scaled)
    values: Values = scaled.numpy()
    return values


def class_weights(labels: NDArray[np.int64], member: Flags) -> Values:
    """Return weights [N] by which each class counts as much among the non-members as among the members.

    Without them an attack would look good where the members are but of easier classes.
    """
    weights = np.ones(len(labels))
    for label in np.unique(labels).tolist():
        own = labels == label
        inside, outside = int((own & member).sum()), int((own & ~member).sum())
        weights[own & ~member] = inside / max(outside, 1)
        weights[own & member] = 1.0 if outside else 0.0
    return weights


def rates(scores: Values, member: Flags, weights: Values) -> tuple[float, float]:
    """Return the area under the ROC curve, and the true-positive rate at a false-positive rate of at most 1 %."""
    false, true, _ = roc_curve(member, scores, sample_weight=weights, drop_intermediate=False)
    return float(auc(false, true)), float(true[false <= FALSE_POSITIVES].max())


def judge(
    scores: Values, member: Flags, labels: NDArray[np.int64], *, attack: str, target: str, seed: int
) -> list[Finding]:
    """Evaluate scores, high for supposed members, as a test of membership.

    Args:
        scores: [N].
        member: [N], the truth; records of both kinds.
        labels: [N], classes.
        attack: name of the attack.
        target: what the members are.
        seed: of the bootstrap, which draws members and non-members anew.

    Returns:
        The area under the curve, and the true-positive rate at 1 % false positives.
    """
    weights = class_weights(labels, member)
    best = rates(scores, member, weights)
    inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", attack, target))
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rng.choice(inside, len(inside)), rng.choice(outside, len(outside))])
        drawn.append(rates(scores[chosen], member[chosen], weights[chosen]))
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    measures = (("AUC", "", 0.5, 1.0), ("TPR at 1 % FPR", "%", 1.0, 100.0))
    return [
        Finding(
            attack,
            target,
            measure,
            unit,
            value=best[i] * scale,
            guess=guess,
            low=float(low[i]) * scale,
            high=float(high[i]) * scale,
            members=len(inside),
            others=len(outside),
        )
        for i, (measure, unit, guess, scale) in enumerate(measures)
    ]


def attack_membership(run: AuditedRun, *, pairs: int, seed: int, tell: Tell) -> AttackResult:
    """Attack exemplars, and the other training images, each against the test images of the same classes.

    - The loss threshold of Yeom et al. (arXiv 1709.01604): what the model is surer of was trained on.
    - The offline likelihood-ratio attack of Carlini et al. (arXiv 2112.03570, section VI.A): surer than models that
      never saw the image. Deviation: with so few shadow models one variance serves all images (their section VI.B),
      which leaves the difference from the mean confidence of the models outside.
    - The control: that mean alone. It knows nothing of the audited model, so where it differs from guessing, the
      images differ (herding takes typical ones), and the loss threshold is right for a reason that is no leak.

    Args:
        run: the run.
        pairs: of shadow models, each model of a pair trained on one half of all images; 0 leaves the last two out.
        seed: of the halves and of the bootstrap.
        tell: receives the progress.

    Raises:
        RunError: there is nothing to tell apart.
        DynammoError: a shadow model cannot be trained.
    """
    records = run.records
    if not records.member.any() or records.member.all():
        raise RunError(f"{run.path} needs both training images and other images of its classes")
    tell("asking the model", 0, 1)
    surety = confidences(run.predictor(), records.samples)
    tell("asking the model", 1, 1)
    scores = {"loss threshold": surety}
    if pairs:
        outside = np.full((2 * pairs, len(surety)), np.nan)
        for row, (predictor, trained) in enumerate(shadow_models(run, pairs=pairs, seed=seed, tell=tell)):
            outside[row, ~trained] = confidences(predictor, records.samples)[~trained]
        expected = np.nanmean(outside, axis=0)
        scores["likelihood ratio"] = surety - expected
        scores["control"] = expected
    return AttackResult(findings=_findings(records, scores, seed))


def _findings(records: Records, scores: dict[str, Values], seed: int) -> list[Finding]:
    labels = records.samples.labels.numpy()
    findings = []
    for target, inside in (
        ("exemplars", records.exemplar),
        ("other training images", records.member & ~records.exemplar),
    ):
        if not inside.any():
            continue
        asked = inside | ~records.member
        for attack, score in scores.items():
            findings += judge(score[asked], inside[asked], labels[asked], attack=attack, target=target, seed=seed)
    return findings
