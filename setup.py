"""Adds the gin files to the package; pyproject.toml has the metadata."""

import setuptools

GIN_FOLDERS = ["", ".data", ".device", ".model", ".schedule"]

setuptools.setup(
    packages=[
        *setuptools.find_packages(include=["retinanet_tpu*"]),
        *(f"retinanet_tpu.gin_configs{folder}" for folder in GIN_FOLDERS),
    ],
    package_dir={"retinanet_tpu.gin_configs": "gin_configs"},
    package_data={"": ["*.gin", "*.css", "*.html", "*.js", "py.typed"]},
)
