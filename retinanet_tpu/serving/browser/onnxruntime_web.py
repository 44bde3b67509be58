"""Reads the files of the npm package onnxruntime-web that a page needs."""

import io
import os
import re
import tarfile
import zlib
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import errors

# Other versions may work; the page was tested with this one.
TESTED_VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{TESTED_VERSION}.tgz"
# The smallest build: the CPU's operations in WebAssembly, without WebGPU and WebGL.
_SCRIPT = "ort.wasm.min.js"
_MODULE = "ort-wasm-simd-threaded.mjs"
_WASM = "ort-wasm-simd-threaded.wasm"
# An archive of npm has the folder package/.
_FOLDERS = ("", "dist", "package/dist")
_DOWNLOAD = (
    f"download version {TESTED_VERSION} with `npm pack "
    f"onnxruntime-web@{TESTED_VERSION}`, and give --onnxruntime_web={ARCHIVE}"
)


class Runtime(NamedTuple):
    """The parts of onnxruntime-web.

    Attributes:
      version: The version, such as "1.30.0"; "" if the script does not contain it.
      script: The script that defines `ort`.
      module: The module that the script imports.
      wasm: The WebAssembly program that the module starts.
    """

    version: str
    script: str
    module: str
    wasm: bytes


def read(path: str) -> Runtime:
    """Reads onnxruntime-web.

    Args:
      path: The archive that `npm pack onnxruntime-web` writes, or the folder of the
        unpacked package, or its dist folder.
    Raises:
      MissingFileError: The path does not exist, or the package lacks a file.
      UserError: The file is no archive of npm, or is corrupt.
    """
    if not tf.io.gfile.exists(path):
        raise errors.MissingFileError(
            f"--onnxruntime_web={path} does not exist; {_DOWNLOAD}."
        )
    read_fn = _read_folder if tf.io.gfile.isdir(path) else _read_archive
    contents = read_fn(path)
    missing = [name for name in (_SCRIPT, _MODULE, _WASM) if name not in contents]
    if missing:
        raise errors.MissingFileError(
            f"--onnxruntime_web={path} lacks dist/{', dist/'.join(missing)}; "
            f"{_DOWNLOAD}."
        )
    script, module = (_text(path, name, contents[name]) for name in (_SCRIPT, _MODULE))
    version = re.search(r"ONNX Runtime Web v([\w.-]+)", script)
    return Runtime(
        version=version[1] if version else "",
        script=script,
        module=module,
        wasm=contents[_WASM],
    )


def _text(path: str, name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeError as error:
        raise errors.UserError(
            f"--onnxruntime_web={path} is corrupt: {name} is not UTF-8; {_DOWNLOAD}."
        ) from error


def _read_folder(path: str) -> dict[str, bytes]:
    contents = {}
    for name in (_SCRIPT, _MODULE, _WASM):
        for folder in _FOLDERS:
            file = os.path.join(path, folder, name)
            if name not in contents and tf.io.gfile.exists(file):
                with tf.io.gfile.GFile(file, "rb") as opened:
                    contents[name] = opened.read()
    return contents


def _read_archive(path: str) -> dict[str, bytes]:
    with tf.io.gfile.GFile(path, "rb") as file:
        stream = io.BytesIO(file.read())
    contents = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:gz") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                is_needed = name in (_SCRIPT, _MODULE, _WASM) and folder in _FOLDERS
                # npm writes no links, and the target of another's may be missing.
                if not is_needed or not member.isfile():
                    continue
                if opened := archive.extractfile(member):
                    contents[name] = opened.read()
    # A cut archive raises EOFError, and a corrupt one that of zlib.
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise errors.UserError(
            f"--onnxruntime_web={path} cannot be read as an archive of npm: {error}; "
            f"{_DOWNLOAD}."
        ) from error
    return contents
