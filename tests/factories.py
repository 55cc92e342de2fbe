"""Rows for tests. A version made here has no files; `tests.inference.versions` makes one that really answers."""

import json
from datetime import date, timedelta

import factory
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.utils import timezone

from datasets.cache import FORMAT
from datasets.models import Dataset, DatasetImage, Finding, Preparation, Scan, Upload
from inference.models import Batch, EvaluationRun, Experiment, MonitoringAlert, Prediction
from registry.models import (
    ConditionExport,
    ModelVersion,
    PackageImport,
    ReceivedPackage,
    ScheduledActivation,
    ThresholdSet,
)
from training.configurations import PRESETS
from training.models import EpochMetric, SavedPreset, Search, SpeedTest, TrainingRun
from xrayplatform.conditions import Condition
from xrayplatform.jobs import Job
from xrayplatform.teams import Team

PASSWORD = "correct horse battery"


class TeamFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Team

    name = factory.Sequence(lambda n: f"Team {n}")


class UserFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = get_user_model()
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user{n}")
    password = factory.django.Password(PASSWORD)

    @factory.post_generation
    def roles(self, create: bool, extracted: list[str] | None, **kwargs: object) -> None:
        self.groups.set(Group.objects.filter(name__in=extracted or []))


class ConditionFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Condition

    slug = factory.Sequence(lambda n: f"condition-{n}")
    name = factory.LazyAttribute(lambda condition: condition.slug.replace("-", " ").capitalize())


class ScanFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Scan

    root = factory.Sequence(lambda n: f"/data/{n}")


class DatasetFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Dataset

    name = factory.Sequence(lambda n: f"CHEST/study{n}")
    condition = factory.SubFactory(ConditionFactory)
    layout = "class-folders"
    layout_label = "Class folders"
    source_classes = classes = ["NORMAL", "PNEUMONIA"]
    positive_class = "PNEUMONIA"
    source_counts = counts = {"NORMAL": 20, "PNEUMONIA": 20}
    images_count = 40
    scanned_at = factory.LazyFunction(timezone.now)


class DatasetImageFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = DatasetImage

    dataset = factory.SubFactory(DatasetFactory)
    path = factory.Sequence(lambda n: f"NORMAL/{n}.png")
    size = 100
    mtime_ns = 1
    digest = factory.Sequence(lambda n: f"{n:064d}")
    class_name = "NORMAL"
    width = height = 64
    format = "PNG"


class FindingFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Finding

    dataset = factory.SubFactory(DatasetFactory)
    image = factory.SubFactory(DatasetImageFactory)
    code = "blurred"
    detail = "Sharpness 0.20; suspicious below 0.30."


class PreparationFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Preparation

    dataset = factory.SubFactory(DatasetFactory)
    state = Job.State.SUCCEEDED
    image_size = 64
    classes = ["NORMAL", "PNEUMONIA"]
    positive_class = "PNEUMONIA"
    counts = {split: {"NORMAL": 5, "PNEUMONIA": 5} for split in ("train", "validation", "test")}
    pipeline = {"id": "grey", "version": 1, "fit": "pad"}
    shared_patients = 0


def put_cache(preparation: Preparation) -> None:
    """Files that a finished preparation has, without anything to read in them."""
    pixels = preparation.cache_root() / f"pixels-{preparation.dataset_id}-{preparation.pk}"
    for folder in (preparation.cache_folder, pixels):
        folder.mkdir(parents=True)
    (pixels / "images.npy").touch()
    meaning = {"format": FORMAT, "pixels": pixels.name}
    (preparation.cache_folder / "cache.json").write_text(json.dumps(meaning))


class UploadFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Upload

    dataset = factory.SubFactory(DatasetFactory)
    name = factory.SelfAttribute("dataset.name")
    state = Job.State.SUCCEEDED


class TrainingRunFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = TrainingRun

    preparation = factory.SubFactory(PreparationFactory)
    architecture = "Custom_CNN"
    preset = "quick"
    configuration = factory.LazyFunction(lambda: PRESETS["quick"].configuration.to_json())
    epochs = 5


class SearchFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Search

    name = "Learning rates"
    preparation = factory.SubFactory(PreparationFactory)
    mode = "grid"
    parameters = factory.LazyFunction(lambda: {"architectures": ["Custom_CNN"], "values": {"learning_rate": [0.001]}})


class EpochMetricFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = EpochMetric

    run = factory.SubFactory(TrainingRunFactory)
    epoch = factory.Sequence(lambda n: n + 1)
    loss = 0.5
    accuracy = 0.8


class SpeedTestFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = SpeedTest

    architecture = "VGG16"
    image_size = 299
    batch_size = 1
    state = Job.State.SUCCEEDED
    step_seconds = 2.0
    start_seconds = 20.0


class SavedPresetFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = SavedPreset

    name = factory.Sequence(lambda n: f"Preset {n}")
    configuration = factory.LazyFunction(lambda: PRESETS["standard"].configuration.with_options(epochs=7).to_json())


class ModelVersionFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ModelVersion

    condition = factory.SubFactory(ConditionFactory)
    number = factory.Sequence(lambda n: n + 1)
    architecture = "Custom_CNN"
    image_size = 64
    classes = ["NORMAL", "PNEUMONIA"]
    positive_class = "PNEUMONIA"
    preprocessing = {"id": "grey", "version": 1, "fit": "pad"}
    threshold = 0.5
    metrics = factory.LazyFunction(
        lambda: {
            "n": 10,
            "accuracy": 0.9,
            "auc": 0.95,
            "precision": 0.9,
            "recall": 0.9,
            "f1": 0.9,
            "sensitivity": 0.9,
            "specificity": 0.9,
            "balanced_accuracy": 0.9,
            "average_precision": 0.9,
            "classes": ["NORMAL", "PNEUMONIA"],
            "confusion_matrix": [[5, 0], [1, 4]],
            "per_class": [],
            "threshold": 0.5,
            "positive_class": "PNEUMONIA",
            "warnings": [],
        }
    )
    configuration = factory.LazyFunction(lambda: PRESETS["quick"].configuration.to_json())
    initial_weights = "scratch"
    environment = {"python": "3.11"}
    sha256 = factory.Sequence(lambda n: f"{n:064x}")
    size = 1000
    dataset_name = "CHEST/study"
    dataset_digest = "d" * 64
    split_digest = "s" * 64
    origin = "made in a test"


class ThresholdSetFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ThresholdSet

    version = factory.SubFactory(ModelVersionFactory)
    number = factory.Sequence(lambda n: n + 1)
    threshold = 0.3
    criterion = "by hand"
    reason = "Fewer missed findings"


class ScheduledActivationFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ScheduledActivation

    version = factory.SubFactory(ModelVersionFactory)
    at = factory.LazyFunction(lambda: timezone.now() + timedelta(days=1))
    reason = "after the audit"
    epoch = 0


class ReceivedPackageFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = ReceivedPackage

    sha256 = factory.Sequence(lambda n: f"{n:064x}")
    signature = "trusted"
    size = unpacked = 1000
    description = factory.LazyFunction(
        lambda: {
            "origin": {"name": "St. Example"},
            "condition": {"slug": "chest", "name": "Chest", "body_part": "", "intended_use": "Research."},
            "version": {"number": 3, "classes": ["NORMAL", "PNEUMONIA"]},
        }
    )


class PackageImportFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = PackageImport

    package = factory.SubFactory(ReceivedPackageFactory)


class ConditionExportFactory(factory.django.DjangoModelFactory):
    """One that has ended, and whose file is not there any more."""

    class Meta:
        model = ConditionExport

    condition = factory.SubFactory(ConditionFactory)
    versions_count = 1
    state = "succeeded"


class EvaluationRunFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = EvaluationRun

    version = factory.SubFactory(ModelVersionFactory)
    dataset = factory.SubFactory(DatasetFactory)


class ExperimentFactory(factory.django.DjangoModelFactory):
    """One that has ended; `challenger` alone may be given, the champion and the condition are then its own."""

    class Meta:
        model = Experiment

    challenger = factory.SubFactory(ModelVersionFactory)
    champion = factory.SelfAttribute("challenger")
    condition = factory.SelfAttribute("challenger.condition")
    kind = "shadow"
    share = 100
    salt = "s" * 64
    epoch = 1
    reason = "try it"
    state = "stopped"
    ended_at = factory.LazyFunction(timezone.now)
    ended_reason = "enough seen"


class PredictionFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Prediction

    version = factory.SubFactory(ModelVersionFactory)
    probabilities = {"NORMAL": 0.2, "PNEUMONIA": 0.8}
    threshold = 0.5
    decision = "PNEUMONIA"
    file_digest = "f" * 64
    image_digest = "i" * 64
    file_format = "PNG"
    latency_ms = 12.0
    request_id = "r" * 32


class BatchFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Batch

    condition = factory.SubFactory(ConditionFactory)
    state = Job.State.SUCCEEDED


class MonitoringAlertFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = MonitoringAlert

    condition = factory.SubFactory(ConditionFactory)
    week = factory.LazyFunction(lambda: date(2030, 1, 7))
    measure = "errors"
    value = 0.5
    limit = 0.02
    text = "Half of the requests failed."
