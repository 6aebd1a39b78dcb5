#!/usr/bin/env bash
# Judges the CUDA kernels on the GPU at hand: build, tests, compute-sanitizer, benchmarks. One command on a machine with a CUDA
# build of torch and nvcc; nothing is downloaded. Every stage ends within 9 minutes and leaves what it found even if others fail:
#   benchmarks/gpu.sh [folder for logs and results; default: benchmarks/results]
#   STAGES="build tests" benchmarks/gpu.sh     runs only those
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-benchmarks/results}" && cd "${1:-benchmarks/results}" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

stage() {  # name, command...
  local name=$1
  shift
  [[ " ${STAGES:-build tests memcheck racecheck benchmarks} " == *" $name "* ]] || return 0
  echo "== $name"
  local begun=$SECONDS
  timeout 540 "$@" 2>&1 | tee "$out/gpu-$name.log" | tail -n 40
  local code=${PIPESTATUS[0]}
  echo "== $name: exit $code after $((SECONDS - begun)) s (log: $out/gpu-$name.log)"
  [ "$code" -eq 0 ] || failed+=("$name")
}

build() {
  local arch
  arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
  FASTPOSE_CUDA_ARCHS=$arch "$python" setup.py build_ext --inplace
}

# The sanitizers slow a kernel a hundredfold: small shapes, one run of every kernel.
sanitize() {
  compute-sanitizer --tool "$1" --error-exitcode 9 "$python" -m pytest -q -x -p no:cacheprovider tests/test_ops.py \
    -k "cuda and reference and not compile and not hypothesis"
}

export -f build sanitize
export python
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader || { echo "no NVIDIA GPU found"; exit 2; }
stage build bash -c build
stage tests "$python" -m pytest -q -p no:cacheprovider tests/test_ops.py tests/test_codec.py tests/test_nn.py -k cuda
stage memcheck bash -c "sanitize memcheck"
stage racecheck bash -c "sanitize racecheck"
stage benchmarks "$python" -m benchmarks --device cuda --output "$out/cuda.json" \
  --bench-batches 32,256,1024,8192 --bench-dtypes bfloat16,float32

[ ${#failed[@]} -eq 0 ] && echo "all stages passed" || { echo "failed: ${failed[*]}"; exit 1; }
