import re

import pytest

import tool_processes
import toy_data
from retinanet_tpu.boxes import anchors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.task import configurables


@pytest.mark.long
def test_the_written_anchors_can_be_included_and_are_no_worse(tmp_path):
    data_dir, output = toy_data.write(tmp_path / "data"), tmp_path / "anchors.gin"
    run_file = str(toy_data.GIN_CONFIGS / "quickstart.gin")
    settings = [*toy_data.TINY, f"DATA_DIR = '{data_dir}'"]
    result = tool_processes.run_python(
        "-m",
        "retinanet_tpu.fit_anchors",
        f"--gin_file={run_file}",
        *(f"--gin_param={setting}" for setting in settings),
        f"--output={output}",
    )
    assert result.returncode == 0, result.stderr
    tables = re.findall(r" all +[\d,]+ +(\S+) -> (\S+) +(\S+) -> (\S+)", result.stdout)
    assert len(tables) == 2
    recall, recall_after, mean, mean_after = map(float, tables[0])
    assert recall_after >= recall and mean_after > mean

    gin_files.parse(
        [run_file, str(output)], settings, known=configurables.CONFIGURABLES
    )
    run = configurables.make_run(None)
    written, plain = run.recipe.anchors, anchors.Anchors()
    assert len(written.scales) == len(plain.scales)
    assert f"Anchors.size = {written.size}" in result.stdout
    assert f"Anchors.scales = {written.scales}" in result.stdout
