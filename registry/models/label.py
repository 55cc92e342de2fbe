"""What people add to a version to find it again and to tell others about it: tags and notes."""

import re

from django.conf import settings
from django.db import models

from xrayplatform.immutability import Immutable
from xrayplatform.teams import TeamScopedQuerySet

from .state_change import GONE_WITH_ITS_VERSION

LONGEST_TAG = 40
LONGEST_NOTE = 2000
MOST_TAGS = 20
_TAG = re.compile(r"\w[\w .:/+-]*")


class LabelError(Exception):
    """The tag or note was not kept. The message says why and what to do."""


def tidy_tag(name: str) -> str:
    """Small letters, single spaces. Raises LabelError."""
    tidy = " ".join(name.lower().split())
    if not tidy:
        raise LabelError("Give the tag a name.")
    if len(tidy) > LONGEST_TAG or not _TAG.fullmatch(tidy):
        raise LabelError(
            f"A tag has at most {LONGEST_TAG} letters and digits, with spaces and . : / + - _ between them; it begins "
            "with a letter or a digit."
        )
    return tidy


def tidy_note(text: str) -> str:
    """Without white space around it. Raises LabelError."""
    tidy = text.strip()
    if not tidy:
        raise LabelError("Write something into the note.")
    if len(tidy) > LONGEST_NOTE or "\0" in tidy:
        raise LabelError(f"A note has at most {LONGEST_NOTE} characters, and only those that can be printed.")
    return tidy


class VersionTagQuerySet(TeamScopedQuerySet):
    team_path = "version__condition__team"


class VersionTag(models.Model):
    """A word by which versions are found. Adding and removing one is in the audit log."""

    version = models.ForeignKey("registry.ModelVersion", models.CASCADE, related_name="tags")
    name = models.CharField(max_length=LONGEST_TAG, db_index=True)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    objects = VersionTagQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["version", "name"], name="one_tag_of_a_name")]

    def __str__(self) -> str:
        return self.name


class VersionNote(Immutable):
    """A remark about a version. It is never changed; whoever knows better writes another one."""

    deletable_when = GONE_WITH_ITS_VERSION

    version = models.ForeignKey("registry.ModelVersion", models.CASCADE, related_name="notes")
    text = models.TextField(max_length=LONGEST_NOTE)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    objects = VersionTagQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"note about {self.version}"
