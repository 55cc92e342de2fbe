"""`manage.py demo`: the main job end to end, each step once: users, scan, prepare, train, activate, predict."""

import io
import json
import secrets
import time
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.core.management.base import BaseCommand
from django.db import transaction

from xrayplatform import audit

MANAGER = "maria"
USERS = {
    "clara": ["clinician"],
    "dan": ["data scientist"],
    MANAGER: ["model manager"],
    "otto": ["auditor"],
    "alice": ["clinician", "data scientist", "model manager"],
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".dcm"}


class Command(BaseCommand):
    help = "Run the main job once on the datasets below DATASET_ROOT, or on synthetic samples if there are none."

    def handle(self, *args: Any, **options: Any) -> None:
        audit.context.set(audit.Context(channel="command"))
        self._users()
        self._samples()
        dataset = self._scan()
        self._prepare(dataset)
        number = self._train(dataset)
        self._activate(dataset, number)
        self._predict(dataset)
        self.stdout.write(self.style.SUCCESS("The main job is done."))

    def _users(self) -> None:
        self._step("Users")
        users = get_user_model()
        created = []
        with transaction.atomic():
            if not users.objects.filter(is_superuser=True).exists():
                password = secrets.token_urlsafe(12)
                created.append(("admin", "administrator", password))
                self._created(users.objects.create_superuser("admin", password=password), ["administrator"])
            for name, roles in USERS.items():
                if not users.objects.filter(username=name).exists():
                    password = secrets.token_urlsafe(12)
                    created.append((name, ", ".join(roles), password))
                    self._created(users.objects.create_user(name, password=password), roles)
        for name, roles, password in created:
            self._say(f"{name:8} {password:18} {roles}")
        if created:
            self._say("These passwords are shown once. `manage.py changepassword NAME` sets another.")
        else:
            self._say("The users exist already; `manage.py changepassword NAME` sets a new password.")

    def _created(self, user: Any, roles: list[str]) -> None:
        user.groups.set(Group.objects.filter(name__in=roles))
        audit.record("user.create", user, after={"roles": roles})

    def _samples(self) -> None:
        root = Path(settings.DATASET_ROOT)
        if root.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.rglob("*")):
            return
        self._step("Synthetic sample radiographs, because there are no images in the dataset folder")
        call_command("make_samples", stdout=self.stdout)

    def _scan(self) -> Any:
        """The largest dataset there is; scans only when this folder was not scanned yet."""
        self._step("Scan")
        present = apps.get_model("datasets", "Dataset").objects.filter(state="present")
        last = apps.get_model("datasets", "Scan").objects.filter(state="succeeded").first()
        if last is None or last.root != str(settings.DATASET_ROOT) or not present.exists():
            call_command("scan_dataset", stdout=self.stdout, stderr=self.stderr)
        trainable = [dataset for dataset in present if len(dataset.classes) > 1]
        if not trainable:
            raise CommandError("No dataset with two classes was found below the dataset folder.")
        dataset = max(trainable, key=lambda dataset: dataset.images_count)
        synthetic = " (synthetic)" if dataset.synthetic else ""
        self._say(f"{present.count()} datasets; the demo uses {dataset.name}{synthetic}")
        return dataset

    def _prepare(self, dataset: Any) -> None:
        self._step("Prepare")
        preparation = dataset.preparation
        if preparation and preparation.is_ready:
            self._say(f"{preparation} exists already")
            return
        call_command("prepare_dataset", dataset.name, stdout=self.stdout, stderr=self.stderr)

    def _train(self, dataset: Any) -> int:
        self._step("Train Custom_CNN with Quick Test")
        version = dataset.condition.versions.filter(dataset_name=dataset.name).order_by("-number").first()
        if version:
            self._say(f"{version} exists already")
            return version.number
        call_command(
            "train",
            dataset.name,
            architecture="Custom_CNN",
            configuration="quick",
            wait=True,
            stdout=self.stdout,
            stderr=self.stderr,
        )
        return dataset.condition.versions.latest("number").number

    def _activate(self, dataset: Any, number: int) -> None:
        self._step("Activate")
        deployment = apps.get_model("registry", "Deployment").objects.filter(condition=dataset.condition).first()
        if deployment and deployment.active:
            self._say(f"{deployment.active} is in service already")
            return
        # Under the two-person rule the command line has to name somebody who did not train.
        user = MANAGER if settings.TWO_PERSON_RULE else None
        if settings.REQUIRE_APPROVAL and dataset.condition.versions.get(number=number).state != "approved":
            call_command(
                "version_state", dataset.condition.slug, number, "approve", reason="demo", user=user, stdout=self.stdout
            )
        call_command("activate", dataset.condition.slug, number, reason="demo", user=user, stdout=self.stdout)

    def _predict(self, dataset: Any) -> None:
        self._step("Analyse a radiograph of the test part")
        predictions = apps.get_model("inference", "Prediction").objects.filter(version__condition=dataset.condition)
        if predictions.exists():
            self._say(f"{predictions.count()} predictions exist already")
            return
        image = dataset.preparation.manifest.filter(split="test").first()
        answer = io.StringIO()
        start = time.monotonic()
        call_command("predict", dataset.condition.slug, str(dataset.folder / image.path), json=True, stdout=answer)
        prediction = json.loads(answer.getvalue())["predictions"][0]
        chances = ", ".join(f"{name} {chance:.3f}" for name, chance in prediction["probabilities"].items())
        self._say(f"{image.path} (labelled {image.class_name})")
        self._say(f"{prediction['decision']}: {chances} in {time.monotonic() - start:.1f} s")

    def _step(self, title: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(f"== {title}"))

    def _say(self, text: str) -> None:
        self.stdout.write(f"  {text}")
