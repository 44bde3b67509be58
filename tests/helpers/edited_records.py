"""Record files with something changed in them, as other programs may write them."""

import pathlib

import tensorflow as tf

BOX = "image/object/bbox/"


def edit(data_dir, split, edit_fn) -> None:
    """Rewrites a split; edit_fn(number, features) changes a record's feature map."""
    number = 0
    for path in sorted(pathlib.Path(data_dir).glob(f"{split}-*.tfrecord")):
        records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                example = tf.train.Example.FromString(record)
                edit_fn(number, example.features.feature)
                writer.write(example.SerializeToString())
                number += 1


def add_to_boxes(offset):
    """Returns an edit_fn that moves all boxes, in shares of the image's sides."""

    def edit_fn(_, features):
        for side in ("ymin", "xmin", "ymax", "xmax"):
            values = features[BOX + side].float_list.value
            values[:] = [value + offset for value in values]

    return edit_fn


def clear_boxes(_, features):
    """Leaves images without boxes, as an edit_fn."""
    for side in ("ymin", "xmin", "ymax", "xmax"):
        del features[BOX + side].float_list.value[:]
    for name in ("class/label", "is_crowd"):
        del features[f"image/object/{name}"].int64_list.value[:]


def set_category(category_id):
    """Returns an edit_fn that gives all boxes a class."""

    def edit_fn(_, features):
        labels = features["image/object/class/label"].int64_list.value
        labels[:] = [category_id] * len(labels)

    return edit_fn
