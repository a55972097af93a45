#!/bin/sh
# Collects the wheels that a machine with a CUDA GPU, torch and JAX lacks for tests/gpu_check.py, without what they need.
#
#     sh tests/gpu_wheels.sh FOLDER [PYTHON_VERSION [NAME ...]]
#
# PYTHON_VERSION is that machine's, as 3.12; the default is this one's. Versions are those of constraints.txt. Further
# NAMEs, such as onnxruntime-gpu (200 MB), are collected too. Run it where there is a network, from any folder.
set -eu
folder=${1:?sh tests/gpu_wheels.sh FOLDER [PYTHON_VERSION [NAME ...]]}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
version=${2:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
[ $# -lt 2 ] || shift
shift
mkdir -p "$folder"
# keras and what it imports; the tokenizers' packages; the peers and what they import
for name in keras namex optree rich markdown-it-py mdurl pygments absl-py h5py ml_dtypes packaging \
  safetensors tokenizers regex ftfy wcwidth pillow huggingface_hub timm open_clip_torch "$@"; do
  wanted=$(sed -n "s/^$name==/==/p" "$root/constraints.txt")
  platforms=
  for glibc in 17 24 26 27 28 31 34; do platforms="$platforms --platform manylinux_2_${glibc}_x86_64"; done
  # shellcheck disable=SC2086 # a list of options
  "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: \
    --implementation cp --python-version "$version" $platforms --platform manylinux2014_x86_64 \
    --dest "$folder" "$name$wanted"
done
ls -l "$folder" | awk '{ bytes += $5; n += NR > 1 } END { printf "%d wheels, %.0f MB\n", n, bytes / 1e6 }'
