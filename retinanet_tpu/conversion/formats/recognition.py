"""Recognizes the format of an annotation file from its first bytes.

Only error messages use it: when a reader fails, the error adds the likely format.
"""

import collections
import contextlib
import csv
import os
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import csv_header, files, name_matching

_HEAD_BYTES = 200_000
_MAX_NESTING = 5  # Deeper keys do not help to distinguish formats.
_READS_FOLDER = ("voc", "yolo", "labelme")  # Their --annotations is a folder.
_EXTENSIONS = (".json", ".xml", ".csv", ".txt", ".jsonl", ".ndjson", ".manifest")
_CLASS_FILES = ("classes.txt", "notes.json")
# Files of each extension that are examined. The first may be an unrelated file.
_NUM_FILES = 5


class Format(NamedTuple):
    """A format, and the advice for a file of a format that is not supported.

    Attributes:
      name: The name of the format, for error messages.
      flag: The value of --format; None if the format is not supported.
      advice: A sentence on how to proceed; empty for supported formats.
    """

    name: str
    flag: str | None
    advice: str = ""


COCO = Format("a COCO detection file", "coco")
VOC = Format("Pascal VOC XML", "voc")
YOLO = Format("YOLO labels", "yolo")
CSV = Format("a CSV table of boxes", "csv")
LABELME = Format("labelme JSON", "labelme")
OPEN_IMAGES = Format("Open Images' CSV", "openimages")
VIA = Format("an export of VIA", "via")
CREATEML = Format("CreateML JSON", "createml")
CVAT = Format("CVAT XML", "cvat")
LABEL_STUDIO = Format("Label Studio JSON", "labelstudio")


def _foreign(name: str, advice: str) -> Format:
    return Format(name, None, advice)


def _exported(tool: str, formats: str = "COCO") -> Format:
    return Format(f"a file of {tool}", None, f"Export {formats} from {tool} instead.")


