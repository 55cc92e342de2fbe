"""The platform's settings with what tests need: a fixed key, fast password hashing, static files as they lie."""

import os

os.environ.setdefault("SECRET_KEY", "tests-only")
os.environ.setdefault("ENV_FILE", "/nonexistent")
os.environ.setdefault("LOG_LEVEL", "WARNING")

from xrayplatform.settings import *  # noqa: F403
from xrayplatform.settings import MIDDLEWARE, STORAGES

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = STORAGES | {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
# Static files are served from where they are written; the folder that collectstatic fills may not exist.
MIDDLEWARE = [name for name in MIDDLEWARE if not name.startswith("whitenoise.")]
MIN_FREE_DISK_GB = 0.1
