"""Users and folders that every test may ask for.

alice has every role but administrator and auditor and owns what belongs to the team; bob is a clinician of the same
team; charlie has alice's roles in another team and must not see anything of hers.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management.commands import flush
from django.test import Client
from rest_framework.test import APIClient

from tests.factories import (
    PASSWORD,
    BatchFactory,
    ConditionExportFactory,
    ConditionFactory,
    DatasetFactory,
    DatasetImageFactory,
    EpochMetricFactory,
    EvaluationRunFactory,
    ExperimentFactory,
    FindingFactory,
    ModelVersionFactory,
    MonitoringAlertFactory,
    PackageImportFactory,
    PredictionFactory,
    PreparationFactory,
    SavedPresetFactory,
    ScanFactory,
    ScheduledActivationFactory,
    SearchFactory,
    SpeedTestFactory,
    TeamFactory,
    ThresholdSetFactory,
    TrainingRunFactory,
    UploadFactory,
    UserFactory,
    put_cache,
)
from tests.registry.evaluations import make_evaluation
from xrayplatform import audit, immutability
from xrayplatform.teams import Team, sync_roles

REAL_IMAGES = Path(__file__).resolve().parents[1].parent / "shared" / "xray"
WORKING_ROLES = ["clinician", "data scientist", "model manager"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PostgreSQL run what touches a database: the pure modules are tested in the run on SQLite."""
    if not os.environ.get("DATABASE_URL", "").startswith("postgres"):
        return
    touching = {"db", "transactional_db", "platform", "instance"}
    others = [item for item in items if not (touching & set(item.fixturenames) or item.get_closest_marker("django_db"))]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def _flush_immutable_rows(self: Any, flush_everything: Any = flush.Command.handle, **options: Any) -> None:
    """What the platform itself refuses, and tests that commit need: an empty database afterwards."""
    with immutability.suspended(options["database"]):
        flush_everything(self, **options)


flush.Command.handle = _flush_immutable_rows


@pytest.fixture(autouse=True)
def folders(settings: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every test has its own, empty data folders, apart from `tmp_path`, which stays empty."""
    root = tmp_path_factory.mktemp("platform")
    settings.DATASET_ROOT = root / "Dataset"
    settings.MODEL_ROOT = root / "models"
    settings.DATASET_ROOT.mkdir()
    settings.MODEL_ROOT.mkdir()


@pytest.fixture
def real_images() -> Path:
    if not REAL_IMAGES.is_dir():
        pytest.skip("the real radiographs (../shared/xray) are not on this machine")
    return REAL_IMAGES


@pytest.fixture
def roles(db: None) -> None:
    sync_roles()


@pytest.fixture
def team(roles: None) -> Team:
    return TeamFactory(name="Chest clinic")


@pytest.fixture
def alice(team: Team) -> Any:
    user = UserFactory(username="alice", roles=WORKING_ROLES)
    team.members.add(user)
    return user


@pytest.fixture
def bob(team: Team) -> Any:
    user = UserFactory(username="bob", roles=["clinician"])
    team.members.add(user)
    return user


@pytest.fixture
def charlie(roles: None) -> Any:
    """May delete versions besides: what he does not find is not for lack of a role."""
    user = UserFactory(username="charlie", roles=[*WORKING_ROLES, "version remover"])
    TeamFactory(name="Orthopaedics").members.add(user)
    return user


@pytest.fixture
def auditor(roles: None) -> Any:
    return UserFactory(username="otto", roles=["auditor"])


@pytest.fixture
def administrator(roles: None) -> Any:
    return UserFactory(username="ada", roles=["administrator"], is_staff=True)


@pytest.fixture
def password() -> str:
    return PASSWORD


@pytest.fixture
def logged_in(client: Client, alice: Any) -> Client:
    """The browser of alice."""
    client.force_login(alice)
    return client


@pytest.fixture
def api() -> APIClient:
    return APIClient()


@pytest.fixture(autouse=True)
def fresh_audit_context() -> Iterator[None]:
    """A command sets the audit context of its whole process, which here is that of every later test."""
    token = audit.context.set(audit.Context())
    yield
    audit.context.reset(token)


@pytest.fixture
def world(team: Team, settings: Any) -> SimpleNamespace:
    """One row of everything, all of it alice's team's; the preparation's files are there, the version's are not."""
    condition = ConditionFactory(slug="chest", team=team)
    package_import = PackageImportFactory(condition=condition)
    dataset = DatasetFactory(name="CHEST/secret study", condition=condition)
    image = DatasetImageFactory(dataset=dataset)
    preparation = PreparationFactory(dataset=dataset)
    put_cache(preparation)
    run = TrainingRunFactory(preparation=preparation)
    search = SearchFactory(preparation=preparation)
    metric = EpochMetricFactory(run=run)
    version = ModelVersionFactory(condition=condition, dataset_name=dataset.name)
    version.tags.create(name="pilot study")
    return SimpleNamespace(
        team=team,
        condition=condition,
        scan=ScanFactory(state="succeeded"),
        dataset=dataset,
        image=image,
        finding=FindingFactory(dataset=dataset, image=image),
        preparation=preparation,
        upload=UploadFactory(dataset=dataset),
        run=run,
        search=search,
        metric=metric,
        version=version,
        evaluation=make_evaluation(version, preparation=preparation.pk, patients=10),
        validation=make_evaluation(version, kind="validation", preparation=preparation.pk, patients=10, seed=1),
        evaluation_run=EvaluationRunFactory(version=version, dataset=dataset),
        threshold_set=ThresholdSetFactory(version=version),
        scheduled=ScheduledActivationFactory(version=version),
        package=package_import.package,
        package_import=package_import,
        condition_export=ConditionExportFactory(condition=condition),
        prediction=PredictionFactory(version=version),
        batch=BatchFactory(condition=condition, name="Secret night"),
        experiment=ExperimentFactory(challenger=version),
        alert=MonitoringAlertFactory(condition=condition, version=version),
        speed_test=SpeedTestFactory(),
        preset=SavedPresetFactory(team=team),
    )
