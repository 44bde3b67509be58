"""Writes a page that runs a detector in a browser: one HTML file that loads nothing.

The file contains the model and onnxruntime-web. A browser reads no other local file
for a page that was opened from a disk.
"""

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.serving.browser import onnxruntime_web

# The longest text of Chromium is 2**29 - 24 characters.
_MAX_CHARACTERS = 500_000_000
_MAX_NAMED = 12  # Classes that the page lists.


def write(
    path: str,
    model: bytes,
    runtime: onnxruntime_web.Runtime,
    *,
    names: Mapping[int, str],
    threshold: float,
) -> None:
    """Writes the page of a model.

    Args:
      path: The path of the HTML file.
      model: The content of the export's model.onnx.
      runtime: The runtime that the page contains.
      names: The names of the classes by id; an id without a name is shown as a number.
      threshold: The lowest score that is shown at first, in [0, 1].
    Raises:
      UserError: The model is too large for a browser.
    """
    model_text = _packed(model)
    if len(model_text) > _MAX_CHARACTERS:
        raise errors.UserError(
            f"The model has {len(model) / 1e6:.0f} MB, or {len(model_text) / 1e6:.0f} "
            f"MB as text; a browser reads at most {_MAX_CHARACTERS / 1e6:.0f} MB of "
            "text. Train a smaller network."
        )
    parts = _parts(model_text, runtime, names=names, threshold=threshold)
    files.write_whole(path, "".join(parts))


def _parts(
    model_text: str,
    runtime: onnxruntime_web.Runtime,
    *,
    names: Mapping[int, str],
    threshold: float,
) -> Iterator[str]:
    package = importlib.resources.files("retinanet_tpu.serving.browser")
    style = package.joinpath("page.css").read_text("utf-8")
    body = package.joinpath("page.html").read_text("utf-8")
    scripts = [
        _inline(runtime.script),
        package.joinpath("page.js").read_text("utf-8"),
    ]
    policy = _policy(scripts, style)
    yield "<!doctype html><html lang='en'><head><meta charset='utf-8'>\n"
    yield f"<meta http-equiv='Content-Security-Policy' content=\"{policy}\">\n"
    yield f"<style>{style}</style>\n"
    yield body.format(
        classes=html.escape(_listing(names)), version=html.escape(runtime.version)
    )
    settings = {"names": names, "threshold": threshold}
    yield _data("settings", _json(settings))
    yield _data("runtime-module", _packed(_inline(runtime.module).encode("utf-8")))
    yield _data("runtime", _packed(runtime.wasm))
    yield _data("model", model_text)
    for script in scripts:
        yield f"<script>{script}</script>\n"
    yield "</body></html>\n"


def _policy(scripts: list[str], style: str) -> str:
    """Returns a policy that allows these scripts, and no connection to anything.

    The runtime imports its module from a blob, and compiles WebAssembly.
    """
    hashes = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {hashes} blob: 'wasm-unsafe-eval'; "
        f"style-src {_hash(style)}"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _listing(names: Mapping[int, str]) -> str:
    """Returns a sentence with the classes of the model."""
    if not names:
        return "The export has no names of classes."
    shown = [name for _, name in sorted(names.items())][:_MAX_NAMED]
    more = ", …" if len(names) > len(shown) else ""
    kind = "class" if len(names) == 1 else "classes"
    text = f"Detects {len(names)} {kind}: {', '.join(shown)}{more}."
    # Half of a surrogate pair cannot be encoded.
    return text.encode("utf-8", "replace").decode("utf-8")


def _inline(script: str) -> str:
    """Returns a script that cannot end its element, and names no file of its source."""
    script = re.sub(r"(?m)^//# sourceMappingURL=.*$", "", script)
    return re.sub(r"(?i)</(?=script)", r"<\\/", script)


def _packed(content: bytes) -> str:
    """Returns bytes as text for the script: base64 of gzip."""
    # A constant time makes equal files of equal models.
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


def _json(data: object) -> str:
    """Returns JSON in which no name can end an element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _data(key: str, text: str) -> str:
    return f"<script type='text/plain' id='{key}'>{text}</script>\n"
