#!/usr/bin/env bash
# Judges fastpose on the GPU at hand: builds it, tests it, and only then measures it. One command on a machine with a CUDA build of
# torch, nvcc, cmake, ninja, pybind11 and pytest; nothing is downloaded, and what else is missing is skipped aloud.
#
#   benchmarks/gpu.sh [--dry-run] [FOLDER]     logs and results go to FOLDER, by default benchmarks/results
#   STAGES="build tests" benchmarks/gpu.sh     only these stages
#   PYTHON=python3.12 benchmarks/gpu.sh        with this Python
#
# Every stage ends within 9 minutes and leaves what it found even if a later one fails. Those that measure store every row at once
# and go on where they were when run again. --dry-run does the same on the CPU, in small: tests are collected and not run.
set -uo pipefail
cd "$(dirname "$0")/.."

ALL="build tests memcheck racecheck matrix ceilings tune ops blocks networks"
LIMIT=${LIMIT:-540}   # seconds a stage
MINUTES=7.5           # after which one that measures begins no further row
NOTHING_TO_DO=5       # exit code of pytest when it finds no test, and of stages here

dry=
if [ "${1:-}" = --dry-run ]; then dry=1 && shift; fi
mkdir -p "${1:-benchmarks/results}" || exit 2
out=$(cd "${1:-benchmarks/results}" && pwd)
python=${PYTHON:-python3}
stages=${STAGES:-$ALL}
for name in $stages; do
  [[ " $ALL " == *" $name "* ]] || { echo "STAGES: got '$name', allowed are $ALL"; exit 2; }
done
if [ -z "$dry" ]; then
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader || { echo "no NVIDIA GPU found"; exit 2; }
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export out python dry MINUTES NOTHING_TO_DO

# ---- the stages: functions of these names, each run in a shell of its own under the time limit ------------------------

build() {
  if [ -n "$dry" ]; then "$python" -c 'import fastpose; print(fastpose.build_info())'; return; fi
  local arch
  arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  FASTPOSE_CUDA_ARCHS=$arch "$python" setup.py build_ext --inplace
}

# Only test files that know of GPUs: others may need libraries that are not here.
gpu_tests() {  # markers, further options of pytest; $under: a command to run it under
  local files
  mapfile -t files < <(grep -lE '\bdevice: torch\.device\b|pytest\.mark\.(cuda|gpu_matrix|sanitize)\b|no GPU' tests/test_*.py)
  # shellcheck disable=SC2086
  ${under:-} "$python" -m pytest -q -p no:cacheprovider ${dry:+--collect-only} "${files[@]}" -m "$@"
}
tests() { gpu_tests "cuda and not gpu_matrix"; }
matrix() { gpu_tests gpu_matrix; }

# The sanitizers slow a kernel a hundredfold: small shapes, few dtypes.
sanitize() {  # tool
  local under=
  if [ -z "$dry" ]; then
    command -v compute-sanitizer > /dev/null || { echo "no compute-sanitizer on the PATH"; return "$NOTHING_TO_DO"; }
    under="compute-sanitizer --tool $1 --error-exitcode 9"
  fi
  gpu_tests "cuda and sanitize" -x -k "not float16 or bfloat16"
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }

tune() { "$python" -m fastpose.benchmarking.tune; }

measure() {  # suite, options of a dry run
  local suite=$1 device=(--device cuda)
  shift
  [ -z "$dry" ] || device=(--device cpu --quick --threads 1 "$@")
  "$python" -m benchmarks "$suite" --out "$out" --resume --minutes "$MINUTES" "${device[@]}"
}
ceilings() { measure ceilings; }
ops() { measure ops --only "decode quarter"; }
blocks() { measure blocks --only "inference 1×256×16×16"; }
networks() { measure networks --only inference; }

export -f build gpu_tests tests matrix sanitize memcheck racecheck tune measure ceilings ops blocks networks

# ---- running them -----------------------------------------------------------------------------------------------------

summary=()
failed=
# What the 3×3 kernels compute is beyond doubt before anything that uses them is timed, in this run or a later one.
wrong=$out/gpu-matrix.failed

run() {  # stage
  local name=$1 log=$out/gpu-$1.log code begun=$SECONDS verdict
  echo "== $name"
  if [[ " tune blocks networks " == *" $name "* && -e $wrong ]]; then
    summary+=("$name: not run, because the stage matrix has failed")
    failed=1
    return
  fi
  timeout --kill-after=20 "$LIMIT" bash -c "$name" 2>&1 | tee "$log" | tail -n 40
  code=${PIPESTATUS[0]}
  case $code in
    0) verdict=passed ;;
    "$NOTHING_TO_DO") verdict="skipped, nothing to do" ;;
    124 | 137) verdict="stopped after $LIMIT s" ;;
    *) verdict="failed with exit code $code" ;;
  esac
  [ "$name" != matrix ] || rm -f "$wrong"
  if [ "$code" != 0 ] && [ "$code" != "$NOTHING_TO_DO" ]; then
    failed=1
    [ "$name" != matrix ] || touch "$wrong"
  fi
  summary+=("$name: $verdict, $((SECONDS - begun)) s: $(grep -v '^$' "$log" | tail -n 1)")
}

for name in $ALL; do
  [[ " $stages " == *" $name "* ]] && run "$name"
done
printf '%s\n' "== summary (logs and results: $out)" "${summary[@]}" | tee "$out/gpu-summary.txt"
[ -z "$failed" ]
