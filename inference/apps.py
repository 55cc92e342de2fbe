from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
    verbose_name = "Analysis"

    def ready(self) -> None:
        from registry.models import ACTIVATION_CHECKS

        from .models import prove

        ACTIVATION_CHECKS.append(prove)
