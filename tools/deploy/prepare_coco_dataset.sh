#!/usr/bin/env bash
# Downloads COCO 2017 and writes it as a data directory; see usage below.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: tools/deploy/prepare_coco_dataset.sh TARGET_DIR

Downloads COCO 2017 (20 GB) to TARGET_DIR/downloads, unpacks it to TARGET_DIR/images and
TARGET_DIR/annotations, and writes TARGET_DIR/data: 256 record files of train, 32 of val,
train.json, val.json and categories.json. Network index = category id: NUM_CLASSES = 91.
Needs 60 GB and an environment with this package (PYTHON names its interpreter).

Run it again after a failure: it goes on where it stopped, downloads included. Afterwards
only TARGET_DIR/data is needed.
EOF
}

if [[ $# -ne 1 || "$1" == -* ]]; then
  usage >&2
  exit 2
fi

target=$1
python=${PYTHON:-python}

file_size() {
  # GNU and BSD name the option differently.
  stat -c %s "$1" 2>/dev/null || stat -f %z "$1" 2>/dev/null || echo 0
}

# download PATH_ON_SERVER BYTES: resumes a part, skips what is complete.
download() {
  local file="$target/downloads/${1##*/}"
  if [[ "$(file_size "$file")" -lt "$2" ]]; then
    # Plain http: the certificate of the bucket is for another name.
    curl --fail --location --retry 5 --continue-at - --output "$file" \
      "http://images.cocodataset.org/$1"
  fi
  local size
  size=$(file_size "$file")
  if [[ "$size" -ne "$2" ]]; then
    echo "$file has $size bytes, expected $2: run again if less, delete it if more." >&2
    exit 1
  fi
}

# unpack ARCHIVE FOLDER: the marker tells a whole unpacking from an interrupted one.
unpack() {
  local marker="$target/downloads/$1.unpacked"
  if [[ ! -e "$marker" ]]; then
    echo "Unpacking $1"
    mkdir -p "$2"
    unzip -q -o "$target/downloads/$1" -d "$2"
    touch "$marker"
  fi
}

# convert SPLIT SHARDS: <split>.json is what the converter writes last.
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
