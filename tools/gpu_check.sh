#!/usr/bin/env bash
# Everything that needs a GPU, in one call, with a short table at the end.
#
#   tools/gpu_check.sh                     in an environment with megart[test] and a CUDA build of PyTorch
#   MEMORIES=512 tools/gpu_check.sh        how many memories the throughput run teaches (default 128)
#   DEVICE=cpu MEMORIES=2 tools/gpu_check.sh    tries this script itself where there is no GPU
#
# Exit code 0 when every step passed or was skipped with its reason, 1 otherwise.
set -euo pipefail
python=${PYTHON:-python3}
# A path is relative to where the script was called; a link of a virtual environment stays a link.
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
memories=${MEMORIES:-128}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
: >"$work/table"

row() { # STEP RESULT DETAIL
  printf '%-22s %-8s %s\n' "$1" "$2" "$3" | tee -a "$work/table"
}

stop() {
  echo "gpu_check: $1" >&2
  exit 1
}

step() { # STEP COMMAND...: a row from the last line that the command prints
  local name=$1 started=$SECONDS
  shift
  if "$@" >"$work/log" 2>&1; then
    row "$name" ok "$(tail -n 1 "$work/log") [$((SECONDS - started)) s]"
  else
    tail -n 40 "$work/log" >&2
    row "$name" FAILED "$(tail -n 1 "$work/log") [$((SECONDS - started)) s]"
    failed=1
  fi
}

[[ $memories =~ ^[1-9][0-9]*$ ]] || stop "got MEMORIES=$memories; expected a whole number of at least 1"
command -v "$python" >/dev/null || stop "no $python; name an interpreter with PYTHON=..."
(cd "$work" && "$python" -c 'import megart._core, torch') 2>/dev/null ||
  stop "$python has no megart with PyTorch; run: pip install '.[test]' with a CUDA build of torch"
if [[ $device == cuda ]]; then
  command -v nvidia-smi >/dev/null || stop "no NVIDIA GPU here (nvidia-smi is missing); nothing was checked"
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1) ||
    stop "no NVIDIA GPU here ($gpu); nothing was checked"
  (cd "$work" && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())') ||
    stop "PyTorch of $python finds no CUDA device; install a CUDA build of torch; nothing was checked"
  row gpu found "$gpu"
else
  row gpu skipped "DEVICE=$device"
fi

# pytest exits with 5 when no test is marked gpu.
# shellcheck disable=SC2329
gpu_tests() {
  local code=0
  "$python" -m pytest -q -m gpu -p no:cacheprovider || code=$?
  ((code == 0 || code == 5))
}
step "tests -m gpu" gpu_tests
step "teaching" "$python" tools/gpu_teach.py "$device" "$memories"

if [[ $device != cuda ]]; then
  step "asking" "$python" tools/gpu_ask.py cpu
  row "llama.cpp with CUDA" skipped "DEVICE=$device"
elif ! command -v nvcc >/dev/null; then
  row "llama.cpp with CUDA" skipped "no nvcc: the CUDA toolkit is needed to build it"
else
  version=$("$python" -c 'from importlib.metadata import version; print(version("llama-cpp-python"))')
  step "llama.cpp build" env CMAKE_ARGS=-DGGML_CUDA=on "$python" -m pip install --no-deps --no-cache-dir \
    --no-binary llama-cpp-python --target "$work/cuda" "llama-cpp-python==$version"
  if [[ -d $work/cuda/llama_cpp ]]; then
    # The CUDA build stands in front of the installed one.
    step "llama.cpp with CUDA" env PYTHONPATH="$work/cuda" "$python" tools/gpu_ask.py
  fi
fi

echo
cat "$work/table"
exit "$failed"
