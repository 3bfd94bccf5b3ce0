#!/usr/bin/env bash
# One command on a fresh machine: install megart with what the tests need, then run pytest.
# Arguments go to pytest: tools/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
install_megart test
cd "$clone"
exec "$venv/bin/pytest" "$@"
