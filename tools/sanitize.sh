#!/usr/bin/env bash
# Builds the C++ core with sanitizers and runs its tests: tools/sanitize.sh [address|thread]
# address is AddressSanitizer with UndefinedBehaviorSanitizer, and fuzzes the core too. Needs g++ and Linux.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
kind=${1:-address}
case "$kind" in
  address) flags="-fsanitize=address,undefined -fno-sanitize-recover=all" ;;
  thread) flags="-fsanitize=thread" ;;
  *)
    echo "megart: got $kind, expected address or thread" >&2
    exit 2
    ;;
esac
[ -x "$venv/bin/pytest" ] || install_megart test
built="$clone/build/sanitize-$kind"
CXX=g++ "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade \
  --config-settings=build-dir="$built" --config-settings=cmake.build-type=Debug \
  --config-settings=cmake.define.CMAKE_CXX_FLAGS="-O1 -fno-omit-frame-pointer $flags" \
  --target "$built/site" "$clone"

# Python is built without them: their library has to come first, and what Python never frees is no finding.
first=$(ldd "$built"/site/megart/_core*.so | awk '/lib[at]san|libstdc/ {print $3}' | tr '\n' ' ')
cd "$clone"
LD_PRELOAD=$first PYTHONPATH="$built/site" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  TSAN_OPTIONS=ignore_noninstrumented_modules=1 \
  "$venv/bin/pytest" -p no:cacheprovider tests/test_core_*.py tests/test_lexicon.py tests/test_quant.py
[ "$kind" = thread ] || "$venv/bin/python" tests/fuzz/run.py core --seconds 10
