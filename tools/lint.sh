#!/usr/bin/env bash
# Style and types, without a test: tools/lint.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
[ -x "$venv/bin/pytest" ] || install_megart test
"$venv/bin/pip" install --quiet --constraint "$clone/tools/constraints.txt" ruff mypy clang-format
cd "$clone"
"$venv/bin/ruff" check
"$venv/bin/clang-format" --dry-run --Werror csrc/* tests/fuzz/core.cpp tools/read_bandwidth.cpp
"$venv/bin/mypy"
