"""`manage.py` for tests of processes that die or freeze: everything that waits for minutes waits for seconds."""

import os
import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xrayplatform.settings")

import django
from django.core.management import execute_from_command_line

django.setup()

from training import supervisor  # noqa: E402
from xrayplatform import jobs, system, watchdog  # noqa: E402

jobs.LEASE = timedelta(seconds=6)
jobs.SIGN_EVERY_SECONDS = 1.0
supervisor.RENEW_EVERY_SECONDS = 1.0
supervisor.TERMINATE_GRACE_SECONDS = 1.0
system.STALE_AFTER = timedelta(seconds=8)
watchdog.CHECK_EVERY_SECONDS = 1.0
watchdog.ASK_EVERY_SECONDS = 2.0
watchdog.LONGEST_PAUSE_SECONDS = 2.0

execute_from_command_line(sys.argv)
