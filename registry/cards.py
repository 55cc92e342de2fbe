"""The model card of a version, filled with what the database and the version's manifest know.

Cards leave the hospital with packages: they hold counts, and no name of a dataset, a folder, a file or a patient.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from . import artifacts, model_card
from .differences import in_words
from .models import Activation, Deployment, Evaluation, ModelVersion, StateChange

# What the platform calls a group of images whose name is that of a folder: somebody's own words.
FOLDERS = ("folder", "source folder")
MOST_EXTERNAL = 5
PARTS = {"train": "training", "validation": "validation", "test": "test"}
GROUP_KEYS = {
    "dicom": "the patient number in the DICOM files",
    "csv": "a column of the CSV file",
    "file-name": "the patient in the file names",
    "folder": "the folder of the patient",
    "near-duplicate": "pictures that look almost the same; patients are not known",
    "image": "each picture for itself; patients are not known",
}
KEYS_OF_PATIENTS = ("dicom", "csv", "file-name", "folder")


def card_of(version: ModelVersion) -> model_card.Card:
    """From some queries, and from the verified manifest where it is there."""
    return model_card.card(facts_of(version))


def facts_of(version: ModelVersion) -> model_card.CardFacts:
    data = _about_data(version)
    evaluations = evaluations_of(version)
    shown = [row for row in evaluations if row.kind != Evaluation.Kind.VALIDATION]
    # The one of the own test part is the first, where there is one.
    foremost = next(iter(shown), None)
    changes = list(version.state_changes.select_related("by").order_by("pk"))
    return model_card.CardFacts(
        condition=version.condition.name,
        body_part=version.condition.body_part,
        intended_use=version.condition.intended_use,
        version=version.number,
        classes=tuple(version.classes),
        positive_class=version.positive_class,
        state=version.get_state_display(),
        origin=version.origin,
        created_by=_name(version.created_by),
        created_at=_time(version.created_at),
        sha256=version.sha256,
        architecture=version.architecture,
        image_size=version.image_size,
        preprocessing="; ".join(f"{key} {in_words(value)}" for key, value in sorted(version.preprocessing.items())),
        initial_weights=version.initial_weights,
        parent=str(version.parent) if version.parent else "",
        dataset_digest=version.dataset_digest,
        split_digest=version.split_digest,
        synthetic=version.synthetic,
        images=_images(version, data, evaluations),
        patients=_patients(data, evaluations),
        split=_split(data),
        patients_apart=_patients_apart(data),
        training=_training(version),
        epochs=len(version.history) or None,
        evaluations=[_evaluation(row) for row in shown],
        operating_point=_operating_point(version),
        cautions=foremost.cautions if foremost else (),
        environment={key: str(value) for key, value in sorted(version.environment.items())},
        history=_history(version, changes),
        state_given=_change(changes[-1]) if changes else None,
    )


def _about_data(version: ModelVersion) -> dict[str, Any]:
    """What the manifest says of the data; what is not of the form that a training writes is left out.

    Empty where the files are not there, or are not the ones: the card tells then what the database knows.
    """
    try:
        data = artifacts.load_manifest(version.folder, version.sha256).get("data")
    except artifacts.ArtifactError:
        return {}
    if not isinstance(data, dict):
        return {}
    counts, groups = data.get("counts"), data.get("groups")
    return {
        "counts": {part: _numbers(counts.get(part)) for part in PARTS} if isinstance(counts, dict) else {},
        "groups": _numbers(groups),
        "group_key": data.get("group_key") if isinstance(data.get("group_key"), str) else "",
        **_numbers({name: data.get(name) for name in ("shared_patients", "left_out", "seed")}),
    }


def _numbers(found: Any) -> dict[str, int]:
    return {name: value for name, value in found.items() if type(value) is int} if isinstance(found, dict) else {}


def evaluations_of(version: ModelVersion) -> list[Evaluation]:
    """The newest on the own test part, then on the own validation part, then on other images, each set once."""
    rows = list(version.evaluations.defer("report").order_by("-pk"))
    newest: dict[tuple[str, str], Evaluation] = {}
    for row in rows:
        external = row.kind == Evaluation.Kind.EXTERNAL
        newest.setdefault((str(row.kind), row.images_digest if external else ""), row)
    order = [str(kind) for kind in (Evaluation.Kind.TEST, Evaluation.Kind.VALIDATION, Evaluation.Kind.EXTERNAL)]
    chosen = sorted(newest.values(), key=lambda row: order.index(row.kind))[: MOST_EXTERNAL + 2]
    reports = dict(version.evaluations.filter(pk__in=[row.pk for row in chosen]).values_list("pk", "report"))
    for row in chosen:
        row.version, row.report = version, reports[row.pk]
    return chosen


def _evaluation(row: Evaluation) -> model_card.CardEvaluation:
    title = "Test part"
    if row.kind == Evaluation.Kind.EXTERNAL:
        which = "Other images" if _is_from_outside(row) else "Other images of its own dataset"
        title = f"{which}, measured {row.created_at:%Y-%m-%d}"
    return model_card.CardEvaluation(title, without_folders(row.report), _is_from_outside(row))


def _is_from_outside(row: Evaluation) -> bool:
    """A version can be measured on images of its own dataset that are not of its own division."""
    return row.kind == Evaluation.Kind.EXTERNAL and row.dataset_name != row.version.dataset_name


def without_folders(report: Mapping[str, Any]) -> dict[str, Any]:
    kept = [found for found in report["subgroups"] if found["attribute"].casefold() not in FOLDERS]
    return {**report, "subgroups": kept}


def _images(
    version: ModelVersion, data: Mapping[str, Any], evaluations: list[Evaluation]
) -> dict[str, Mapping[str, int]]:
    """By part, as the manifest knows it; of versions that know nothing of it, what their evaluations tell."""
    counts = data.get("counts", {})
    known = {name: counts[part] for part, name in PARTS.items() if counts.get(part)}
    if known:
        return known
    return {
        str(row.kind): {line["class"]: line["n"] for line in row.report["per_class"]}
        for row in reversed(evaluations)
        if row.kind != Evaluation.Kind.EXTERNAL
    }


def _patients(data: Mapping[str, Any], evaluations: list[Evaluation]) -> dict[str, int]:
    groups = data.get("groups", {})
    known = {name: groups[part] for part, name in PARTS.items() if part in groups}
    return known or {str(row.kind): row.patients_count for row in evaluations if row.kind != Evaluation.Kind.EXTERNAL}


def _split(data: Mapping[str, Any]) -> dict[str, str]:
    if not data:
        return {}
    shared = data.get("shared_patients")
    key = data.get("group_key", "")
    return {
        "Patients were told apart by": GROUP_KEYS.get(key, "another key" if key else ""),
        "Patients in more than one part": "not known" if shared is None else f"{shared:,}",
        "Images left out": f"{data['left_out']:,}" if "left_out" in data else "",
        "Seed": str(data.get("seed", "")),
    }


def _patients_apart(data: Mapping[str, Any]) -> bool | None:
    """None as well where pictures were divided without knowing whose they are."""
    if data.get("shared_patients"):
        return False
    known = "shared_patients" in data and data.get("group_key") in KEYS_OF_PATIENTS
    return True if known else None


def _training(version: ModelVersion) -> dict[str, str]:
    """The options that were chosen; one without a value left the choice to the training."""
    names = {"epochs": "Epochs asked for"}
    return {
        names.get(key, key.replace("_", " ").capitalize()): in_words(value)
        for key, value in sorted(version.configuration.items())
        if value is not None
    }


def _operating_point(version: ModelVersion) -> model_card.CardThreshold | None:
    """The one in service; of a version that is not, the one that its training chose."""
    if not version.positive_class or version.threshold is None:
        return None
    in_service = Deployment.objects.filter(active=version).select_related("threshold_set__created_by").first()
    point = in_service.threshold_set if in_service else None
    if point is None:
        return model_card.CardThreshold(version.threshold, "chosen by the training, on the validation part")
    return model_card.CardThreshold(
        threshold=point.threshold,
        criterion=point.criterion,
        target=point.target,
        prevalence=point.prevalence,
        reason=point.reason,
        by=_name(point.created_by),
        at=_time(point.created_at),
        validation=point.validation,
        test=point.test,
    )


def _history(version: ModelVersion, changes: Iterable[StateChange]) -> list[model_card.CardEvent]:
    """What was decided about its state and its service, oldest first."""
    events = [(row.at, _change(row)) for row in changes]
    events += [(row.at, _event(row, version)) for row in _activations(version)]
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def _change(row: StateChange) -> model_card.CardEvent:
    withdrawn = row.from_state == ModelVersion.State.APPROVED
    words = {"approved": "approved", "archived": "archived"}
    what = words.get(row.to_state, "approval withdrawn" if withdrawn else "reopened as a candidate")
    return model_card.CardEvent(_time(row.at), what, _name(row.by), row.reason)


def _activations(version: ModelVersion) -> Any:
    rows = Activation.objects.filter(condition=version.condition).select_related(
        "by", "threshold_set", "to_version__condition", "from_version__condition"
    )
    return (rows.filter(to_version=version) | rows.filter(from_version=version)).order_by("pk")


def _event(row: Activation, version: ModelVersion) -> model_card.CardEvent:
    if row.to_version_id != version.pk:
        what = f"taken out of service, for {row.to_version}"
    elif row.threshold_set:
        what = f"put in service with threshold set {row.threshold_set.number} ({row.threshold_set.threshold:.4g})"
    else:
        what = "put in service"
    return model_card.CardEvent(_time(row.at), what, _name(row.by), row.reason)


def _name(user: Any) -> str:
    return user.get_username() if user else "the command line"


def _time(at: Any) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
