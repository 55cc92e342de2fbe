"""A version as a package for another site, and as files for other tools.

Nothing of a patient, no file name and no prediction leaves: a package holds the weights, counts, figures and digests.
"""

import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from django.conf import settings
from django.db import transaction

from xrayplatform import audit
from xrayplatform.conditions import Condition
from xrayplatform.system import NotEnoughDisk, require_disk

from . import artifacts, cards, model_card, packages, rebuilding, signing
from .models import Activation, Evaluation, ModelVersion
from .models.condition_export import DISK_FACTOR
from .models.package import exports_folder

NAMELESS = "A site without a name"
_RELATED: Final = ("condition", "created_by", "parent__condition")
Progress = Callable[[int, int], None]
Telling = Callable[[int, int, str], None]


def site_name() -> str:
    """What packages call this site; see SITE_NAME in the settings."""
    return str(settings.SITE_NAME).strip() or NAMELESS


def key_file() -> Path:
    return Path(settings.SIGNING_KEY) if settings.SIGNING_KEY else Path(settings.MODEL_ROOT) / "keys" / "signing.pem"


def site_key() -> signing.SigningKey:
    """The key that signs what this site exports, made at first use. Raises SigningError."""
    return signing.load_or_create_key(key_file())


def export(version: ModelVersion, target: Path, *, by: Any, progress: Progress | None = None) -> str:
    """Write the version as a signed package, with its audit entry, and return the digest of the package.

    Raises ArtifactError when its files are damaged, PackageError, SigningError, NotEnoughDisk, OSError.
    """
    artifact = artifacts.load(version.folder, version.sha256)
    require_disk(artifact.manifest["members"][artifacts.WEIGHTS]["size"])
    key = site_key()
    # In no transaction: it would keep others from writing for as long as the package is written.
    sha256 = packages.write(target, _description(version), _members(version, artifact), key=key, progress=progress)
    audit.record("version.export", version, actor=by, after={"package": sha256, "key": key.key_id})
    return sha256


def export_openvino(version: ModelVersion, target: Path, *, by: Any) -> None:
    """Write the OpenVINO graph (IR: model.xml and model.bin) as a zip. It is the one that answers here.

    Raises ArtifactError when the files of the version are damaged.
    """
    artifact = artifacts.load(version.folder, version.sha256)
    xml = artifact.openvino_xml
    with transaction.atomic():
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for member in (xml, xml.with_suffix(".bin")):
                archive.write(member, member.name)
        audit.record("version.export", version, actor=by, after={"format": "openvino"})


def export_keras(version: ModelVersion, target: Path, *, by: Any) -> None:
    """Write the network as a `.keras` file, which was loaded again and answers as the version does.

    Takes some seconds, in a process of its own. Raises ArtifactError, ExportError.
    """
    _export_rebuilt("keras", version, target, by)


def export_onnx(version: ModelVersion, target: Path, *, by: Any) -> None:
    """Write the network as ONNX, which was loaded again and answers as the version does.

    Takes up to a minute, in a process of its own. Raises ArtifactError, ExportError.
    """
    _export_rebuilt("onnx", version, target, by)


def _export_rebuilt(form: str, version: ModelVersion, target: Path, by: Any) -> None:
    artifacts.load(version.folder, version.sha256)
    if form not in rebuilding.WRITERS:
        raise rebuilding.ExportError("This platform has no architectures to rebuild the version with.")
    rebuilding.WRITERS[form](version, target)
    audit.record("version.export", version, actor=by, after={"format": form})


@dataclass(frozen=True)
class Form:
    """A form in which a version leaves. write: into a file. end: of the file's name. meaning: for people."""

    write: Callable[..., Any]
    end: str
    meaning: str

    def file_name(self, version: ModelVersion) -> str:
        return f"{version.condition.slug}-v{version.number}{self.end}"


FORMS: Final = {
    "package": Form(export, ".xrpkg.zip", "signed package, for another site with this platform"),
    "openvino": Form(export_openvino, ".openvino.zip", "OpenVINO IR, the graph that answers here"),
    "keras": Form(export_keras, ".keras", "Keras, to train on or to look inside"),
    "onnx": Form(export_onnx, ".onnx", "ONNX, for most other tools"),
}
REFUSALS: Final = (
    artifacts.ArtifactError,
    packages.PackageError,
    signing.SigningError,
    rebuilding.ExportError,
    NotEnoughDisk,
)


HISTORY: Final = "history.json"


def export_condition(condition: Condition, target: Path, *, by: Any) -> dict[str, Any]:
    """`write_condition`, with the audit entry that the file leaves."""
    history = write_condition(condition, target, by=by)
    audit.record("condition.export", condition, actor=by, after={"versions": len(history["versions"])})
    return history


