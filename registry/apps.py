from django.apps import AppConfig
from django.core.checks import register


class RegistryConfig(AppConfig):
    name = "registry"
    verbose_name = "Model registry"

    def ready(self) -> None:
        from xrayplatform.tasks import EACH_MINUTE

        from .checks import check_networks
        from .models import ConditionExport
        from .tasks import every_minute

        register(check_networks)
        EACH_MINUTE.append(every_minute)
        EACH_MINUTE.append(ConditionExport.objects.expire)
