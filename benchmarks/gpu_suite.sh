#!/usr/bin/env bash
# Everything worth knowing about one GPU in under nine minutes: the doctor, the benchmarks, the tests that need one.
#
#   benchmarks/gpu_suite.sh BUNDLE OUT [--minutes 9] [--device cuda] [--size full] [--pack FILE.tar.gz]
#
# BUNDLE is a folder made by offline_bundle.sh ("-" where the baseline is installed already or not wanted). No network
# is used. Each part has its own time and its own log in OUT; one that fails or runs out of time leaves the others alone.
# --pack rewrites an archive of OUT after every part, so that a run that is cut off keeps what it had.
set -uo pipefail

[ $# -ge 2 ] || { sed -n '2,9p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
bundle=$1 out=$2; shift 2
minutes=9 device=cuda size=full pack=
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
    case $1 in
        --minutes) minutes=$2; shift 2 ;;
        --device) device=$2; shift 2 ;;
        --size) size=$2; shift 2 ;;
        --pack) pack=$2; shift 2 ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
ends=$(( $(date +%s) + 60 * minutes ))

if [ "$bundle" != - ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/site" "$bundle"/*.whl \
        > "$out/install.log" 2>&1 || echo "the bundle could not be installed; see install.log" | tee "$out/install.failed"
    # Behind what the machine has: its torch and numpy are the ones that fit its driver.
    export PYTHONPATH="$root:$work/front${PYTHONPATH:+:$PYTHONPATH}"
    mkdir -p "$work/front"
    printf 'import site\nsite.addsitedir(%s)\n' "'$work/site'" > "$work/front/sitecustomize.py"
    # setuptools must be the bundle's: newer ones have no pkg_resources, which Perth imports.
    for name in pkg_resources setuptools _distutils_hack; do
        [ -e "$work/site/$name" ] && ln -s "$work/site/$name" "$work/front/$name"
    done
else
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
fi

part() {  # part NAME SECONDS COMMAND...: at most SECONDS, and never past the end
    local name=$1 limit=$2; shift 2
    local left=$(( ends - $(date +%s) ))
    [ "$left" -lt 15 ] && { echo "$name: no time left" | tee -a "$out/summary.txt"; return; }
    [ "$limit" -gt "$left" ] && limit=$left
    local start; start=$(date +%s)
    (cd "$root" && timeout --kill-after=10 "$limit" "$@") > "$out/$name.log" 2>&1
    local status=$?
    echo "$name: status $status after $(( $(date +%s) - start )) s" | tee -a "$out/summary.txt"
    [ -n "$pack" ] && tar czf "$pack" -C "$(dirname "$out")" "$(basename "$out")"
    return 0
}
bench() {  # bench NAME SECONDS SCRIPT OPTIONS...
    local name=$1 limit=$2 script=$3; shift 3
    part "$name" "$limit" python3 "benchmarks/$script" --device "$device" --size "$size" --work-dir "$work" --out "$out" "$@"
}

: > "$out/summary.txt"
(nvidia-smi || true) > "$out/device.txt" 2>&1
part doctor 120 python3 -m chatterbox_opt doctor --device "$device" --quick \
    --json "$out/doctor.json" --markdown "$out/doctor.md"
# The most wanted first: what is left undone when time runs out is the least. The first start of each family compiles its
# kernels, half a minute on a slow host.
bench comparison-tts 200 benchmark_comparison.py --model tts --lengths short medium long --repeats 5 --budget 2
bench inference-tts 110 benchmark_inference.py --family tts --repeats 5 --budget 1.6
bench comparison-turbo 100 benchmark_comparison.py --model turbo --lengths medium --repeats 5 --budget 1
bench ladder-tts 80 ladder.py --model tts --repeats 3 --budget 1.2
# What torch.compile makes takes minutes, and is asked for by name. Other files may need packages that are not here.
part tests 110 python3 -m pytest -q -m gpu -k "not reduce-overhead" -p no:cacheprovider \
    $(cd "$root" && grep -rl --include='test_*.py' 'mark.gpu$' tests)
bench quality-tts 45 quality.py --model tts --budget 0.6
bench inference-turbo 45 benchmark_inference.py --family turbo --batch 1 64 --precision bfloat16 int8 --repeats 3 --budget 0.6
bench comparison-nano 40 benchmark_comparison.py --model nano --lengths medium --repeats 3 --budget 0.5
rm -f "$out"/*.wav
[ -n "$pack" ] && tar czf "$pack" -C "$(dirname "$out")" "$(basename "$out")"
cat "$out/summary.txt"
! grep -qv 'status 0 ' "$out/summary.txt"
