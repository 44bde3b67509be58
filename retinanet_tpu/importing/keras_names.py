"""The names of Keras's variables in a checkpoint that is keyed by objects."""

from tensorflow.core.protobuf import trackable_object_graph_pb2

# The name of the tensor that describes the objects of a checkpoint.
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def read(graph: bytes) -> dict[str, str]:
    """Returns the names of variables, such as "conv2d_3/kernel", by those of tensors.

    Keras numbers layers as they are made. The tensors are named otherwise, by the depth
    of a layer in the model.

    Args:
      graph: The tensor OBJECT_GRAPH, a serialized TrackableObjectGraph.
    """
    objects = trackable_object_graph_pb2.TrackableObjectGraph()
    objects.ParseFromString(graph)
    return {
        attribute.checkpoint_key: attribute.full_name
        for node in objects.nodes
        for attribute in node.attributes
    }
