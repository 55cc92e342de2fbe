"""WSGI entry point for gunicorn."""

import os

from django.core.wsgi import get_wsgi_application
from django.db import connections

CONNECTION_SECONDS = 60

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "xrayplatform.settings")

application = get_wsgi_application()
# To close the last connection to an SQLite file writes its whole journal back, which takes longer than an answer. Only
# here: the threads of the web server keep their connections, while queue workers fork, and must not share theirs.
connections.settings["default"]["CONN_MAX_AGE"] = CONNECTION_SECONDS
