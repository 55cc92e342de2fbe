from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training"
    verbose_name = "Training"

    def ready(self) -> None:
        from registry.rebuilding import REBUILDERS, WRITERS

        from .rebuilding import rebuild, writer

        REBUILDERS.append(rebuild)
        WRITERS.update({form: writer(form) for form in ("keras", "onnx")})
