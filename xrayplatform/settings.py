"""All settings. Everything a site may change comes from the environment or `.env`; `.env.example` documents it."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import environ
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()
environ.Env.read_env(env("ENV_FILE", default=str(BASE_DIR / ".env")))


def secret_key() -> str:
    key = env.str("SECRET_KEY", default="")
    if not key and DEBUG:
        return "development-only-key-never-used-outside-debug"
    if not key:
        raise ImproperlyConfigured(
            "SECRET_KEY is not set. The platform signs sessions and pseudonymises patients with it and never starts "
            "with a default. Run `make setup`, which writes a random one to .env, or set it in the environment."
        )
    return key


def data_folder(name: str, default: str) -> Path:
    return (BASE_DIR / env.str(name, default=default)).resolve()


def database() -> dict:
    config = env.db_url("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")
    if config["ENGINE"].endswith("sqlite3"):
        # Relative to the checkout, like the data folders, wherever a command is started from.
        config["NAME"] = str(BASE_DIR / config["NAME"])
        config["OPTIONS"] = {
            # A transaction that starts by reading and then writes would fail at once instead of waiting its turn.
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            # FULL: an audit entry that was committed survives a power cut.
            "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=FULL;PRAGMA journal_size_limit=67108864",
        }
    else:
        config["CONN_MAX_AGE"] = 60
        config["CONN_HEALTH_CHECKS"] = True
    return config


DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
HTTPS = env.bool("HTTPS", default=False)

# -- The platform's own settings

DATASET_ROOT = data_folder("DATASET_ROOT", "Dataset")
MODEL_ROOT = data_folder("MODEL_ROOT", "models")
# For folders that IT mounts: nothing is ever written below DATASET_ROOT. Without write permission that is so anyway.
DATASET_READ_ONLY = env.bool("DATASET_READ_ONLY", default=False)
MIN_FREE_DISK_GB = env.float("MIN_FREE_DISK_GB", default=5.0)
MAX_UPLOAD_MB = env.int("MAX_UPLOAD_MB", default=64)
# For the addresses that take whole datasets alone, and what the uploads of one team may add up to.
MAX_ARCHIVE_MB = env.int("MAX_ARCHIVE_MB", default=2048)
UPLOAD_QUOTA_GB = env.float("UPLOAD_QUOTA_GB", default=20.0)
# A training process that does nothing for so long is taken for stuck: it is ended and goes on from its checkpoint.
TRAINING_STALL_MINUTES = env.float("TRAINING_STALL_MINUTES", default=20.0)
# Compiled versions that one process keeps in memory, over all conditions; those used the longest ago go first.
ENGINE_MODELS = env.int("ENGINE_MODELS", default=8)
# How many radiographs one process decodes and computes at once (0: the processors shared out among the web processes),
# with how many threads each (0: all processors), and how many may wait; others are told when to come back.
WEB_WORKERS = env.int("WEB_WORKERS", default=2)
WEB_THREADS = env.int("WEB_THREADS", default=24)
ENGINE_AT_ONCE = env.int("ENGINE_AT_ONCE", default=0) or max(1, len(os.sched_getaffinity(0)) // WEB_WORKERS)
ENGINE_THREADS = env.int("ENGINE_THREADS", default=0)
# bf16 or f16 only where a check on a version's own images has shown that it keeps the answers.
ENGINE_PRECISION = env.str("ENGINE_PRECISION", default="f32")
ENGINE_WAITING = env.int("ENGINE_WAITING", default=20)
# What packages of model versions say they come from, and the private key that signs them; without a path it is made
# at first use below MODEL_ROOT.
SITE_NAME = env.str("SITE_NAME", default="")
SIGNING_KEY = env.str("SIGNING_KEY", default="")
# A file of keys for the HMACs of the audit log, one a line; without one the key is derived from SECRET_KEY.
AUDIT_KEY = env.str("AUDIT_KEY", default="")
# Networks of the hospital's own that webhooks may call (10.20.0.0/16); without any only public addresses.
WEBHOOK_PRIVATE_NETWORKS = env.list("WEBHOOK_PRIVATE_NETWORKS", default=[])
# Where `dicom_receiver` listens for images and under which title, and who may send: TITLE@network, as in
# PACS@10.1.2.0/24. Nobody may when the list is empty.
DICOM_AE_TITLE = env.str("DICOM_AE_TITLE", default="XRAYPLATFORM")
DICOM_HOST = env.str("DICOM_HOST", default="127.0.0.1")
DICOM_PORT = env.int("DICOM_PORT", default=11112)
DICOM_CALLERS = env.list("DICOM_CALLERS", default=[])
# How long a received image is kept, with its header, that had no route or no answer or whose results did not arrive,
# so that somebody can help by hand. Others are deleted as soon as their results are delivered.
DICOM_KEEP_DAYS = env.float("DICOM_KEEP_DAYS", default=7.0)
# Nobody puts in service what they trained or imported themselves. What nobody is known to have made (on the command
# line, without --user) one model manager approves and another puts in service.
TWO_PERSON_RULE = env.bool("TWO_PERSON_RULE", default=False)
# Only versions that somebody approved go into service; a rollback needs no approval.
REQUIRE_APPROVAL = env.bool("REQUIRE_APPROVAL", default=False)
# Backups of versions that were in service, of each condition; the newest are kept.
MODEL_BACKUPS_KEPT = env.int("MODEL_BACKUPS_KEPT", default=5)
# How long analysed radiographs are kept, without their headers, to be shown again and learned from; 0: not at all.
KEEP_RADIOGRAPHS_DAYS = env.int("KEEP_RADIOGRAPHS_DAYS", default=90)
SESSION_IDLE_MINUTES = env.int("SESSION_IDLE_MINUTES", default=15)
# The address that users type, for links in mails.
SITE_URL = env.str("SITE_URL", default="")

# -- Applications

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    "django_htmx",
    "django_filters",
    "crispy_forms",
    "crispy_bootstrap5",
    "rest_framework",
    "knox",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "csp",
    # After the others: its admin replaces some of theirs.
    "xrayplatform",
    "datasets",
    "registry",
    "training",
    "inference",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "csp.middleware.CSPMiddleware",
    "xrayplatform.http.RequestLimitMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "xrayplatform.http.RequestContextMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
]

ROOT_URLCONF = "xrayplatform.urls"
WSGI_APPLICATION = "xrayplatform.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# -- Storage

DATABASES = {"default": database()}
CACHES = {"default": env.cache_url("CACHE_URL", default="locmemcache://")}

STATIC_URL = "static/"
STATIC_ROOT = data_folder("STATIC_ROOT", "staticfiles")
STATICFILES_DIRS = [
    BASE_DIR / "static",
    ("bootstrap", BASE_DIR / "node_modules/bootstrap/dist"),
    ("bootstrap-icons", BASE_DIR / "node_modules/bootstrap-icons/font"),
    ("chartjs", BASE_DIR / "node_modules/chart.js/dist"),
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}

# -- Access

LOGIN_URL = "xrayplatform:login"
LOGIN_REDIRECT_URL = "xrayplatform:dashboard"
LOGOUT_REDIRECT_URL = "xrayplatform:login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
SESSION_COOKIE_AGE = SESSION_IDLE_MINUTES * 60
SESSION_SAVE_EVERY_REQUEST = False
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "xrayplatform.views.csrf_failure"
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 1024 * 1024
DATA_UPLOAD_MAX_NUMBER_FILES = 1000

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        # The image that was just analysed is shown from the answer itself: it is never stored.
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

# -- API

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "knox.auth.TokenAuthentication",
        "xrayplatform.access.HeaderSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["xrayplatform.teams.RolePermission"],
    "DEFAULT_PAGINATION_CLASS": "xrayplatform.http.NewestFirstPagination",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "EXCEPTION_HANDLER": "xrayplatform.http.problem_details",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
REST_KNOX = {"TOKEN_TTL": timedelta(hours=env.int("API_TOKEN_HOURS", default=24 * 30))}
SPECTACULAR_SETTINGS = {
    "TITLE": "X-ray platform",
    "DESCRIPTION": "Train, register, activate and use radiograph classifiers. Research use only.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SCHEMA_PATH_PREFIX": "/api/v1",
    # An uploaded file is binary in a request; without the split its schema would be the address of an answer.
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "JobState": "xrayplatform.jobs.Job.State",
        "DatasetState": "datasets.models.Dataset.State",
        "VersionState": "registry.models.ModelVersion.State",
        "SearchMode": "training.models.Search.Mode",
        "ArchitectureId": "training.ml.architectures.ARCHITECTURES",
        "DecisionAction": "datasets.models.Decision.Action",
        "EvaluationKind": "registry.models.Evaluation.Kind",
        "ExperimentKind": "inference.models.Experiment.Kind",
        "OnCheck": ["warn", "refuse"],
        "ExperimentState": "inference.models.Experiment.State",
    },
}

CRISPY_ALLOWED_TEMPLATE_PACKS = "bootstrap5"
CRISPY_TEMPLATE_PACK = "bootstrap5"

# -- Queue: the truth about a job lives in its own row; a message that is lost or delivered twice does no harm

Q_CLUSTER = {
    "name": "xray",
    "orm": "default",
    "workers": 2,
    "timeout": 600,
    "retry": 900,
    "max_attempts": 3,
    "ack_failures": True,
    "bulk": 1,
    "queue_limit": 2,
    "guard_cycle": 0.5,
    "poll": 1,
    "catch_up": False,
    "save_limit": 500,
    "label": "Queue",
    "ALT_CLUSTERS": {
        "train": {
            "workers": 1,
            "recycle": 1,
            "queue_limit": 1,
            "timeout": 7 * 86400,
            "retry": 8 * 86400,
            "max_attempts": 1,
            "ack_failures": True,
            "bulk": 1,
            "guard_cycle": 0.5,
            "poll": 1,
            "catch_up": False,
            "save_limit": 500,
        }
    },
}

# -- Mail: without EMAIL_URL none is sent

EMAIL_ON = bool(env.str("EMAIL_URL", default=""))
if EMAIL_ON:
    vars().update(env.email_url("EMAIL_URL"))
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = env.str("EMAIL_FROM", default="xray-platform@localhost")

# -- Language, time, logs

LANGUAGE_CODE = "en-gb"
TIME_ZONE = env.str("TIME_ZONE", default="UTC")
USE_I18N = True
USE_TZ = True

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": sys.stderr, "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
}