def write_condition(condition: Condition, target: Path, *, by: Any, progress: Telling | None = None) -> dict[str, Any]:
    """Write all versions of a condition as packages into one zip, with the history of what was in service.

    Each package in it is signed and imported like any other. A version whose files are damaged is named in the history
    with the reason, and left out. progress: called with the bytes done, those in all and what is done now; what it
    raises ends the writing. The target appears whole or not at all. Returns the history. Raises SigningError,
    NotEnoughDisk, OSError.
    """
    versions = list(ModelVersion.objects.filter(condition=condition).select_related(*_RELATED).order_by("number"))
    total = sum(version.size for version in versions)
    require_disk(DISK_FACTOR * total)
    package = target.with_name(target.name + ".package")
    part = target.with_name(target.name + ".part")
    done, told = 0, []
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for version in versions:
                told.append(_add(archive, version, package, by, _within(progress, version, done, total)))
                done += version.size
            history = {**_condition(condition), "versions": told, "activations": _activations(condition)}
            archive.writestr(HISTORY, packages.to_bytes(history))
        artifacts.sync(part)
        part.replace(target)
    finally:
        for path in (package, part):
            path.unlink(missing_ok=True)
    artifacts.sync(target.parent)
    return history


def _within(progress: Telling | None, version: ModelVersion, before: int, total: int) -> Progress | None:
    """The progress of one version as that of all: by its size, after the bytes of those before it."""
    if progress is None:
        return None
    message = f"Writing version {version.number}"

    def tell(done: int, of: int) -> None:
        progress(before + version.size * done // max(of, 1), total, message)

    tell(0, 1)
    return tell


def _add(
    archive: zipfile.ZipFile, version: ModelVersion, package: Path, by: Any, progress: Progress | None
) -> dict[str, Any]:
    """Put the package of a version into the archive; what the history tells about the version."""
    told = {"number": version.number, "state": version.state, "created_at": version.created_at.isoformat()}
    told |= {"sha256": version.sha256, "file": "", "package": "", "problem": ""}
    try:
        told["package"] = export(version, package, by=by, progress=progress)
    except (artifacts.ArtifactError, packages.PackageError) as error:
        return told | {"problem": str(error)}
    told["file"] = packages.file_name(version.condition.slug, version.number)
    archive.write(package, told["file"])
    return told


def _activations(condition: Condition) -> list[dict[str, Any]]:
    rows = Activation.objects.filter(condition=condition).select_related(
        "by", "from_version", "to_version", "threshold_set"
    )
    return [
        {
            "at": row.at.isoformat(),
            "from": row.from_version.number if row.from_version else None,
            "to": row.to_version.number,
            "threshold": row.threshold,
            "by": row.by.get_username() if row.by else "",
            "reason": row.reason,
        }
        for row in rows.order_by("pk")
    ]


def take_along(version: ModelVersion, form: str, *, by: Any) -> BinaryIO:
    """The version in one of FORMS, as an open file without a name: whatever happens, nothing is left of it.

    Raises one of REFUSALS, OSError.
    """
    return _opened(lambda path: FORMS[form].write(version, path, by=by), FORMS[form].end)


def _opened(write: Callable[[Path], Any], end: str) -> BinaryIO:
    folder = exports_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}{end}"
    try:
        write(path)
        return path.open("rb")
    finally:
        path.unlink(missing_ok=True)


def _condition(condition: Condition) -> dict[str, Any]:
    fields = ("slug", "name", "body_part", "intended_use")
    return {"origin": {"name": site_name()}, "condition": {name: getattr(condition, name) for name in fields}}


def _description(version: ModelVersion) -> dict[str, Any]:
    return {
        **_condition(version.condition),
        "version": {
            "number": version.number,
            "architecture": version.architecture,
            "image_size": version.image_size,
            "classes": version.classes,
            "positive_class": version.positive_class,
            "figures": {name: version.metrics.get(name) for name in ("accuracy", "auc", "f1")},
            "images": version.metrics.get("n"),
            "state": version.state,
            "synthetic": version.synthetic,
            "created_at": version.created_at.isoformat(),
        },
        "lineage": {
            "version": version.sha256,
            "parent": version.parent.sha256 if version.parent else "",
            "dataset": version.dataset_digest,
            "split": version.split_digest,
        },
    }


def _members(version: ModelVersion, artifact: artifacts.Artifact) -> dict[str, Path | bytes]:
    card = cards.card_of(version)
    evaluations = [_evaluation(row) for row in cards.evaluations_of(version)]
    return {
        packages.MANIFEST: packages.to_bytes(packages.portable(artifact.manifest)),
        packages.CARD: packages.to_bytes(card),
        packages.CARD_TEXT: model_card.to_markdown(card).encode(),
        packages.EVALUATIONS: packages.to_bytes(evaluations),
        packages.GOLDEN: packages.to_bytes(artifact.manifest["golden"]),
        packages.WEIGHTS: artifact.folder / artifacts.WEIGHTS,
    }


def _evaluation(row: Evaluation) -> dict[str, Any]:
    """The figures without the answers, and without the name of the dataset."""
    return {
        "kind": row.kind,
        "measured_at": row.created_at.isoformat(),
        "images": row.images_count,
        "patients": row.patients_count,
        "report": cards.without_folders(row.report),
    }
