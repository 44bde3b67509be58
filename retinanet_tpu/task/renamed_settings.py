"""The new names of renamed settings, by the old ones."""

# The keys are old names of configurables or of their settings.
RENAMED: dict[str, str] = {
    "retinanet_params": "Recipe",
    "Plan": "TrainingPlan",
    "Plan.evaluates": "TrainingPlan.evaluate_during_training",
    "Plan.num_pictures": "TrainingPlan.num_visualized_images",
    "experiment": "make_run",
    "experiment.params": "make_run.recipe",
    "nms": "NMS",
    "Augmentation.colour": "Augmentation.color_jitter",
    "Augmentation.flip": "Augmentation.horizontal_flip",
    "assign_targets.positive_at": "match_by_iou.positive_iou_threshold",
    "assign_targets.negative_below": "match_by_iou.negative_iou_threshold",
    "assign_targets.positive_iou_threshold": "match_by_iou.positive_iou_threshold",
    "assign_targets.negative_iou_threshold": "match_by_iou.negative_iou_threshold",
    "detection_losses.alpha": "focal_loss.alpha",
    "detection_losses.gamma": "focal_loss.gamma",
    "detection_losses.label_smoothing": "focal_loss.label_smoothing",
    "detection_losses.huber_delta": "huber_loss.delta",
    "ResNet.is_v1": "ResNet.stride_in_1x1",
    "ResNet.has_symmetric_pool": "ResNet.symmetric_pool_padding",
    "ResNet.has_identity_start": "ResNet.identity_first_shortcut",
    "RetinaNet.fpn_fn": "RetinaNet.neck_fn",
    "RunConfig.is_deterministic": "RunConfig.deterministic",
    "make_strategy.is_alone": "make_strategy.single_process",
}
