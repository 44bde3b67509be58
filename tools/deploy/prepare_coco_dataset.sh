#!/usr/bin/env bash
# Downloads COCO 2017 and writes it as a data directory; see usage below.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: tools/deploy/prepare_coco_dataset.sh TARGET_DIR

Downloads COCO 2017 (20 GB) to TARGET_DIR/downloads and unpacks it to TARGET_DIR/images
and TARGET_DIR/annotations. Then it writes TARGET_DIR/data: 256 record files of train, 32
of val, train.json, val.json and categories.json. The network's class index is the
category id: set NUM_CLASSES = 91. The script needs 60 GB and an environment with this
package; the variable PYTHON sets its interpreter.

After a failure, run it again: it resumes, including the downloads. Afterwards only
TARGET_DIR/data is needed.
EOF
}

if [[ $# -ne 1 || "$1" == -* ]]; then
  usage >&2
  exit 2
fi

target=$1
python=${PYTHON:-python}

file_size() {
  # The option has different names in GNU and BSD.
  stat -c %s "$1" 2>/dev/null || stat -f %z "$1" 2>/dev/null || echo 0
}

# download PATH_ON_SERVER BYTES: resumes a partial file, skips a complete one.
download() {
  local file="$target/downloads/${1##*/}"
  if [[ "$(file_size "$file")" -lt "$2" ]]; then
    # Plain http, because the certificate of the bucket is for another name.
    curl --fail --location --retry 5 --continue-at - --output "$file" \
      "http://images.cocodataset.org/$1"
  fi
  local size
  size=$(file_size "$file")
  if [[ "$size" -ne "$2" ]]; then
    echo "$file has $size bytes, expected $2: run the script again if it has fewer, delete it if it has more." >&2
    exit 1
  fi
}

# unpack ARCHIVE FOLDER: the marker is written when the archive is unpacked completely.
unpack() {
  local marker="$target/downloads/$1.unpacked"
  if [[ ! -e "$marker" ]]; then
    echo "Unpacking $1"
    mkdir -p "$2"
    unzip -q -o "$target/downloads/$1" -d "$2"
    touch "$marker"
  fi
}

# convert SPLIT SHARDS: the converter writes <split>.json last.
convert() {
  if [[ ! -e "$target/data/$1.json" ]]; then
    "$python" -m retinanet_tpu.convert \
      --format=coco \
      --images="$target/images/${1}2017" \
      --annotations="$target/annotations/instances_${1}2017.json" \
      --output_dir="$target/data" \
      --split="$1" \
      --num_shards="$2" \
      --index_by_id
  fi
}

mkdir -p "$target/downloads"
download annotations/annotations_trainval2017.zip 252907541
download zips/val2017.zip 815585330
download zips/train2017.zip 19336861798
unpack annotations_trainval2017.zip "$target"
unpack val2017.zip "$target/images"
unpack train2017.zip "$target/images"
convert val 32
convert train 256
echo "COCO 2017 is ready: DATA_DIR = $target/data"
