from django.apps import AppConfig
from django.core.checks import Tags, register


class XrayPlatformConfig(AppConfig):
    name = "xrayplatform"
    verbose_name = "Platform"

    def ready(self) -> None:
        from .audit import check_key
        from .immutability import check_triggers

        register(check_key)
        register(check_triggers, Tags.database)
