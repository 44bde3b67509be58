from retinanet_tpu.serving import model_card

ENTRIES = {
    "saved_model": model_card.FormatEntry("", "SavedModel", "4 of 4 agree"),
    "tflite": model_card.FormatEntry("model.tflite", "TFLite", "3 of 3 agree"),
    "tflite_int8": model_card.FormatEntry(
        "model_int8.tflite", "TFLite int8", "2 of 3 agree"
    ),
}


def text(scores=None):
    return model_card.text(
        ENTRIES,
        class_names=["Zelle", "細胞"],
        image_size=(384, 512),
        nms="per_class_hard",
        limits="64 images",
        checkpoint="run/model.ckpt-7",
        scores=scores,
        config_text="MAX_STEPS = 7\n",
    )


def test_card_describes_the_model():
    scores = {"AP": 0.61234, "global_step": 7, "per_class": {"Zelle": 0.5}}
    card = text({**scores, "metric_engine": "hotcoco 1.3.0"})
    for expected in (
        "run/model.ckpt-7", "384 x 512", "Zelle, 細胞", "| AP | 0.6123 |", "MAX_STEPS",
        "`saved_model.pb` | 4 of 4 agree |", "`model_int8.tflite` | 2 of 3 agree |",
        "float32 [1, 384, 512, 3]",
        "fails a request beyond 64 images",
    ):  # fmt: skip
        assert expected in card
    assert "global_step" not in card and "metric_engine" not in card
    assert "{" not in card.split("```")[0]
    assert card.count("get_signature_runner") == 1


def test_card_of_a_checkpoint_without_an_evaluation_has_a_note():
    assert "Not evaluated." in text()
