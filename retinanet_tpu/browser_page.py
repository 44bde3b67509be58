r"""Writes a page that runs an exported model in a browser.

  npm pack onnxruntime-web@1.30.0
  python -m retinanet_tpu.browser_page --model=run1/export/latest \
      [--output=detector.html] [--onnxruntime_web=onnxruntime-web-1.30.0.tgz]

The page is one HTML file that contains the model. It needs no server and no network:
open it in a browser, drop images on it, and move the threshold of the score. The
computation is that of onnxruntime, in WebAssembly with one thread.

--model is an export with model.onnx, that file itself, a folder of exports, whose
newest with a model.onnx is used, or the directory of a run. --output is by default
browser.html beside the model.
"""

import retinanet_tpu.startup.cpu

import os

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.analysis import page_html
from retinanet_tpu.serving import artifacts, formats
from retinanet_tpu.serving.browser import onnxruntime_web, page
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS
_ONNX = formats.FORMATS["onnx"].file
_OUTPUT = "browser.html"


def find_onnx(path: str) -> str:
    """Returns the path of the ONNX file that a path refers to.

    Args:
      path: An ONNX file, an export, a folder of exports or the directory of a run.
    Raises:
      MissingFileError: The path does not exist, or no export in it has an ONNX file.
      UserError: The path is a file of another format.
    """
    if not tf.io.gfile.exists(path):
        raise errors.MissingFileError(f"--model={path} does not exist; correct it.")
    if not tf.io.gfile.isdir(path):
        if path.endswith(".onnx"):
            return path
        raise errors.UserError(
            f"--model={path} is no .onnx file, and a page runs only ONNX; export the "
            "run with --format=onnx."
        )
    latest = os.path.join(path, "export", "latest")
    for folder in (*artifacts.list_exports(path), *artifacts.list_exports(latest)):
        if tf.io.gfile.exists(os.path.join(folder, _ONNX)):
            return os.path.join(folder, _ONNX)
    raise errors.MissingFileError(
        f"--model={path} contains no {_ONNX}, nor does an export in it; export the run "
        "with --format=onnx."
    )


def write(model: str, *, output: str | None, package: str) -> str:
    """Writes the page of a model.

    Args:
      model: The path that `find_onnx` accepts.
      output: The HTML file; None for browser.html beside the model. Its folder is made
        if necessary.
      package: The path of onnxruntime-web, see `onnxruntime_web.read`.
    Returns:
      The path of the HTML file.
    Raises:
      UserError: The model, or its ONNX file, or onnxruntime-web is missing; or the file
        is no detector of this package, or too large; or the output is a directory, or
        its folder cannot be made.
    """
    path = find_onnx(model)
    output = output or os.path.join(os.path.dirname(path), _OUTPUT)
    page_html.check_output(output)
    runtime = onnxruntime_web.read(package)
    if runtime.version != onnxruntime_web.TESTED_VERSION:
        logging.warning(
            "browser_page | onnxruntime-web is version %s; tested with %s",
            runtime.version or "unknown",
            onnxruntime_web.TESTED_VERSION,
        )
    artifact = artifacts.load(path)  # Refuses a file that is no detector.
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    threshold = artifact.threshold
    page.write(
        output,
        content,
        runtime,
        names=artifact.names,
        threshold=artifacts.DEFAULT_THRESHOLD if threshold is None else threshold,
    )
    size = tf.io.gfile.stat(output).length
    logging.info("browser_page | %s | %s, %.1f MB", path, output, size / 1e6)
    return output


def main() -> None:
    """Runs the command."""
    print(write(FLAGS.model, output=FLAGS.output, package=FLAGS.onnxruntime_web))


def define_flags() -> None:
    """Defines the flags; not on import, when another command may run."""
    flags.DEFINE_string(
        "model", None, "ONNX file, export, folder of exports, or directory of a run."
    )
    flags.DEFINE_string(
        "output", None, "HTML file to write; browser.html beside the model by default."
    )
    flags.DEFINE_string(
        "onnxruntime_web",
        onnxruntime_web.ARCHIVE,
        "Archive of the npm package onnxruntime-web, from `npm pack "
        f"onnxruntime-web@{onnxruntime_web.TESTED_VERSION}`, or the unpacked package.",
    )
    flags.mark_flag_as_required("model")


if __name__ == "__main__":
    define_flags()
    guard.run(main)
