import sys

import pytest

from retinanet_tpu import errors, optional_packages


def test_installed_module_is_imported():
    module = optional_packages.optional_import("json.decoder", "onnx")
    assert module is sys.modules["json.decoder"]


def test_error_for_a_missing_package_contains_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "absent", None)
    with pytest.raises(errors.MissingPackageError) as caught:
        optional_packages.optional_import("absent.part", "onnx")
    assert str(caught.value) == "absent is missing: pip install -e '.[onnx]'"


def test_error_for_a_missing_package_contains_the_file_that_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "absent", None)
    message = r"^a\.onnx requires absent, which is missing: pip install"
    with pytest.raises(errors.MissingPackageError, match=message):
        optional_packages.optional_import("absent", "onnx", needed_by="a.onnx")
