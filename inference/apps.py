from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference"
    verbose_name = "Analysis"

    def ready(self) -> None:
        from registry.lineage import DOWNSTREAM
        from registry.models import ACTIVATION_CHECKS, USES
        from registry.references import REFERENCES
        from xrayplatform.tasks import EACH_MINUTE

        from . import receiving, reference_work
        from .lineage import downstream
        from .models import Experiment, prove
        from .models.experiment import uses_of
        from .references import references
        from .tasks import expire_when_due, watch_when_due

        ACTIVATION_CHECKS.append(prove)
        USES.append(uses_of)
        DOWNSTREAM.append(downstream)
        REFERENCES.append(references)
        EACH_MINUTE.append(Experiment.objects.end_outdated)
        EACH_MINUTE.append(watch_when_due)
        EACH_MINUTE.append(reference_work.offer)
        EACH_MINUTE.append(expire_when_due)
        EACH_MINUTE.append(receiving.sweep)
