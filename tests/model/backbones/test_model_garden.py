"""Compares SpineNet with TensorFlow Model Garden's, which has its own weights."""

import pytest

pytestmark = pytest.mark.long
