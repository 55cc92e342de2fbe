from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
    verbose_name = "Analysis"

    def ready(self) -> None:
        from registry.lineage import DOWNSTREAM
        from registry.models import ACTIVATION_CHECKS
        from registry.references import REFERENCES

        from .lineage import downstream
        from .models import prove
        from .references import references

        ACTIVATION_CHECKS.append(prove)
        DOWNSTREAM.append(downstream)
        REFERENCES.append(references)
