"""Examples in the API's description."""

from drf_spectacular.utils import OpenApiExample

_CHECK = {
    "check": "body_part",
    "outcome": "pass",
    "value": None,
    "limit": None,
    "text": "The file says CHEST.",
}
_INVERTED = {
    "check": "inverted",
    "outcome": "fail",
    "value": 0.91,
    "limit": 0.5,
    "text": "The picture looks like a negative: bone is dark in it and air is bright.",
}
_SITE = "https://xray.hospital/api/v1/predictions"
_ID = "0b6c1d53-64a8-4b0e-8f0c-7a4f0a0f4c11"

ANSWER = OpenApiExample(
    "A radiograph is answered",
    value={
        "id": _ID,
        "condition": "chest-pneumonia",
        "version": 12,
        "version_number": 4,
        "probabilities": {"NORMAL": 0.087, "PNEUMONIA": 0.913},
        "threshold": 0.42,
        "decision": "PNEUMONIA",
        "intended_use": "Research: a second opinion for trained readers.",
        "synthetic": False,
        "gate": [_CHECK],
        "warnings": [],
        "readers": {"agree": 0, "disagree": 0},
        "maps": {name: f"{_SITE}/{_ID}/map/?class={name}" for name in ("NORMAL", "PNEUMONIA")},
        "channel": "api",
        "batch": None,
        "file_digest": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
        "image_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "file_format": "DICOM",
        "width": 2048,
        "height": 2500,
        "modality": "DX",
        "body_part": "CHEST",
        "study_uid": "1.2.826.0.1.3680043.8.498.1",
        "series_uid": "1.2.826.0.1.3680043.8.498.2",
        "sop_uid": "1.2.826.0.1.3680043.8.498.3",
        "latency_ms": 48.2,
        "created_by": "clara",
        "created_at": "2030-03-12T07:15:00.000000Z",
        "request_id": "4c1f0e7b0d8b4f6c9d7b1f2a3e4d5c6b",
    },
    response_only=True,
    status_codes=["201"],
)
REFUSAL = OpenApiExample(
    "The checks before the model refuse the radiograph",
    value={
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": _INVERTED["text"],
        "code": "inverted",
        "verdicts": [_CHECK, _INVERTED],
    },
    response_only=True,
    status_codes=["422"],
)
BATCH = OpenApiExample(
    "A batch waits",
    value={
        "id": 7,
        "state": "queued",
        "progress": 0.0,
        "message": "",
        "error": "",
        "hint": "",
        "attempt": 1,
        "created_at": "2030-03-12T07:15:00.000000Z",
        "started_at": None,
        "finished_at": None,
        "condition": "chest-pneumonia",
        "name": "Night shift",
        "items_count": 0,
        "waiting": 0,
        "answered": 0,
        "refused": 0,
        "warned": 0,
        "decisions": {},
    },
    response_only=True,
    status_codes=["202"],
)