# Each entry: the first bracket, the required keys by nesting depth, the format. The
# first entry that matches wins.
_JSON: tuple[tuple[str, dict[int, set[str]], Format], ...] = (
    ("{", {1: {"_via_img_metadata"}}, VIA),
    ("{", {2: {"filename", "regions"}}, VIA),
    ("{", {1: {"project", "metadata", "view"}}, _exported("VIA 3")),
    ("[", {2: {"image", "annotations"}, 4: {"coordinates", "label"}}, CREATEML),
    ("[", {2: {"imagefilename"}}, CREATEML),
    ("[", {2: {"data", "annotations"}}, LABEL_STUDIO),
    ("[", {2: {"data", "completions"}}, LABEL_STUDIO),
    ("[", {2: {"annotation_id", "annotator"}}, LABEL_STUDIO),
    ("{", {1: {"data", "annotations"}}, _foreign(
        "one task of Label Studio", "Export 'JSON', a list of all tasks, instead.")),
    ("{", {1: {"shapes", "imagePath"}}, LABELME),
    ("{", {1: {"images", "annotations"}, 3: {"segments_info"}},
     _foreign("a COCO panoptic file", "Take the instances file instead.")),
    ("{", {1: {"images", "annotations"}, 3: {"caption"}},
     _foreign("a COCO captions file", "Take the instances file instead.")),
    ("{", {1: {"images"}, 3: {"file_name"}}, COCO),
    ("{", {1: {"annotations", "categories"}, 3: {"image_id"}}, COCO),
    ("[", {2: {"image_id", "category_id", "score"}}, _foreign(
        "detections in COCO's results format", "Take the file of the annotations.")),
    ("[", {2: {"image_id", "category_id", "bbox"}}, _foreign(
        "a list of COCO annotations", "Take the file with images, annotations and "
        "categories.")),
    ("{", {1: {"objects", "size"}}, _exported("Supervisely", "COCO or Pascal VOC")),
    ("{", {1: {"classes", "tags", "projectType"}},
     _exported("Supervisely", "COCO or Pascal VOC")),
    ("{", {1: {"asset", "regions"}}, _exported("VoTT", "Pascal VOC or CSV")),
    ("{", {1: {"assets", "tags"}}, _exported("VoTT", "Pascal VOC or CSV")),
    ("{", {1: {"item", "annotations"}}, _exported("V7 Darwin")),
    ("{", {1: {"items", "categories"}}, _exported("Datumaro")),
    ("{", {1: {"data_row"}}, _exported("Labelbox")),
    ("[", {2: {"DataRow ID"}}, _exported("Labelbox")),
    ("[", {2: {"data_row"}}, _exported("Labelbox")),
    ("[", {2: {"name", "labels"}}, _exported("Scalabel or BDD100K")),
    ("{", {1: {"frames"}, 3: {"labels"}}, _exported("Scalabel or BDD100K")),
    ("{", {1: {"samples"}, 3: {"filepath"}}, _exported("FiftyOne")),
    ("{", {1: {"source-ref"}}, _foreign(
        "a manifest of SageMaker Ground Truth", "Convert it to COCO first.")),
    ("{", {1: {"imageGcsUri"}},
     _foreign("JSON lines of Vertex AI", "Convert them to COCO first.")),
    ("{", {1: {"file_name", "objects"}}, _foreign(
        "the metadata of a Hugging Face data set", "Convert it to COCO first.")),
)  # fmt: skip
_XML = {
    "annotation": VOC,
    "annotations": CVAT,
    "dataset": _foreign("XML of dlib's imglab", "Convert it to Pascal VOC first."),
    "tagset": _foreign("XML of ICDAR", "Convert it to Pascal VOC first."),
    "html": _foreign("a web page", "Was the download refused? Fetch the file again."),
}
_MAGIC = (
    (b"PK\x03\x04", _foreign(
        "a ZIP archive or an Excel workbook",
        "Unpack it, or save the sheet as CSV UTF-8.")),
    (b"\xd0\xcf\x11\xe0", _foreign(
        "an Excel workbook", "Save the sheet as CSV UTF-8.")),
    (b"\x1f\x8b", _foreign("a gzip archive", "Unpack it first.")),
    (b"PAR1", _foreign("a Parquet table", "Convert it to COCO or CSV first.")),
    (b"MATLAB", _foreign("a MATLAB file", "Convert it to COCO or CSV first.")),
    (b"version https://git-lfs", _foreign(
        "a pointer of Git LFS", "Fetch the file itself with git lfs pull.")),
    (b"SQLite format", _foreign("a database", "Export COCO from its tool instead.")),
)  # fmt: skip
_KERAS_YOLO3 = _foreign(
    "lines of keras-yolo3",
    "Write each box to a line path,x1,y1,x2,y2,class and use --format=csv.",
)
_KITTI = _foreign("KITTI labels", "Convert them to YOLO or Pascal VOC first.")
_DOTA = _foreign("DOTA labels", "Convert them to YOLO or Pascal VOC first.")
_IMAGE_LIST = _foreign("a list of images", "Take the folder of the annotations.")

# The last string may be truncated. Without this alternative, the search would restart
# at each quote in it, which takes quadratic time.
_JSON_PART = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?\Z)|[\[\]{}:]', re.DOTALL)
_XML_ROOT = re.compile(r"<([A-Za-z_][\w.:-]*)")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?\.\d+")
_BOX = re.compile(r"(?:[+-]?\d+(?:\.\d+)?,){4}[\w.+-]+")


@contextlib.contextmanager
def explained(path: str, given: str) -> Iterator[None]:
    """Adds the likely format of the annotations to a reader's error.

    Args:
      path: The file or folder of --annotations.
      given: The value of --format.

    Raises:
      UserError: The reader's error, with a longer message.
    """
    try:
        yield
    except errors.UserError as error:
        error.args = (f"{error} {hint(path, given)}".rstrip(),)
        raise


