#!/usr/bin/env bash
# One command on a fresh machine: install megart with what the demo needs, then run `megart demo`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_megart demo
exec "$venv/bin/megart" demo "$@"
