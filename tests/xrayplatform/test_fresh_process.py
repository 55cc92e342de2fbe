"""Web processes and queue workers never load a machine-learning library: that would be slow, and workers fork."""

import json
import os
import subprocess
import sys

from django.conf import settings

HEAVY = {"tensorflow", "keras", "sklearn", "openvino"}
LOADER = """
import importlib, json, sys
import django
django.setup()
from django.apps import apps
from django.contrib import admin
from django.urls import get_resolver
from django.utils.module_loading import module_has_submodule
get_resolver().url_patterns
admin.autodiscover()
own = []
for config in apps.get_app_configs():
    if config.path.startswith(sys.argv[1]) and "site-packages" not in config.path:
        own.append(config.label)
        for name in ("admin", "api", "forms", "models", "tasks", "views", "templatetags"):
            if module_has_submodule(config.module, name):
                importlib.import_module(f"{config.name}.{name}")
import xrayplatform.wsgi
print(json.dumps({"own": own, "loaded": sorted(name for name in sys.modules if "." not in name)}))
"""


def load():
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "DATABASE_URL": "sqlite:///:memory:"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(settings.BASE_DIR)],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_addresses_admin_and_tasks_load_no_machine_learning_library():
    answer = load()
    assert set(answer["own"]) == {"xrayplatform", "datasets", "training", "registry", "inference"}
    assert {"numpy", "pydicom", "django_q"} <= set(answer["loaded"]), "the tasks were not loaded"
    assert HEAVY & set(answer["loaded"]) == set()
