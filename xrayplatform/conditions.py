"""A condition: the clinical question that models answer, such as chest pneumonia."""

import hashlib
import itertools
import re

from django.db import models
from django.utils.text import slugify

from .teams import Team, TeamScopedQuerySet

INTENDED_USE = (
    "Research use only. This result is a computer's suggestion for a trained reader who looks at the radiograph; "
    "it is not a diagnosis, and the software is not a certified medical device."
)


class Condition(models.Model):
    """What a model answers. One version per condition is in service (see registry.Deployment)."""

    slug = models.SlugField(max_length=100, unique=True)
    name = models.CharField(max_length=120)
    body_part = models.CharField(max_length=40, blank=True)
    intended_use = models.TextField(default=INTENDED_USE)
    team = models.ForeignKey(Team, models.PROTECT, null=True, blank=True, help_text="Empty: visible to every team.")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


def slug_for(dataset_name: str) -> str:
    """The slug of the condition that a newly found dataset gets: its path's words, each once.

    >>> slug_for("CHEST/chest_xray Pneumonia")
    'chest-xray-pneumonia'
    """
    words = re.split(r"[^a-z0-9]+", slugify(dataset_name.replace("/", " ").replace("_", " ")))
    slug = "-".join(dict.fromkeys(word for word in words if word))[:90].strip("-")
    return slug or f"dataset-{hashlib.sha256(dataset_name.encode()).hexdigest()[:8]}"


def free_slug(wanted: str) -> str:
    """`wanted`, or with the first number behind it that no condition has yet."""
    taken = set(Condition.objects.filter(slug__startswith=wanted).values_list("slug", flat=True))
    numbered = (f"{wanted}-{number}" for number in itertools.count(2))
    return wanted if wanted not in taken else next(slug for slug in numbered if slug not in taken)


def name_for(dataset_name: str) -> str:
    """A readable name for the same condition; the path itself where its script has no Latin form.

    >>> name_for("CHEST/chest_xray Pneumonia")
    'Chest xray pneumonia'
    """
    slug = slug_for(dataset_name)
    return dataset_name[:120] if slug.startswith("dataset-") else slug.replace("-", " ").capitalize()
