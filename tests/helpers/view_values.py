"""The values of the flags of views when none is set."""

from absl import flags

from retinanet_tpu.serving import view_flags


def _defaults():
    values = flags.FlagValues()
    view_flags.define(values)
    values(["command"])
    return values.flag_values_dict()


NO_VIEWS = _defaults()
