"""Compares SpineNet with TensorFlow Model Garden's, which has its own weights."""

import numpy as np
import pytest
import tensorflow as tf

import model_garden
from retinanet_tpu import structures
from retinanet_tpu.model import activations, layers, variable_paths
from retinanet_tpu.model.backbones import spinenet

pytestmark = pytest.mark.long
