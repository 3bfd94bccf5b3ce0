# Sourced by the scripts beside it: makes .venv in the clone and installs megart with EXTRAS into it.
# PYTHON chooses the interpreter (3.10 to 3.13). The first run builds llama-cpp-python: minutes.

clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$clone/.venv"

# gcc 12.2 compiles llama.cpp's AMX kernels wrongly (ldtilecfg runs before its operand is written): every question ends in
# a segmentation fault. So older gccs leave these kernels out where the CPU has them.
without_amx() {
  grep -qs amx_int8 /proc/cpuinfo && c++ --version | grep -qi 'gcc\|free software' || return 0
  [ "$(c++ -dumpversion | cut -d. -f1)" -ge 14 ] || echo -mno-amx-int8
}

install_megart() {
  local extras=$1 python=${PYTHON:-python3}
  if [ ! -x "$venv/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
      echo "megart: got $("$python" --version 2>&1); expected Python 3.10 to 3.13; set PYTHON" >&2
      return 1
    }
    command -v c++ >/dev/null || {
      echo "megart: no C++ compiler; on Debian: apt-get install g++ python3-dev" >&2
      return 1
    }
    echo "making $venv" >&2
    "$python" -m venv "$venv" || return 1
  fi
  echo "installing megart[$extras]; a first run builds llama.cpp and takes minutes" >&2
  CFLAGS="${CFLAGS:-} $(without_amx)" CXXFLAGS="${CXXFLAGS:-} $(without_amx)" \
    CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc 2>/dev/null || echo 2)} \
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$clone/tools/constraints.txt" "$clone[$extras]"
}
