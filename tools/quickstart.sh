#!/usr/bin/env bash
# Sets up .venv, draws a toy data set, converts, trains, evaluates, exports and predicts.
# All files are written below quickstart/. It is safe to run again.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
run=quickstart/run

if [ ! -e quickstart/data/val.json ]; then
  rm -rf quickstart/toy quickstart/data
  python tools/examples/create_toy_dataset.py --output_dir=quickstart/toy
  python -m retinanet_tpu.convert --format=coco --images=quickstart/toy/{split} \
    --annotations=quickstart/toy/{split}.json --split=train,val \
    --output_dir=quickstart/data --num_shards=4
fi

# An edited configuration starts a new run.
if [ gin_configs/quickstart.gin -nt $run/config.gin ]; then rm -rf $run; fi
python -m retinanet_tpu.train --gin_file=gin_configs/quickstart.gin --model_dir=$run
python -m retinanet_tpu.export --model_dir=$run
python -m retinanet_tpu.predict --model=$run/export/latest \
  --images='quickstart/toy/val/*' --output_dir=quickstart/detections

python - <<'END'
import json
record = json.loads(open("quickstart/run/eval/eval.jsonl").read().splitlines()[-1])
print(f"\nAP50 on the toy validation set: {record['AP50']:.3f} (0.80 or more is right)")
raise SystemExit(record["AP50"] < 0.8)
END

cat <<'END'

Results:
  quickstart/detections/           the detections, drawn on each validation image
  quickstart/run/eval/eval.jsonl   the metrics, one line per evaluation
  tensorboard --logdir=quickstart/run
Next steps:
  python -m retinanet_tpu.train --gin_file=gin_configs/coco_r50_640_3x.gin --dry_run
Run `source .venv/bin/activate` first. The README describes the next steps.
END
