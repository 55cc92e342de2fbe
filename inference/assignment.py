"""Which version answers a study in an A/B experiment: the same one each time, by a keyed digest instead of a list."""

import hmac
from hashlib import sha256


def is_challenger(salt: str, subject: str, share: float) -> bool:
    """Whether the challenger answers this subject.

    salt: of the experiment, so that no two experiments divide the studies alike. subject: what must not be divided, a
    study or a patient. share: per cent of the subjects, 0 to 100. A subject that is the challenger's at one share is so
    at every larger one. Raises ValueError for a share that is none.

    HMAC-SHA256 is a pseudorandom function (Bellare, Canetti and Krawczyk 1996): without the salt nobody can tell, or
    choose a study's number so, which version will answer.
    """
    if not 0 <= share <= 100:
        raise ValueError(f"A share lies between 0 and 100 per cent, and {share:g} does not.")
    return position(salt, subject) < share / 100


def position(salt: str, subject: str) -> float:
    """Where a subject lies between 0 (included) and 1 (excluded), evenly spread over the subjects."""
    digest = hmac.new(salt.encode(), subject.encode("utf-8", "surrogatepass"), sha256).hexdigest()
    # 13 hexadecimal digits are 52 bits, which a float holds exactly: more could round up to 1.
    return int(digest[:13], 16) / 16**13


def subject_of(study_uid: str, patient_key: str, image_digest: str) -> str:
    """What belongs together: a study, else a patient, else the copies of one image."""
    return study_uid or patient_key or image_digest
