"""`manage.py init_platform`: roles with their permissions, and the minute task. Run after every migrate."""

from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction
from django_q.models import Schedule

from xrayplatform.teams import sync_roles

EVERY_MINUTE = "every minute"


class Command(BaseCommand):
    help = "Create or correct the roles and the scheduled task. Safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic():
            sync_roles()
            Schedule.objects.update_or_create(
                name=EVERY_MINUTE,
                defaults={
                    "func": "xrayplatform.tasks.every_minute",
                    "schedule_type": Schedule.MINUTES,
                    "minutes": 1,
                    "cluster": "xray",
                },
            )
