"""The neck of backbones whose features are a pyramid themselves."""

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import norms


class Identity(tf.Module):
    """Returns the backbone's features, which all have the same number of channels."""

    def __init__(
        self,
        channels: dict[int, int],
        *,
        min_level: int = 3,
        max_level: int = 7,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Checks the levels of the backbone.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          min_level: The finest level, with a stride of 2^min_level px.
          max_level: The coarsest level.
          norm_fn: Unused; there is nothing to normalize.
          seed: Unused; there are no kernels.
        Raises:
          UserError: The backbone does not have a level, or not the same number of
            channels in all of them.
        """
        del norm_fn, seed
        super().__init__("identity")
        self.levels = tuple(range(min_level, max_level + 1))
        missing = [level for level in self.levels if level not in channels]
        if missing or not self.levels:
            raise errors.UserError(
                f"Identity levels {min_level}..{max_level} must rise within the"
                f" backbone's levels {sorted(channels)}; set min_level and max_level,"
                " or RetinaNet.neck_fn = @FPN."
            )
        widths = {level: channels[level] for level in self.levels}
        if len(set(widths.values())) > 1:
            raise errors.UserError(
                f"Identity needs the same number of channels in all levels, got"
                f" {widths}; set RetinaNet.neck_fn = @FPN."
            )
        self.num_channels = widths[min_level]

    def __call__(
        self, features: dict[int, tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the features of the levels, finest first.

        Args:
          features: The features of the backbone by level, float [B, H, W, C].
          is_training: Unused.
        """
        return tuple(features[level] for level in self.levels)
