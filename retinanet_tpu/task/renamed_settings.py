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
    "assign_targets.positive_at": "assign_targets.positive_iou_threshold",
    "assign_targets.negative_below": "assign_targets.negative_iou_threshold",
    "ResNet.is_v1": "ResNet.stride_in_1x1",
    "ResNet.has_symmetric_pool": "ResNet.symmetric_pool_padding",
    "ResNet.has_identity_start": "ResNet.identity_first_shortcut",
    "RetinaNet.fpn_fn": "RetinaNet.neck_fn",
    "RunConfig.is_deterministic": "RunConfig.deterministic",
    "make_strategy.is_alone": "make_strategy.single_process",
}
