from django.apps import AppConfig


class XrayPlatformConfig(AppConfig):
    name = "xrayplatform"
    verbose_name = "Platform"
