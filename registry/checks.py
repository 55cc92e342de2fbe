"""What is wrong with the settings of the registry is said at the start, not when they are first used."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import Error

from . import outgoing


def check_networks(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[Error]:
    """Every network that webhooks may call is one."""
    try:
        outgoing.read_networks(settings.WEBHOOK_PRIVATE_NETWORKS)
    except outgoing.OutgoingError as error:
        return [Error(str(error), hint="No webhook is called until this is corrected.", id="registry.E001")]
    return []
