"""Writes a random RetinaNet of Model Garden and its detections to files.

A process of its own, because Model Garden needs Keras 2. Arguments: the depth of the
ResNet, or the variant of SpineNet such as spinenet49S; a file of images (.npz, uint8
[H, W, 3] each); the checkpoint to write; and the file of detections to write (.npz;
boxes_0, scores_0, labels_0 of the first image).
"""

import os
import sys

import numpy as np
import tensorflow as tf

NUM_CLASSES = 6


def main(name, images_file, checkpoint, detections_file):
    """Writes the files."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TensorFlow reads it at Keras's first use.
    from official.vision.configs import retinanet
    from official.vision.modeling import factory
    from official.vision.ops import preprocess_ops

    images = list(np.load(images_file).values())
    config = retinanet.RetinaNet(num_classes=NUM_CLASSES, input_size=[128, 128, 3])
    if name.startswith("spinenet"):
        # As in retinanet_spinenet_coco.
        config.backbone.type = "spinenet"
        config.backbone.spinenet.model_id = name.removeprefix("spinenet")
        config.decoder.type = "identity"
        config.norm_activation.activation = "swish"
        config.anchor.anchor_size = 3
    else:
        config.backbone.resnet.model_id = int(name)
    config.detection_generator.nms_version = "v1"
    # With unknown sides, Model Garden's SpineNet leaves out a block.
    sides = images[0].shape[:2] if name.startswith("spinenet") else (None, None)
    spec = tf.keras.layers.InputSpec(shape=[None, *sides, 3])
    model = factory.build_retinanet(spec, config)
    inputs = [preprocess_ops.normalize_image(tf.constant(x))[None] for x in images]
    model(inputs[0], training=True)  # Makes the variables.
    _randomize(model, inputs[0])
    results = {}
    for i, x in enumerate(inputs):
        shape = tf.constant([x.shape[1:3]])
        detect = tf.function(lambda x, s: model(x, image_shape=s, training=False))
        outputs = detect(x, shape)
        count = int(outputs["num_detections"][0])
        boxes_yxyx = outputs["detection_boxes"][0, :count].numpy()
        results[f"boxes_{i}"] = boxes_yxyx[:, [1, 0, 3, 2]]
        results[f"scores_{i}"] = outputs["detection_scores"][0, :count].numpy()
        results[f"labels_{i}"] = outputs["detection_classes"][0, :count].numpy()
    # As Model Garden's trainer saves it.
    optimizer = tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    step = tf.Variable(9, dtype=tf.int64)
    items = model.checkpoint_items
    saved = tf.train.Checkpoint(
        model=model, optimizer=optimizer, global_step=step, **items
    )
    saved.write(checkpoint)
    np.savez(detections_file, **results)


def _randomize(model, x):
    """Draws values that a trained model might have; some hundred scores exceed .05."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        name = variable.name
        if "moving_variance" in name:
            value = rng.uniform(0.5, 2, variable.shape)
        elif "gamma" in name:
            value = rng.uniform(0.3, 0.6, variable.shape)
        elif "kernel" in name:
            fan_in = np.prod(variable.shape[:3])
            value = rng.normal(0, (2 / fan_in) ** 0.5, variable.shape)
        else:
            value = rng.normal(0, 0.1, variable.shape)
        variable.assign(value)
    # Not model(x, training=True), which normalizes by the batch's moments.
    features = model.backbone(x, training=False)
    if model.decoder is not None:
        features = model.decoder(features, training=False)
    scores, boxes, _ = model.head(features, training=False)
    for outputs, layer, largest in (
        (scores, model.head._classifier, 4.0),
        (boxes, model.head._box_regressor, 1.0),
    ):
        # Larger ones would be equal after the sigmoid.
        rows = [tf.reshape(y, [-1, y.shape[-1]]) for y in outputs.values()]
        values = tf.concat(rows, 0) - tf.reduce_mean(rows[0], 0)
        scale = largest / tf.reduce_max(tf.abs(values), 0)
        layer.kernel.assign(layer.kernel * scale)
        layer.bias.assign((layer.bias - tf.reduce_mean(rows[0], 0)) * scale)
        if layer is model.head._classifier:
            logits = tf.sort(tf.reshape(values * scale, [-1]), direction="DESCENDING")
            layer.bias.assign_sub(tf.fill(layer.bias.shape, logits[500] + 2.94))


if __name__ == "__main__":
    main(*sys.argv[1:])
