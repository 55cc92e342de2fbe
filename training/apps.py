from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training"
    verbose_name = "Training"

    def ready(self) -> None:
        from registry.lineage import UPSTREAM
        from registry.models import USES
        from registry.rebuilding import REBUILDERS, WRITERS
        from registry.references import REFERENCES

        from .lineage import upstream
        from .rebuilding import rebuild, writer
        from .references import references, uses

        UPSTREAM.append(upstream)
        REFERENCES.append(references)
        USES.append(uses)
        REBUILDERS.append(rebuild)
        WRITERS.update({form: writer(form) for form in ("keras", "onnx")})
