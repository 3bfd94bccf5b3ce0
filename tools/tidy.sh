#!/usr/bin/env bash
# clang-tidy over the C++ part: minutes, and 50 MB to download, so not a part of lint.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
[ -x "$venv/bin/pytest" ] || install_megart test
"$venv/bin/pip" install --quiet --constraint "$clone/tools/constraints.txt" clang-tidy pybind11
cd "$clone"
read -ra includes <<<"$("$venv/bin/python" -m pybind11 --includes)"
printf '%s\n' csrc/*.cpp tests/fuzz/core.cpp | xargs -P "$(nproc 2>/dev/null || echo 2)" -I{} \
  "$venv/bin/clang-tidy" --quiet {} -- -std=c++17 -Icsrc "${includes[@]}"
