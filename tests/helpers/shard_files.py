"""Converts to small shards, and reads what was written."""

from retinanet_tpu.conversion import converter


def write(annotated, folder, output, **options):
    return converter.write_shards(
        annotated,
        images_dir=str(folder),
        output_dir=str(output),
        split="train",
        **{"num_shards": 3} | options,
    )


def contents(output):
    return {path.name: path.read_bytes() for path in output.iterdir()}