def hint(path: str, given: str) -> str:
    """Returns a sentence that contains the likely format of annotations.

    Args:
      path: The file or folder of --annotations.
      given: The value of --format that failed.

    Returns:
      The sentence, or "" if the format was not recognized or the flags are right.
    """
    try:
        is_folder = tf.io.gfile.isdir(path)
        file, recognized = (
            _recognize_folder(path) if is_folder else (path, recognize(_head(path)))
        )
    except (errors.UserError, tf.errors.OpError, UnicodeError):
        return ""
    if recognized is None:
        return ""
    if recognized.flag is None:
        return f"{file} looks like {recognized.name}. {recognized.advice}"
    reads_folder = recognized.flag in _READS_FOLDER
    if recognized.flag == given and reads_folder == is_folder:
        return ""
    annotations_path = posixpath.dirname(file) or "." if reads_folder else file
    options = f"--format={recognized.flag} --annotations={annotations_path}"
    return f"{file} looks like {recognized.name}: use {options}."


def recognize(head: bytes) -> Format | None:
    """Returns the format of a file, or None if it is not recognized.

    Args:
      head: The first bytes of the file.
    """
    for magic, magic_format in _MAGIC:
        if head.startswith(magic):
            return magic_format
    text = head.decode(files.encoding(head), "replace").lstrip()
    if text[:1] == "<":
        root = _XML_ROOT.search(text)
        return _XML.get(root[1].lower()) if root else None
    if text[:1] in ("{", "["):
        return _recognize_json(text)
    return _recognize_lines(text)


def _recognize_folder(folder: str) -> tuple[str, Format | None]:
    """Returns the first recognized file of a folder and its format, or ("", None)."""
    for extension in _EXTENSIONS:
        try:
            names = files.list_files(folder, extension)
        except errors.UserError:
            continue
        names = [n for n in names if posixpath.basename(n) not in _CLASS_FILES]
        for name in names[:_NUM_FILES]:
            path = posixpath.join(folder, name)
            recognized = recognize(_head(path))
            if recognized is not None:
                return path, recognized
    return "", None


def _head(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def _recognize_json(text: str) -> Format | None:
    keys: dict[int, set[str]] = collections.defaultdict(set)
    for nesting, key in _json_keys(text):
        keys[nesting].add(key)
    for bracket, required, json_format in _JSON:
        if text[0] == bracket and all(keys[n] >= k for n, k in required.items()):
            return json_format
    return None


def _json_keys(text: str) -> Iterator[tuple[int, str]]:
    """Yields the nesting depth and the name of each key; the text may be truncated."""
    nesting = 0
    previous: str | None = None
    for part in _JSON_PART.finditer(text):
        sign = part[0]
        if sign in "[{":
            nesting += 1
        elif sign in "]}":
            nesting -= 1
        elif sign == ":" and previous is not None and nesting <= _MAX_NESTING:
            yield nesting, previous
        previous = part[1]


def _recognize_lines(text: str) -> Format | None:
    lines = [line.strip() for line in text.splitlines()[:50] if line.strip()]
    if not lines:
        return None
    fields = lines[0].split()
    if len(fields) > 1 and all(map(_BOX.fullmatch, fields[1:])):
        return _KERAS_YOLO3
    numbers = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if len(fields) >= 5 and all(numbers) and fields[0].split(".")[0].isdecimal():
        return YOLO
    if len(fields) in (15, 16) and not numbers[0] and all(numbers[1:]):
        return _KITTI
    if len(fields) in (9, 10) and all(numbers[:8]) and not numbers[8]:
        return _DOTA
    if files.csv_delimiter(lines[0]) in lines[0]:
        return _recognize_csv(lines[0])
    extension = os.path.splitext(lines[0])[1].lower()
    return _IMAGE_LIST if extension in name_matching.image_extensions() else None


def _recognize_csv(line: str) -> Format | None:
    delimiter = files.csv_delimiter(line)
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        return None
    header = {name.strip().lstrip("#") for name in row}
    if "region_shape_attributes" in header:
        return VIA
    if {"ImageID", "LabelName", "XMin"} <= header:
        return OPEN_IMAGES
    try:
        csv_header.read(row, "")
    except errors.UserError:
        return None
    return CSV
