from django.apps import AppConfig


class RegistryConfig(AppConfig):
    name = "registry"
    verbose_name = "Model registry"

    def ready(self) -> None:
        from xrayplatform.tasks import EACH_MINUTE

        from .tasks import every_minute

        EACH_MINUTE.append(every_minute)
