"""Installs retinanet_tpu; see README.md for which extra to choose."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "retinanet_tpu/__init__.py").read_text()
)[1]

# tf2onnx turns a TensorFlow graph into ONNX, onnxruntime runs it, also to check it.
ONNX = ["tf2onnx>=1.17", "onnx>=1.20", "onnxruntime>=1.20"]
# Looks up TPUs by name. Its old dependencies would take protobuf 3, which breaks
# TensorFlow, so TensorFlow's own bound stands beside it.
TPU_NAMES = ["cloud-tpu-client>=0.10", "protobuf>=5.28"]

setuptools.setup(
    name="retinanet_tpu",
    version=VERSION,
    description="RetinaNet on TensorFlow 2, the TPUEstimator way.",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["retinanet_tpu*"]),
    python_requires=">=3.10,<3.13",
    install_requires=[
        "absl-py>=2.0",  # Flags and logging of the commands.
        "gin-config>=0.5.0",  # Every run is a gin file.
        "numpy>=1.26",
        "pycocotools>=2.0.9",  # The only COCO numbers that count are its own.
        "pillow>=10.1",  # Draws detections; checks pictures before they become records.
        "tqdm>=4.66",  # Progress bars of predict and the tools.
        "pyyaml>=6",  # Reads the data.yaml of YOLO data sets.
    ],
    # TensorFlow is an extra: as a requirement it would overwrite the build of a TPU VM.
    extras_require={
        "cpu": ["tensorflow-cpu~=2.20.0"],
        "gpu": ["tensorflow[and-cuda]~=2.20.0"],
        # 2.20 is the newest TensorFlow with a TPU build. The wheel alone would take the
        # newest libtpu, with which its import aborts; see docs/tpu.md.
        "tpu": ["tensorflow-tpu~=2.20.0", "libtpu>=0.0.14,<0.0.22", *TPU_NAMES],
        # The last TensorFlow that others report to run on v5p and v6e.
        "tpu219": ["tensorflow-tpu==2.19.1", "libtpu==0.0.10", *TPU_NAMES],
        "cpu219": ["tensorflow-cpu==2.19.1"],
        # The TPU compiler, and the way to it; pinned, as not all of it is public. Its
        # libtpu needs an environment of its own, with [cpu] and without [tpu].
        "preflight": ["jax==0.10.2", "libtpu==0.0.42.1"],
        "onnx": ONNX,
        # Reads .pth files of backbones; .safetensors and Keras's files need nothing.
        "torch": ["torch>=2.0"],
        "plots": ["matplotlib>=3.8"],  # Draws learning curves and the data report.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "kubernetes-validate>=1.31",  # Has the schemas of the manifests.
            *ONNX,
            *TPU_NAMES,
        ],
    },
)
