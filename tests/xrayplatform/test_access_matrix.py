"""Who may do what: every address of the platform, every role, and what the answer must be.

A new address fails these tests until it has a row here, so that nothing is ever open by omission.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from knox.models import AuthToken

from tests.factories import UserFactory
from xrayplatform.audit import AuditEntry

ROLES = ["clinician", "data scientist", "model manager", "administrator", "auditor", "version remover"]
NO_ROLE = "no role"
USERS = [NO_ROLE, *ROLES]
SCIENTIST = ["data scientist"]
REMOVER = ["version remover"]
PRUNERS = ["data scientist", "administrator"]
QUEUE_KEEPERS = ["model manager", "administrator"]
NOTERS = ["clinician", "data scientist", "model manager", "administrator"]
CANCELLERS = ["data scientist", "model manager", "administrator"]
SYSTEM = ["data scientist", "model manager", "administrator", "auditor"]
PREPARE = {"seed": 0, "image_size": 128, "fit": "auto", "source_splits": "honour"}
PREPARE |= {"validation_share": 0.15, "test_share": 0.15}
DECIDE = {"code": "blurred", "action": "keep", "reason": "x"}
SEARCH = {"dataset": "{dataset}", "architectures": "Custom_CNN", "configuration": "standard", "mode": "grid"}
SEARCH |= {"option_1": "seed", "values_1": "1,2"}
SPEED = {"architecture": "Custom_CNN", "image_size": 64, "batch_size": 8}
WEIGHERS = ["data scientist", "model manager"]
LABELLERS = ["data scientist", "model manager"]
FLAGGERS = ["clinician", "data scientist", "model manager"]
PLAN = {"reason": "x", "at": "2100-01-01T00:00:00Z"}
POINT = {"criterion": "by hand", "threshold": "0.4", "reason": "x"}
RUN = {"dataset": "{dataset}", "architecture": "Custom_CNN", "configuration": "quick"}
TEAM_OBJECTS = {"condition", "dataset", "image", "finding", "preparation", "upload", "run", "version", "prediction"}
TEAM_OBJECTS |= {"experiment", "batch"}
TEAM_OBJECTS |= {"preset", "search", "evaluation", "evaluation_run", "scheduled", "package_import", "alert"}
TEAM_OBJECTS |= {"condition_export"}


@dataclass(frozen=True)
class Row:
    """An address with a method, the roles that are let in, and what they get.

    of: the object that the address is about. extra: what stands in the address after it.
    """

    method: str
    name: str
    roles: list[str]
    status: int = 200
    of: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    extra: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.name}"


# fmt: off
PAGES = [
    Row("GET", "xrayplatform:dashboard", USERS),
    Row("GET", "xrayplatform:guide", USERS),
    Row("GET", "xrayplatform:token-list", USERS),
    Row("POST", "xrayplatform:token-list", USERS),
    Row("POST", "xrayplatform:token-revoke", USERS, 302, "own_token"),
    Row("GET", "xrayplatform:notification-list", USERS),
    Row("POST", "xrayplatform:notification-read", USERS, 302),
    Row("GET", "xrayplatform:system-status", SYSTEM),
    Row("GET", "xrayplatform:auditentry-list", ["auditor"]),
    Row("GET", "xrayplatform:auditentry-export", ["auditor"]),
    Row("GET", "datasets:dataset-list", ROLES),
    Row("GET", "datasets:dataset-detail", ROLES, 200, "dataset"),
    Row("GET", "datasets:problem-list", ROLES, 200, "dataset"),
    Row("GET", "datasets:dataset-choices", SCIENTIST, 200, "dataset"),
    Row("POST", "datasets:dataset-choices", SCIENTIST, 302, "dataset", {"form": "pattern", "pattern": ""}),
    Row("GET", "datasets:pattern-preview", SCIENTIST, 200, "dataset"),
    Row("POST", "datasets:missing-accept", SCIENTIST, 302, "dataset"),
    Row("GET", "datasets:quality-report", ROLES, 200, "dataset"),
    Row("POST", "datasets:finding-decide", SCIENTIST, 302, "dataset", DECIDE),
    Row("GET", "datasets:image-list", ROLES, 200, "dataset"),
    Row("GET", "datasets:image-detail", ROLES, 200, "image"),
    # 404: let in, but the file of this image is not there.
    Row("GET", "datasets:image-thumbnail", ROLES, 404, "image"),
    Row("POST", "datasets:image-decide", SCIENTIST, 302, "image", {"action": "exclude", "reason": "blurred"}),
    Row("POST", "datasets:image-flag", FLAGGERS, 302, "image", {"action": "flag"}),
    Row("GET", "datasets:version-compare", ROLES, 200, "dataset"),
    Row("GET", "datasets:storage-detail", ROLES),
    Row("POST", "datasets:storage-prune", PRUNERS, 302),
    Row("POST", "datasets:pixels-remove", PRUNERS, 302, "preparation"),
    Row("POST", "datasets:scan-start", SCIENTIST, 302),
    Row("GET", "datasets:scan-status", ROLES, 200, "scan"),
    Row("POST", "datasets:scan-cancel", SCIENTIST, 302, "scan"),
    Row("GET", "datasets:upload-new", SCIENTIST),
    Row("POST", "datasets:upload-new", SCIENTIST, 400),
    Row("GET", "datasets:upload-create", SCIENTIST, 200, "dataset"),
    # 409: let in, but the folder of this dataset is not there.
    Row("POST", "datasets:upload-create", SCIENTIST, 409, "dataset"),
    Row("GET", "datasets:upload-detail", ROLES, 200, "upload"),
    Row("POST", "datasets:upload-cancel", SCIENTIST, 302, "upload"),
    Row("POST", "datasets:preparation-start", SCIENTIST, 302, "dataset", PREPARE),
    Row("GET", "datasets:preparation-detail", ROLES, 200, "preparation"),
    Row("POST", "datasets:preparation-cancel", SCIENTIST, 302, "preparation"),
    Row("GET", "training:run-list", ROLES),
    Row("GET", "training:pretrained-list", ROLES),
    Row("GET", "training:run-create", SCIENTIST),
    Row("POST", "training:run-create", SCIENTIST, 302, "", RUN),
    Row("GET", "training:augmentation-preview", ROLES, 200, "preparation"),
    Row("GET", "training:strengths-preview", ROLES),
    Row("GET", "training:preset-list", ROLES),
    Row("GET", "training:preset-create", SCIENTIST),
    Row("POST", "training:preset-create", SCIENTIST, 302, "", {"name": "Night"}),
    Row("GET", "training:preset-edit", SCIENTIST, 200, "preset"),
    Row("POST", "training:preset-edit", SCIENTIST, 302, "preset", {"name": "Night"}),
    Row("POST", "training:preset-delete", SCIENTIST, 302, "preset"),
    Row("GET", "training:run-detail", ROLES, 200, "run"),
    Row("GET", "training:run-status", ROLES, 200, "run"),
    Row("GET", "training:run-curves", ROLES, 200, "run"),
    Row("POST", "training:run-note", NOTERS, 302, "run", {"text": "x"}),
    Row("GET", "training:run-preflight", SCIENTIST),
    Row("POST", "training:speed-test-start", SCIENTIST, 302, "", SPEED),
    Row("GET", "training:speed-test-detail", ROLES, 200, "speed_test"),
    Row("POST", "training:run-cancel", CANCELLERS, 302, "run"),
    Row("POST", "training:run-resume", SCIENTIST, 302, "run"),
    Row("POST", "training:run-prioritise", QUEUE_KEEPERS, 302, "run", {"priority": "1"}),
    Row("GET", "training:dataset-lineage", ROLES, 200, "dataset"),
    Row("GET", "training:queue-detail", ROLES),
    Row("POST", "training:queue-pause", QUEUE_KEEPERS, 302, "", {"reason": "x"}),
    Row("POST", "training:queue-open", QUEUE_KEEPERS, 302),
    Row("GET", "training:search-list", ROLES),
    Row("GET", "training:search-create", SCIENTIST),
    Row("POST", "training:search-create", SCIENTIST, 302, "", SEARCH),
    Row("GET", "training:search-detail", ROLES, 200, "search"),
    Row("GET", "training:search-curves", ROLES, 200, "search"),
    Row("POST", "training:search-cancel", CANCELLERS, 302, "search"),
    Row("GET", "registry:version-list", ROLES),
    Row("GET", "registry:version-detail", ROLES, 200, "version"),
    Row("GET", "registry:version-compare", ROLES),
    Row("GET", "registry:storage", ROLES),
    # 302: let in, but no version was chosen.
    Row("GET", "registry:versions-delete", REMOVER, 302),
    Row("POST", "registry:versions-delete", REMOVER, 302, "", {"reason": "x"}),
    Row("GET", "registry:versions-archive", ["model manager"], 302),
    Row("POST", "registry:versions-archive", ["model manager"], 302, "", {"reason": "x"}),
    Row("GET", "registry:version-card", ROLES, 200, "version"),
    Row("GET", "registry:version-lineage", ROLES, 200, "version"),
    # 302: let in, but the files of this version are not there.
    Row("GET", "registry:version-export", ["model manager"], 302, "version"),
    Row("GET", "registry:condition-export", ["model manager"], 200, "condition"),
    Row("POST", "registry:condition-export", ["model manager"], 302, "condition"),
    Row("GET", "registry:export-detail", ["model manager"], 200, "condition_export"),
    Row("POST", "registry:export-cancel", ["model manager"], 302, "condition_export"),
    # 302: let in, but the file of this export is not there any more.
    Row("GET", "registry:export-download", ["model manager"], 302, "condition_export"),
    Row("GET", "registry:package-create", ["model manager"]),
    Row("POST", "registry:package-create", ["model manager"], 400),
    # 404: let in, but somebody else has sent this package.
    Row("GET", "registry:package-confirm", ["model manager"], 404, "package"),
    Row("POST", "registry:package-confirm", ["model manager"], 404, "package"),
    Row("GET", "registry:import-detail", ROLES, 200, "package_import"),
    Row("POST", "registry:import-cancel", ["model manager"], 302, "package_import"),
    Row("POST", "registry:version-activate", ["model manager"], 302, "version"),
    Row("POST", "registry:version-rollback", ["model manager"], 302, "version"),
    Row("POST", "registry:version-approve", ["model manager"], 302, "version", {"reason": "x"}),
    Row("POST", "registry:version-archive", ["model manager"], 302, "version", {"reason": "x"}),
    Row("POST", "registry:version-reopen", ["model manager"], 302, "version", {"reason": "x"}),
    Row("POST", "registry:version-tag", LABELLERS, 302, "version", {"name": "x"}),
    Row("POST", "registry:version-untag", LABELLERS, 302, "version", {"name": "pilot study"}),
    Row("POST", "registry:version-note", LABELLERS, 302, "version", {"text": "x"}),
    Row("POST", "registry:version-verify", ["model manager"], 302, "version"),
    Row("POST", "registry:version-restore", ["model manager"], 302, "version"),
    Row("POST", "registry:scheduled-cancel", ["model manager"], 302, "scheduled"),
    Row("GET", "registry:evaluation-detail", ROLES, 200, "evaluation"),
    Row("GET", "registry:evaluation-print", ROLES, 200, "evaluation"),
    Row("GET", "registry:threshold-edit", ROLES, 200, "version"),
    Row("POST", "registry:threshold-edit", WEIGHERS, 302, "version", POINT),
    Row("GET", "inference:prediction-create", ["clinician"]),
    Row("POST", "inference:prediction-create", ["clinician"], 400),
    Row("GET", "inference:prediction-list", ROLES),
    Row("GET", "inference:prediction-detail", ROLES, 200, "prediction"),
    # 404: let in, but neither the picture nor the maps of this prediction are there.
    Row("GET", "inference:prediction-image", ROLES, 404, "prediction"),
    Row("GET", "inference:prediction-map", ROLES, 404, "prediction"),
    Row("POST", "inference:verdict-create", ["clinician"], 302, "prediction", {"verdict": "agree"}),
    Row("GET", "inference:prediction-fhir", ROLES, 200, "prediction"),
    # 302: let in, but this was no DICOM image.
    Row("GET", "inference:prediction-report", ROLES, 302, "prediction"),
    Row("POST", "inference:prediction-report", ROLES, 302, "prediction"),
    Row("GET", "inference:prediction-capture", ROLES, 302, "prediction"),
    Row("POST", "inference:prediction-capture", ROLES, 302, "prediction"),
    Row("GET", "inference:batch-list", ROLES),
    Row("GET", "inference:batch-create", ["clinician"]),
    Row("POST", "inference:batch-create", ["clinician"], 400),
    Row("GET", "inference:batch-detail", ROLES, 200, "batch"),
    Row("GET", "inference:batch-csv", ROLES, 200, "batch"),
    Row("GET", "inference:batch-json", ROLES, 200, "batch"),
    Row("POST", "inference:batch-cancel", ["clinician"], 302, "batch"),
    Row("POST", "inference:batch-go-on", ["clinician"], 302, "batch"),
    Row("GET", "inference:evaluation-run-create", WEIGHERS),
    Row("POST", "inference:evaluation-run-create", WEIGHERS, 400),
    # 302: let in, but no version was named.
    Row("GET", "inference:evaluation-run-several", WEIGHERS, 302),
    Row("POST", "inference:evaluation-run-several", WEIGHERS, 302),
    Row("GET", "inference:evaluation-run-detail", ROLES, 200, "evaluation_run"),
    Row("POST", "inference:evaluation-run-cancel", WEIGHERS, 302, "evaluation_run"),
    Row("GET", "inference:policy-edit", ROLES, 200, "condition"),
    Row("POST", "inference:policy-edit", ["model manager"], 400, "condition"),
    Row("GET", "inference:monitoring", ROLES),
    Row("POST", "inference:alert-acknowledge", ["model manager"], 302, "alert", {"comment": "x"}),
    Row("GET", "inference:correction-create", SCIENTIST),
    # 400: let in, but no condition was named.
    Row("POST", "inference:correction-create", SCIENTIST, 400),
    Row("GET", "inference:evaluation-images", ROLES, 200, "evaluation"),
    # 404: let in, but the images of this evaluation are not there.
    Row("GET", "inference:evaluation-map", ROLES, 404, "evaluation", extra=(0,)),
    Row("POST", "inference:evaluation-flag", FLAGGERS, 404, "evaluation", {"action": "flag"}, (0,)),
    Row("GET", "inference:experiment-list", ROLES),
    Row("GET", "inference:experiment-create", ["model manager"]),
    Row("POST", "inference:experiment-create", ["model manager"], 400),
    Row("GET", "inference:experiment-detail", ROLES, 200, "experiment"),
    Row("POST", "inference:experiment-stop", ["model manager"], 302, "experiment"),
    Row("POST", "inference:experiment-promote", ["model manager"], 302, "experiment"),
]
API = [
    Row("GET", "api:condition-list", ROLES),
    Row("GET", "api:condition-detail", ROLES, 200, "condition"),
    Row("POST", "api:condition-export", ["model manager"], 202, "condition"),
    Row("GET", "api:conditionexport-list", ["model manager"]),
    Row("GET", "api:conditionexport-detail", ["model manager"], 200, "condition_export"),
    Row("POST", "api:conditionexport-cancel", ["model manager"], 200, "condition_export"),
    # 409: let in, but the file of this export is not there any more.
    Row("GET", "api:conditionexport-download", ["model manager"], 409, "condition_export"),
    Row("GET", "api:dataset-list", ROLES),
    Row("GET", "api:dataset-detail", ROLES, 200, "dataset"),
    Row("POST", "api:dataset-scan", SCIENTIST, 202),
    Row("POST", "api:dataset-prepare", SCIENTIST, 202, "dataset", PREPARE),
    Row("PATCH", "api:dataset-choices", SCIENTIST, 200, "dataset"),
    Row("POST", "api:dataset-pattern", SCIENTIST, 200, "dataset", {"pattern": ""}),
    Row("GET", "api:dataset-quality", ROLES, 200, "dataset"),
    Row("GET", "api:dataset-compare", ROLES, 200, "dataset"),
    Row("POST", "api:dataset-decide", SCIENTIST, 200, "dataset", DECIDE),
    Row("GET", "api:traineddataset-lineage", ROLES, 200, "dataset"),
    Row("GET", "api:image-list", ROLES),
    Row("GET", "api:image-detail", ROLES, 200, "image"),
    Row("GET", "api:image-picture", ROLES, 404, "image"),
    Row("POST", "api:image-decide", SCIENTIST, 200, "image", {"action": "exclude", "reason": "blurred"}),
    Row("POST", "api:image-flag", FLAGGERS, 200, "image"),
    Row("DELETE", "api:image-flag", FLAGGERS, 200, "image"),
    Row("GET", "api:finding-list", ROLES),
    Row("GET", "api:finding-detail", ROLES, 200, "finding"),
    Row("GET", "api:scan-list", ROLES),
    Row("GET", "api:scan-detail", ROLES, 200, "scan"),
    Row("POST", "api:scan-cancel", SCIENTIST, 200, "scan"),
    Row("GET", "api:preparation-list", ROLES),
    Row("GET", "api:preparation-detail", ROLES, 200, "preparation"),
    Row("GET", "api:preparation-storage", ROLES),
    Row("POST", "api:preparation-prune", PRUNERS),
    Row("POST", "api:preparation-cancel", SCIENTIST, 200, "preparation"),
    # 409: let in, but a run of this preparation is waiting.
    Row("POST", "api:preparation-remove-pixels", PRUNERS, 409, "preparation"),
    Row("GET", "api:upload-list", ROLES),
    Row("POST", "api:upload-list", SCIENTIST, 400),
    Row("GET", "api:upload-detail", ROLES, 200, "upload"),
    Row("POST", "api:upload-cancel", SCIENTIST, 200, "upload"),
    Row("GET", "api:architecture-list", ROLES),
    Row("GET", "api:run-list", ROLES),
    Row("POST", "api:run-list", SCIENTIST, 202, "", RUN),
    Row("GET", "api:run-detail", ROLES, 200, "run"),
    Row("GET", "api:run-metrics", ROLES, 200, "run"),
    Row("GET", "api:run-log", ROLES, 200, "run"),
    Row("GET", "api:run-hints", ROLES, 200, "run"),
    Row("GET", "api:run-notes", ROLES, 200, "run"),
    Row("POST", "api:run-notes", NOTERS, 201, "run", {"text": "x"}),
    Row("POST", "api:run-estimate", SCIENTIST, 200, "", RUN),
    Row("GET", "api:speedtest-list", ROLES),
    Row("POST", "api:speedtest-list", SCIENTIST, 202, "", SPEED),
    Row("GET", "api:speedtest-detail", ROLES, 200, "speed_test"),
    Row("POST", "api:run-cancel", CANCELLERS, 200, "run"),
    # 409: let in, but this run has not failed.
    Row("POST", "api:run-resume", SCIENTIST, 409, "run"),
    Row("POST", "api:run-prioritise", QUEUE_KEEPERS, 200, "run", {"priority": "high"}),
    Row("GET", "api:queue-list", ROLES),
    Row("POST", "api:queue-pause", QUEUE_KEEPERS, 200, "", {"reason": "x"}),
    Row("POST", "api:queue-open", QUEUE_KEEPERS, 200),
    Row("GET", "api:search-list", ROLES),
    # 400: let in, but one run is no search.
    Row("POST", "api:search-list", SCIENTIST, 400, "", SEARCH),
    Row("POST", "api:search-estimate", SCIENTIST, 400, "", SEARCH),
    Row("GET", "api:search-detail", ROLES, 200, "search"),
    Row("POST", "api:search-cancel", CANCELLERS, 200, "search"),
    Row("GET", "api:preset-list", ROLES),
    Row("POST", "api:preset-list", SCIENTIST, 201, "", {"name": "Night"}),
    Row("GET", "api:preset-detail", ROLES, 200, "preset"),
    Row("PATCH", "api:preset-detail", SCIENTIST, 200, "preset", {"name": "Night"}),
    Row("DELETE", "api:preset-detail", SCIENTIST, 204, "preset"),
    Row("GET", "api:version-list", ROLES),
    Row("GET", "api:version-detail", ROLES, 200, "version"),
    # 409: let in, but this version is not archived.
    Row("DELETE", "api:version-detail", REMOVER, 409, "version", {"reason": "x"}),
    Row("GET", "api:version-storage", ROLES),
    Row("GET", "api:version-history", ROLES, 200, "version"),
    # 400: let in, but no version was named.
    Row("GET", "api:version-compare", ROLES, 400),
    Row("GET", "api:version-card", ROLES, 200, "version"),
    Row("GET", "api:version-lineage", ROLES, 200, "version"),
    # 409: let in, but the files of this version are not there.
    Row("GET", "api:version-export", ["model manager"], 409, "version"),
    Row("GET", "api:package-list", ROLES),
    Row("POST", "api:package-list", ["model manager"], 400),
    Row("GET", "api:package-detail", ROLES, 200, "package_import"),
    Row("POST", "api:package-cancel", ["model manager"], 200, "package_import"),
    # 409: let in, but the files of this version are not there.
    Row("POST", "api:version-activate", ["model manager"], 409, "version", {"reason": "x"}),
    Row("POST", "api:version-schedule", ["model manager"], 409, "version", PLAN),
    Row("POST", "api:version-restore", ["model manager"], 409, "version"),
    # 409: let in, but this version is not in service.
    Row("POST", "api:version-rollback", ["model manager"], 409, "version", {"reason": "x"}),
    Row("POST", "api:version-approve", ["model manager"], 200, "version", {"reason": "x"}),
    # 409: let in, but the activation of this version is planned.
    Row("POST", "api:version-archive", ["model manager"], 409, "version", {"reason": "x"}),
    # 409: let in, but this version is a candidate.
    Row("POST", "api:version-reopen", ["model manager"], 409, "version", {"reason": "x"}),
    Row("GET", "api:version-states", ROLES, 200, "version"),
    Row("POST", "api:version-tag", LABELLERS, 201, "version", {"name": "x"}),
    Row("DELETE", "api:version-untag", LABELLERS, 204, "version", extra=("pilot study",)),
    Row("GET", "api:version-notes", ROLES, 200, "version"),
    Row("POST", "api:version-notes", LABELLERS, 201, "version", {"text": "x"}),
    # 409: let in, but the files of no version are there.
    Row("POST", "api:version-verify", ["model manager"], 409, "version"),
    Row("GET", "api:version-outlook", ROLES, 200, "version"),
    Row("GET", "api:deployment-list", ROLES),
    # 404: let in, but nothing is in service.
    Row("GET", "api:deployment-detail", ROLES, 404, "condition"),
    Row("GET", "api:scheduledactivation-list", ROLES),
    Row("GET", "api:scheduledactivation-detail", ROLES, 200, "scheduled"),
    Row("POST", "api:scheduledactivation-cancel", ["model manager"], 200, "scheduled"),
    Row("GET", "api:version-operating-points", ROLES, 200, "version"),
    Row("POST", "api:version-operating-points", WEIGHERS, 201, "version", POINT),
    Row("GET", "api:evaluation-list", ROLES),
    Row("GET", "api:evaluation-detail", ROLES, 200, "evaluation"),
    Row("GET", "api:prediction-list", ROLES),
    Row("POST", "api:prediction-list", ["clinician"], 400),
    Row("GET", "api:prediction-detail", ROLES, 200, "prediction"),
    Row("GET", "api:prediction-experiment", ["auditor"], 200, "prediction"),
    Row("GET", "api:prediction-verdicts", ROLES, 200, "prediction"),
    Row("POST", "api:prediction-verdicts", ["clinician"], 201, "prediction", {"agrees": "true"}),
    Row("GET", "api:predictionexport-fhir", ROLES, 200, "prediction"),
    # 409: let in, but this was no DICOM image; 400: let in, but none was sent.
    Row("GET", "api:predictionexport-sr", ROLES, 409, "prediction"),
    Row("POST", "api:predictionexport-sr", ROLES, 400, "prediction"),
    Row("GET", "api:predictionexport-sc", ROLES, 409, "prediction"),
    Row("POST", "api:predictionexport-sc", ROLES, 400, "prediction"),
    # 404: let in, but the version of this prediction has no maps.
    Row("GET", "api:prediction-map", ROLES, 404, "prediction"),
    Row("GET", "api:batch-list", ROLES),
    Row("POST", "api:batch-list", ["clinician"], 400),
    Row("GET", "api:batch-detail", ROLES, 200, "batch"),
    Row("GET", "api:batch-items", ROLES, 200, "batch"),
    Row("GET", "api:batch-results", ROLES, 200, "batch"),
    Row("POST", "api:batch-cancel", ["clinician"], 200, "batch"),
    # 409: let in, but this batch has not failed.
    Row("POST", "api:batch-go-on", ["clinician"], 409, "batch"),
    Row("GET", "api:evaluationrun-list", ROLES),
    Row("POST", "api:evaluationrun-list", WEIGHERS, 400),
    Row("GET", "api:evaluationrun-detail", ROLES, 200, "evaluation_run"),
    Row("POST", "api:evaluationrun-cancel", WEIGHERS, 200, "evaluation_run"),
    Row("GET", "api:evaluatedimages-detail", ROLES, 200, "evaluation"),
    # 400: let in, but no image was named.
    Row("GET", "api:evaluatedimages-map", ROLES, 400, "evaluation"),
    Row("POST", "api:evaluatedimages-flag", FLAGGERS, 400, "evaluation"),
    Row("GET", "api:policy-detail", ROLES, 200, "condition"),
    Row("PATCH", "api:policy-detail", ["model manager"], 200, "condition"),
    Row("GET", "api:experiment-list", ROLES),
    Row("POST", "api:experiment-list", ["model manager"], 400),
    Row("GET", "api:experiment-detail", ROLES, 200, "experiment"),
    # 409: let in, but this experiment has ended.
    Row("POST", "api:experiment-stop", ["model manager"], 409, "experiment", {"reason": "x"}),
    Row("POST", "api:experiment-promote", ["model manager"], 409, "experiment", {"reason": "x"}),
    # 400: let in, but no condition was named.
    Row("GET", "api:monitoring-list", ROLES, 400),
    Row("GET", "api:alert-list", ROLES),
    Row("GET", "api:alert-detail", ROLES, 200, "alert"),
    Row("POST", "api:alert-acknowledge", ["model manager"], 200, "alert", {"comment": "x"}),
    Row("GET", "api:correction-list", SCIENTIST, 400),
    Row("POST", "api:correction-list", SCIENTIST, 400),
    Row("GET", "api:system-list", SYSTEM),
    Row("GET", "api:notification-list", USERS),
    Row("POST", "api:notification-read", USERS),
    Row("GET", "api:auditentry-list", ["auditor"]),
    Row("GET", "api:auditentry-export", ["auditor"]),
    Row("GET", "api:auditentry-detail", ["auditor"], 200, "entry"),
    Row("GET", "api-schema", USERS),
    Row("GET", "api-docs", USERS),
]
# Open to everybody, each with its own test below.
OPEN = {"xrayplatform:login", "xrayplatform:logout", "xrayplatform:health", "api:token-list", "admin-login"}
# For accounts of devices, by token alone: tests/inference/test_stow_view.py.
OPEN |= {"stow-studies", "stow-study"}
# fmt: on
ROWS = [*PAGES, *API]
# Charlie is no auditor; what only auditors see has tests of its own.
OF_TEAM = [row for row in ROWS if row.of in TEAM_OBJECTS and row.roles != ["auditor"]]


def routes(patterns: list[Any] | None = None, namespace: str = "") -> list[tuple[str, URLPattern]]:
    """Every address below the resolver with its full name; those of the admin have their own tests."""
    found: list[tuple[str, URLPattern]] = []
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        if isinstance(pattern, URLResolver):
            if pattern.namespace != "admin":
                inner = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
                found += routes(pattern.url_patterns, inner)
        elif str(pattern.pattern) == "admin/login/":
            found.append(("admin-login", pattern))
        else:
            found.append((f"{namespace}{pattern.name}", pattern))
    return found


@pytest.fixture
def users(team, world):
    """One user of the team for each role, and one without any."""
    made = {role: UserFactory(username=role, roles=[role], is_staff=role == "administrator") for role in USERS}
    team.members.set(made.values())
    return made


def address(row: Row, world: Any, user: Any = None) -> str:
    if not row.of:
        return reverse(row.name)
    if row.of == "own_token":
        return reverse(row.name, args=[AuthToken.objects.create(user)[0].token_key if user else "0" * 15])
    if row.of == "entry":
        return reverse(row.name, args=[AuditEntry.objects.create(actor_name="x", action="x.y").pk])
    key = world.condition.slug if row.of == "condition" else getattr(world, row.of).pk
    return reverse(row.name, args=[key, *row.extra])


def logged_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def ask(row: Row, world: Any, user: Any = None, client: Client | None = None) -> Any:
    """The answer to `user` (None: nobody is logged in); what it changed is undone."""
    client = client or (logged_in(user) if user else Client())
    data = {name: world.dataset.pk if value == "{dataset}" else value for name, value in row.data.items()}
    with transaction.atomic():
        response = client.generic(row.method, address(row, world, user), **_body(data, row))
        response.refusals = AuditEntry.objects.filter(action="access.refused", actor=user, outcome="refused").count()
        transaction.set_rollback(True)
    return response


def _body(data: dict[str, Any], row: Row) -> dict[str, Any]:
    if row.method == "GET":
        return {}
    encoded = "&".join(f"{name}={value}" for name, value in data.items())
    if row.name.startswith(("api:prediction", "inference:prediction-create")):
        return {"data": "--b--\r\n", "content_type": "multipart/form-data; boundary=b"}
    return {"data": encoded, "content_type": "application/x-www-form-urlencoded"}


def test_every_address_and_method_has_a_row():
    listed = defaultdict(set)
    for row in ROWS:
        listed[row.name].add(row.method)
    assert {name for name, _ in routes()} == set(listed) | OPEN
    for name, pattern in routes():
        actions = getattr(pattern.callback, "actions", None)
        if actions and name not in OPEN:
            assert {method.upper() for method in actions} - {"HEAD"} == listed[name], name


def test_every_page_names_its_permissions_and_every_action_of_the_api_too():
    for name, pattern in routes():
        if name in OPEN or name in ("api-schema", "api-docs"):
            continue
        actions = getattr(pattern.callback, "actions", None)
        if actions:
            assert set(actions.values()) <= set(pattern.callback.cls.permissions), name
        else:
            assert hasattr(pattern.callback, "permissions"), f"{name} lacks @allow"


def test_pages_take_the_listed_methods_only(world, users, admin_client):
    """The view itself says which methods it takes; none may be missing in the table."""
    listed = defaultdict(set)
    taken = {}
    for row in PAGES:
        listed[row.name].add(row.method)
        response = admin_client.options(address(row, world, users[NO_ROLE]))
        assert response.status_code == 405, row
        taken[row.name] = set(response["Allow"].split(", "))
    assert taken == listed


@pytest.mark.parametrize("role", USERS)
def test_a_role_gets_what_the_table_says_and_refusals_are_recorded(role, world, users):
    client = logged_in(users[role])
    answers = {str(row): ask(row, world, users[role], client) for row in ROWS}
    expected = {str(row): row.status if role in row.roles else 403 for row in ROWS}
    assert {name: answer.status_code for name, answer in answers.items()} == expected
    recorded = {name: answer.refusals for name, answer in answers.items()}
    assert recorded == {name: int(status == 403) for name, status in expected.items()}


def test_visitors_of_pages_are_sent_to_the_login(world):
    login = reverse("xrayplatform:login")
    answers = {str(row): ask(row, world) for row in PAGES}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 302)
    assert {answer.url for answer in answers.values()} == {f"{login}?next={address(row, world)}" for row in PAGES}


def test_visitors_of_the_api_are_asked_for_a_token(world):
    answers = {str(row): ask(row, world) for row in API}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 401)
    assert {answer["WWW-Authenticate"] for answer in answers.values()} == {"Token"}


def test_another_teams_object_is_not_found_even_with_every_working_role(world, charlie):
    client = logged_in(charlie)
    answers = {str(row): ask(row, world, charlie, client).status_code for row in OF_TEAM}
    assert answers == dict.fromkeys(answers, 404)


def test_an_object_without_a_team_is_found_by_every_team(world, charlie):
    world.condition.team = None
    world.condition.save()
    # Who did not create it may not delete it.
    world.preset.team, world.preset.created_by = None, charlie
    world.preset.save()
    client = logged_in(charlie)
    answers = {str(row): ask(row, world, charlie, client).status_code for row in OF_TEAM}
    assert answers == {str(row): row.status for row in OF_TEAM}


def test_lists_do_not_name_what_belongs_to_another_team(world, charlie, client):
    charlie.groups.add(Group.objects.get(name="auditor"))
    client.force_login(charlie)
    # Auditors read what every team did.
    audit_log = {f"{where}:auditentry-{page}" for where in ("xrayplatform", "api") for page in ("list", "export")}
    for name in {row.name for row in ROWS if row.method == "GET" and not row.of} - audit_log:
        content = client.get(reverse(name)).content.decode()
        secrets = [world.dataset.name, f"{world.condition.slug} v", str(world.prediction.pk), world.team.name]
        for secret in [*secrets, world.batch.name]:
            assert secret not in content, name


@pytest.mark.parametrize("name", ["training:run-create", "api:run-list"])
def test_a_run_cannot_be_started_on_another_teams_dataset(name, world, charlie, client):
    client.force_login(charlie)
    response = client.post(
        reverse(name), {"dataset": world.dataset.pk, "architecture": "Custom_CNN", "configuration": "quick"}
    )
    assert response.status_code == 400
    assert world.preparation.runs.count() == 1
    assert world.dataset.name not in response.content.decode()


def test_another_users_token_is_not_found(alice, bob, client):
    token, _ = AuthToken.objects.create(bob)
    client.force_login(alice)
    assert client.post(reverse("xrayplatform:token-revoke", args=[token.token_key])).status_code == 404
    assert AuthToken.objects.filter(pk=token.pk).exists()


def test_only_staff_reaches_the_admin(users, client):
    assert client.get("/admin/").status_code == 302
    answers = {}
    for role, user in users.items():
        client.force_login(user)
        answers[role] = client.get("/admin/").status_code
    assert answers == {role: 200 if role == "administrator" else 302 for role in users}


def test_every_page_of_the_admin_turns_away_who_is_no_staff(users, alice, client):
    client.force_login(alice)
    admin = next(pattern for pattern in get_resolver().url_patterns if getattr(pattern, "namespace", "") == "admin")
    addresses = {reverse("admin:index"), reverse("admin:password_change")}
    for pattern in admin.url_patterns:
        if isinstance(pattern, URLResolver):
            addresses |= {
                f"/admin/{pattern.pattern}",
                f"/admin/{pattern.pattern}add/",
                f"/admin/{pattern.pattern}1/change/",
            }
    for url in addresses:
        response = client.get(url)
        assert (response.status_code, response.url.split("?")[0]) == (302, "/admin/login/"), url


def test_the_open_addresses_answer_visitors_and_nothing_more(client, db):
    assert client.get(reverse("xrayplatform:login")).status_code == 200
    assert client.get(reverse("xrayplatform:logout")).status_code == 302
    assert client.get(reverse("xrayplatform:health")).json() == {"status": "ok"}
    assert client.get("/admin/login/").status_code == 302
    assert client.get(reverse("api:token-list")).status_code == 405
    assert client.post(reverse("api:token-list")).status_code == 400


def test_logging_out_needs_a_post(client, alice):
    client.force_login(alice)
    assert client.get(reverse("xrayplatform:logout")).status_code == 405
    assert client.post(reverse("xrayplatform:logout")).url == reverse("xrayplatform:login")


def test_a_role_that_is_taken_away_is_gone_at_the_next_request(client, alice):
    client.force_login(alice)
    assert client.get(reverse("datasets:dataset-list")).status_code == 200
    alice.groups.clear()
    assert client.get(reverse("datasets:dataset-list")).status_code == 403


@pytest.mark.parametrize("name", ["datasets:scan-start", "api:dataset-scan"])
def test_a_post_without_the_csrf_token_is_refused(name, alice):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert client.post(reverse(name)).status_code == 403


def test_what_a_user_sends_beyond_the_options_is_refused_by_name(world, alice, client):
    client.force_login(alice)
    sent = {
        "dataset": world.dataset.pk,
        "architecture": "Custom_CNN",
        "state": "succeeded",
        "version": world.version.pk,
    }
    answer = client.post(reverse("api:run-list"), sent)
    assert answer.status_code == 400
    assert set(answer.json()["errors"]) == {"state", "version"}
