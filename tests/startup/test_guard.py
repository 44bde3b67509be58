import errno
import os

import gin
import pytest
import tensorflow as tf

import tool_processes
from retinanet_tpu import errors
from retinanet_tpu.startup import guard

pytestmark = pytest.mark.long


def raised(fn):
    with pytest.raises(Exception) as caught:
        fn()
    return caught.value


def refuse(*_):
    raise errors.UserError("IMAGE_SIZE is 5; set it to 128.")


def test_an_error_of_the_user_is_its_message():
    assert guard.explanation(raised(refuse)) == "IMAGE_SIZE is 5; set it to 128."


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), TypeError("x")])
def test_an_error_of_the_program_keeps_its_traceback(error):
    assert guard.explanation(error) is None
    with pytest.raises(type(error)), guard.explained():
        raise error


def test_a_programming_error_in_a_step_keeps_its_traceback():
    fn = tf.function(lambda: tf.ensure_shape(tf.zeros([2]), [3]))
    assert guard.explanation(raised(fn)) is None
    bad = tf.function(lambda x: tf.reshape(x, [3]))
    assert guard.explanation(raised(lambda: bad(tf.zeros([2])))) is None


def test_text_that_gin_adds_to_an_error_is_removed():
    with gin.unlock_config():  # A test before this one may have parsed a gin file.
        configured = gin.external_configurable(refuse, name="refuse_for_guard")
    error = raised(configured)
    assert "In call to configurable" in str(error)
    assert guard.explanation(error) == "IMAGE_SIZE is 5; set it to 128."


@pytest.mark.parametrize("autograph", [True, False])
def test_an_error_inside_a_traced_step_keeps_its_message(autograph):
    step = tf.function(lambda: refuse(), autograph=autograph)
    outer = tf.function(lambda: step())
    assert isinstance(raised(outer), errors.UserError)
    assert guard.explanation(raised(outer)) == "IMAGE_SIZE is 5; set it to 128."


def test_an_error_raised_from_another_keeps_its_own_message():
    def explain_further():
        try:
            refuse()
        except errors.UserError as error:
            raise errors.UserError(f"{error} Or leave it out.") from error

    text = guard.explanation(raised(explain_further))
    assert text == "IMAGE_SIZE is 5; set it to 128. Or leave it out."


def _write_below_a_file(path):
    (path / "file").write_text("x")
    tf.io.gfile.makedirs(f"{path}/file/folder")


def _save_below_a_file(path):
    (path / "file").write_text("x")
    tf.raw_ops.SaveV2(
        prefix=f"{path}/file/x",
        tensor_names=["a"],
        shape_and_slices=[""],
        tensors=[tf.zeros([])],
    )


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (lambda path: tf.io.gfile.makedirs("s3://bucket/x"), "gs://"),
        (lambda path: (path / "absent").read_text(), "absent: No such file"),
        (lambda path: tf.io.gfile.GFile(f"{path}/absent").read(), "absent"),
        (_write_below_a_file, "file"),
        (lambda path: tf.io.gfile.GFile(f"{path}", "w").write("x"), "directory"),
        (lambda path: tf.io.read_file(f"{path}/absent"), "absent"),
        (lambda path: next(iter(tf.data.TFRecordDataset(f"{path}/absent"))), "absent"),
        (_save_below_a_file, "file/x"),
    ],
)
def test_a_storage_error_is_one_line_with_the_file(tmp_path, access, expected):
    text = guard.explanation(raised(lambda: access(tmp_path)))
    assert text is not None and expected in text and "\n" not in text


def test_a_full_disk_is_an_error_with_the_file():
    error = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert guard.explanation(error) == "/data/x: No space left on device."


def test_arguments_without_a_flag_are_refused_with_the_missing_quotes():
    guard.check_no_arguments([])
    with pytest.raises(errors.UserError, match='--gin_param="MAX_STEPS = 7"'):
        guard.check_no_arguments(["MAX_STEPS = 7"])
    with pytest.raises(errors.UserError, match="Unexpected arguments: foo"):
        guard.check_no_arguments(["foo"])


MAIN = """
from retinanet_tpu import errors
from retinanet_tpu.startup import guard
def main(arguments):
    if arguments:
        raise errors.UserError(f"got {arguments}")
    raise ValueError("of the program")
guard.run(main, takes_arguments=True)
"""


def test_a_command_ends_with_one_line_or_with_a_traceback():
    def run(*arguments):
        return tool_processes.run_python("-c", MAIN, *arguments)

    done = run("photo.jpg")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: got ['photo.jpg']"
    done = run()
    assert done.returncode == 1 and "Traceback" in done.stderr
    done = run("photo.jpg", "--verbosity=1")
    assert "Traceback" in done.stderr


def test_a_flag_that_is_not_utf_8_is_refused():
    guard.check_utf8(["--model=Zürich 細", ""])
    with pytest.raises(errors.UserError, match=r"caf\\udce9' is not UTF-8; rename"):
        guard.check_utf8(["--model=a", os.fsdecode(b"--model=caf\xe9")])
