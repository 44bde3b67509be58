"""The recipe of a RetinaNet: its classes, anchors, losses and detections."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors, replicas, structures
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import category_map
from retinanet_tpu.detections import decode, nms, postprocess
from retinanet_tpu.learning import losses, targets
from retinanet_tpu.model import retinanet, variable_paths
from retinanet_tpu.serving import request_limits

AssignFn = Callable[..., targets.Targets]
LossFn = Callable[..., losses.Losses]
DecodeFn = Callable[..., decode.Candidates]
NetworkFn = Callable[..., retinanet.RetinaNet]
NO_CATEGORIES = category_map.Categories(num_classes=0, categories=())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings that training, evaluation and export of a RetinaNet share.

    Attributes:
      num_classes: The number of classes K; the indices of categories.json are below it.
      image_size: The height and width of the network's input, px.
      anchors: The anchors.
      assign_fn: The assignment of targets to a batch, as `targets.assign_targets`.
      loss_fn: The loss function, as `losses.detection_losses`.
      l2_coefficient: The factor of half the sum of the squared kernels.
      decode_fn: The decoder of predictions into candidates, as `decode.decode`.
      nms_fn: The non-maximum suppression.
      max_request_images: The number of images that an export accepts in one request.
      max_image_pixels: The number of pixels that an export accepts in one image.
      keep_aspect_ratio: Whether images keep their aspect ratio when they are resized,
        with padding below or at the right. Otherwise they are stretched to image_size.
      categories: The dataset's categories; NO_CATEGORIES until the data are read.

    Raises:
      UserError: image_size does not fit the pyramid, or a limit is below 1.
    """

    num_classes: int
    image_size: tuple[int, int]
    anchors: Anchors
    assign_fn: AssignFn = targets.assign_targets
    loss_fn: LossFn = losses.detection_losses
    l2_coefficient: float = 1e-4
    decode_fn: DecodeFn = decode.decode
    nms_fn: nms.NMS = dataclasses.field(default_factory=nms.NMS)
    max_request_images: int = 64
    max_image_pixels: int = 50_000_000
    keep_aspect_ratio: bool = True
    categories: category_map.Categories = NO_CATEGORIES

    def __post_init__(self):
        """Checks the values."""
        if not isinstance(self.image_size, Sequence) or len(self.image_size) != 2:
            raise errors.UserError(
                f"IMAGE_SIZE is {self.image_size}; it must be (height, width), "
                "e.g. (640, 640)."
            )
        object.__setattr__(self, "image_size", tuple(self.image_size))
        self.anchors.grid_sizes(self.image_size)  # Checks it before anything is built.
        self.limits  # noqa: B018  Checks both limits.

    @property
    def limits(self) -> request_limits.Limits:
        """Returns the limits of one request to an export."""
        return request_limits.Limits(self.max_request_images, self.max_image_pixels)

    def assign(
        self,
        labels: structures.Labels,
        *,
        predictions: structures.Predictions | None = None,
        is_valid: tf.Tensor | None = None,
    ) -> targets.Targets:
        """Returns the targets of a batch.

        Args:
          labels: The boxes of B images.
          predictions: The predictions for these images; None if there are none yet.
          is_valid: bool [B], False for padding images; None if all are valid.
        Raises:
          UserError: The thresholds of the matcher contradict each other.
        """
        return self.assign_fn(
            labels,
            self.anchors,
            self.image_size,
            predictions=predictions,
            is_valid=is_valid,
        )

    def loss_scalars(
        self,
        predictions: structures.Predictions,
        features: structures.Features,
        labels: structures.Labels,
        kernels: Sequence[tf.Variable],
    ) -> dict[str, tf.Tensor]:
        """Returns the losses by the names they are logged under, in that order.

        Args:
          predictions: The predictions of B images.
          features: The images; padding images carry no loss.
          labels: The boxes of the images.
          kernels: The weights of the L2 loss.
        """
        is_valid = features.image_ids != structures.PADDING_IMAGE
        assigned = self.assign(labels, predictions=predictions, is_valid=is_valid)
        normalizer = losses.loss_normalizer(assigned.num_positives)
        parts = self.loss_fn(predictions, assigned, self.anchors, normalizer=normalizer)
        l2 = losses.l2_loss(kernels, self.l2_coefficient)
        scalars = {
            "box-loss": parts.box_loss,
            "distribution-loss": parts.distribution_loss,
            "class-loss": parts.class_loss,
            "weighted-loss": parts.weighted_loss,
            "l2-regularization": l2,
            "total-loss": parts.weighted_loss + l2,
        }
        return {name: loss for name, loss in scalars.items() if loss is not None}

    def detect(
        self,
        predictions: structures.Predictions,
        scales: tf.Tensor,
        image_sizes: tf.Tensor,
    ) -> structures.Detections:
        """Returns detections in pixels of the original images, with the dataset's ids.

        Args:
          predictions: The predictions of B images.
          scales: float32 [B, 2], (y, x) size in the network's input / original size.
          image_sizes: int32 [B, 2], height and width of the original images, px.
        Raises:
          ValueError: The recipe has no categories.
        """
        if self.categories == NO_CATEGORIES:
            raise ValueError("The recipe has no categories; set them with `replace`.")
        candidates = self.decode_fn(
            predictions, self.anchors, self.image_size, num_classes=self.num_classes
        )
        return postprocess.postprocess(
            candidates,
            self.nms_fn,
            category_ids=self.categories.ids,
            scales=scales,
            image_sizes=image_sizes,
        )

    def make_network(
        self, network_fn: NetworkFn = retinanet.RetinaNet
    ) -> retinanet.RetinaNet:
        """Returns a new network.

        Args:
          network_fn: The constructor; it gets num_classes, num_anchors and box_coder.
        Raises:
          UserError: The levels of the network's pyramid are not those of the anchors.
        """
        network = network_fn(
            num_classes=self.num_classes,
            num_anchors=self.anchors.num_per_cell,
            box_coder=self.anchors.box_coder,
        )
        if tuple(network.neck.levels) != tuple(self.anchors.levels):
            raise errors.UserError(
                f"The pyramid has levels {network.neck.levels}, but the anchors have "
                f"{self.anchors.levels}; set min_level and max_level of both the neck "
                "and Anchors."
            )
        return network

    def summarize_network(self, network: retinanet.RetinaNet) -> list[str]:
        """Returns the counts of a network's weights, one line each.

        Args:
          network: A network of this recipe.
        """
        trainable = network.trainable_variables
        l2 = losses.l2_loss(network.kernels(), self.l2_coefficient)
        weights = {replicas.variable_path(weight): weight for weight in network.weights}
        lines = [
            f"Trainable weights: {len(network.weights)}",
            f"Trainable weights after freezing: {len(trainable)}",
            f"Initial l2_regularization: {float(l2):.5f}",
            f"Trainable parameters: {variable_paths.num_parameters(trainable):,}",
        ]
        for pattern in network.frozen:
            frozen = [
                weights[path] for path in variable_paths.matching(weights, pattern)
            ]
            lines.append(
                f"Frozen by '{pattern}': {len(frozen)} weights, "
                f"{variable_paths.num_parameters(frozen):,} parameters"
            )
        return lines

    def check_losses(self) -> None:
        """Traces targets and losses, so that wrong settings fail before the first step.

        Raises:
          UserError: The thresholds of the matcher contradict each other, or the loss of
            boxes is of another representation than Anchors.box_coder.
        """

        def trace() -> None:
            assigned = self.assign(
                structures.Labels(
                    boxes_yxyx=tf.zeros([1, 1, 4]),
                    classes=tf.zeros([1, 1], tf.int32),
                    is_crowd=tf.zeros([1, 1], tf.bool),
                    num_boxes=tf.zeros([1], tf.int32),
                )
            )
            predictions = structures.Predictions(
                self._zeros(self.num_classes),
                self._zeros(self.anchors.box_coder.num_channels),
            )
            self.loss_fn(predictions, assigned, self.anchors, normalizer=tf.ones([]))

        tf.function(trace, autograph=False).get_concrete_function()

    def _zeros(self, num_channels: int) -> tuple[tf.Tensor, ...]:
        """Returns [1, H_l, W_l, A * num_channels] for each level."""
        depth = self.anchors.num_per_cell * num_channels
        sizes = self.anchors.grid_sizes(self.image_size)
        return tuple(tf.zeros([1, *size, depth]) for size in sizes)
