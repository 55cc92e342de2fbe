"""pydicom's dicom-validator with the tables of the standard.

The validator downloads the standard itself, which the network of a hospital does not allow. The tables come from the
package dicom-standard instead (PS3.3 as of 2020). DICOM_STANDARD may name a folder where the validator keeps newer
editions (`validate_iods --standard-path`); the newest in it is taken then.
"""

import functools
import json
import os
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from dicom_validator.spec_reader.condition_parser import ConditionParser
from dicom_validator.spec_reader.edition_reader import EditionReader
from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.error_handler import NullValidationResultHandler
from dicom_validator.validator.iod_validator import IODValidator
from pydicom.dataset import Dataset

TABLES = Path(sys.prefix) / "standard"
IODS = {"secondary-capture-image": "1.2.840.10008.5.1.4.1.1.7", "comprehensive-sr": "1.2.840.10008.5.1.4.1.1.88.33"}
CONTENT_SEQUENCE = "(0040,A730)"
# Which kinds of content item have these (PS3.3 C.18): the tables say so where they include the macros only.
VALUES = {
    "(0040,A300)": ["NUM"],
    "(0040,A168)": ["CODE"],
    "(0040,A160)": ["TEXT"],
    "(0040,A120)": ["DATETIME"],
    "(0040,A121)": ["DATE"],
    "(0040,A122)": ["TIME"],
    "(0040,A123)": ["PNAME"],
    "(0040,A124)": ["UIDREF"],
    "(0040,A050)": ["CONTAINER"],
    "(0008,1199)": ["IMAGE", "COMPOSITE", "WAVEFORM"],
    "(0070,0022)": ["SCOORD"],
    "(0070,0023)": ["SCOORD"],
    "(3006,0024)": ["SCOORD3D"],
    "(0040,A130)": ["TCOORD"],
    # Of the next three one is enough; the platform writes none.
    "(0040,A132)": ["TCOORD"],
    "(0040,A138)": ["TCOORD"],
    "(0040,A13A)": ["TCOORD"],
}


def problems(dataset: Dataset) -> list[str]:
    """What the validator finds wrong with a data set, a line each."""
    found = IODValidator(dataset, standard(), error_handler=NullValidationResultHandler()).validate()
    lines = [] if found.status.name in ("Passed", "Failed") else [found.status.name]
    for module, errors in found.module_errors.items():
        lines += [f"{module}: {tag} {error.code.name} {error.context or ''}" for tag, error in errors.items()]
    return lines


@functools.cache
def standard() -> DicomInfo:
    """The standard as the validator wants it."""
    folder = os.environ.get("DICOM_STANDARD")
    if folder:
        reader = EditionReader(folder)
        return reader.load_dicom_info(max(path.name for path in Path(folder).iterdir() if path.is_dir()))
    names = {row["tag"].upper(): row for row in _table("attributes")}
    dictionary = {
        tag: {"name": row["name"], "vr": row["valueRepresentation"], "vm": row["valueMultiplicity"], "prop": ""}
        for tag, row in names.items()
    }
    parser = ConditionParser(dictionary)
    iods: dict[str, Any] = {uid: {"title": name, "modules": {}, "group_macros": {}} for name, uid in IODS.items()}
    for row in _table("ciod_to_modules"):
        if row["ciodId"] in IODS:
            module: dict[str, Any] = {"ref": row["moduleId"], "use": row["usage"]}
            iods[IODS[row["ciodId"]]]["modules"][row["moduleId"]] = module
    wanted = {module["ref"] for iod in iods.values() for module in iod["modules"].values()}
    return DicomInfo(dictionary, iods, _modules(wanted, dictionary, parser))


def _modules(wanted: set[str], dictionary: dict[str, Any], parser: ConditionParser) -> dict[str, Any]:
    """The attributes of modules by tag; those of the items of a sequence below it."""
    modules: dict[str, Any] = {name: {} for name in wanted}
    items = {name: modules[name] for name in wanted}
    rows = [
        row
        for row in _table("module_to_attributes")
        if row["moduleId"] in wanted and "x" not in row["path"].rpartition(":")[2]
    ]
    for row in sorted(rows, key=lambda row: row["path"].count(":")):
        above, _, number = row["path"].rpartition(":")
        tag = f"({number[:4]},{number[4:]})".upper()
        attribute: dict[str, Any] = {"name": dictionary.get(tag, {}).get("name", tag), "type": row["type"]}
        text = " ".join(unescape(re.sub(r"<[^>]*>", " ", row["description"])).split())
        if tag in VALUES and row["moduleId"] == "sr-document-content" and _is_content_item(above):
            attribute["type"] = row["type"][0] + "C"
            attribute["cond"] = {"type": "MN", "op": "=", "tag": "(0040,A040)", "index": 0, "values": VALUES[tag]}
        elif row["type"] in ("1C", "2C"):
            attribute["cond"] = parser.parse(text).result_dict()
        items[above][tag] = attribute
        if dictionary.get(tag, {}).get("vr") == "SQ":
            items[row["path"]] = attribute["items"] = {}
    content = modules["sr-document-content"]
    # Content items hold content items, to any depth.
    content[CONTENT_SEQUENCE]["items"].update({CONTENT_SEQUENCE: content[CONTENT_SEQUENCE]})
    return modules


def _is_content_item(path: str) -> bool:
    return all(part == "0040a730" for part in path.split(":")[1:])


def _table(name: str) -> list[dict[str, Any]]:
    return json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
