"""What the platform tells a person: on the page, and by e-mail where the site has a mail server."""

from django.conf import settings
from django.db import models


class Notification(models.Model):
    """One message to one user; `url` is a page of the platform."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="notifications")
    at = models.DateTimeField(auto_now_add=True)
    text = models.CharField(max_length=300)
    url = models.CharField(max_length=200, blank=True)
    read_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["user", "read_at"], name="unread_notifications")]

    def __str__(self) -> str:
        return f"to {self.user}: {self.text}"
