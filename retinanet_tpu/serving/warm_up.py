"""Writes the requests that TensorFlow Serving runs before a model becomes available.

The file `assets.extra/tf_serving_warmup_requests` contains TFRecords of PredictionLog
messages. They make the first request of a user as fast as the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE_NAME = "tf_serving_warmup_requests"
_PACKAGE = "retinanet_tpu.serving"
_TENSOR = "tensorflow.TensorProto"
# The fields of each message: name, number and type; "*" is a list.
# Source: tensorflow_serving/apis/{prediction_log,predict,model}.proto. Names are not
# part of the wire format. The package with these messages requires a TensorFlow that is
# built for one platform, so they are declared here.
_MESSAGES = {
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "*Input")},
    "ModelSpec": {"name": (1, "string"), "signature_name": (3, "string")},
    "Input": {"key": (1, "string"), "value": (2, _TENSOR)},
}


def make_request(signature: str, inputs: Mapping[str, Any]) -> bytes:
    """Returns a serialized PredictionLog that calls a signature.

    Args:
      signature: The name of the signature.
      inputs: The TensorProtos by name.
    """
    log = _log_class()()
    predict = log.predict_log.request
    predict.model_spec.name = "retinanet"
    predict.model_spec.signature_name = signature
    for name, value in inputs.items():
        predict.inputs.add(key=name, value=value)
    return log.SerializeToString()


def write_requests(directory: str, requests: Sequence[bytes]) -> None:
    """Writes the file that TensorFlow Serving reads.

    Args:
      directory: The directory of the SavedModel.
      requests: The serialized PredictionLogs.
    """
    with tf.io.TFRecordWriter(f"{directory}/assets.extra/{FILE_NAME}") as writer:
        for serialized in requests:
            writer.write(serialized)


def _log_class() -> type[Any]:
    """Returns the message class PredictionLog."""
    field_types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="retinanet_tpu/warm_up.proto", package=_PACKAGE, syntax="proto3"
    )
    tensor = tf.compat.v1.TensorInfo.DESCRIPTOR.file.pool.FindMessageTypeByName(_TENSOR)
    file.dependency.append(tensor.file.name)
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = declared.field.add(name=name, number=number)
            field.label = field_types.LABEL_OPTIONAL
            if kind.startswith("*"):
                field.label = field_types.LABEL_REPEATED
                kind = kind.removeprefix("*")
            if kind == "string":
                field.type = field_types.TYPE_STRING
            else:
                field.type = field_types.TYPE_MESSAGE
                scope = "" if kind == _TENSOR else f".{_PACKAGE}"
                field.type_name = f"{scope}.{kind}"
    pool = descriptor_pool.Default()
    try:
        log = pool.FindMessageTypeByName(f"{_PACKAGE}.PredictionLog")
    except KeyError:
        pool.Add(file)
        log = pool.FindMessageTypeByName(f"{_PACKAGE}.PredictionLog")
    return message_factory.GetMessageClass(log)
