#!/usr/bin/env bash
# Makes .venv/bin/lsr-hpc usable on Debian 12/13 and Ubuntu 24.04; `make env` calls it. See docs/install.md.
#   scripts/setup.sh            do what is missing, nothing when all is there
#   scripts/setup.sh --check    exit status 0 when there is nothing to do
#   TORCH=cpu|cuda make env     choose the torch build (default: cuda where nvidia-smi finds a GPU)
#   LSR_EXTRAS=1 make env       add what some tests need besides: ONNX, DeepXDE, Sphinx, Chromium (0.2 GB of
#                               downloads, about a minute); it stays, and such tests are never skipped then
# MPI, PETSc, SLEPc, mpi4py and numpy come from the distribution, because those five must fit one another;
# torch and the tools come by pip into .venv. Exit status 76: could not be set up, the last lines say why.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH_VERSION=2.13.0 DASK_VERSION=2026.8.0
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# Where Debian keeps things; the variables are for the tests of this script.
readonly PYTHON=${LSR_SYSTEM_PYTHON:-/usr/bin/python3}
readonly PETSC_ROOT=${LSR_PETSC_ROOT:-/usr/lib/petscdir}
readonly SLEPC_ROOT=${LSR_SLEPC_ROOT:-/usr/lib/slepcdir}
readonly POLICY=${LSR_POLICY_FILE:-/usr/sbin/policy-rc.d}

# libopenblas0-pthread: without it PETSc runs on the reference BLAS, about 20 times slower.
readonly REQUIRED=(openmpi-bin python3-mpi4py python3-petsc4py-real python3-slepc4py-real python3-venv
                   libopenblas0-pthread)
# A private SLURM for the tests; libpmix-dev has the unversioned libpmix.so that srun --mpi=pmix loads.
readonly FOR_TESTS=(slurmctld slurmd slurm-client munge libpmix-dev)

# A browser for the tests of reports.
readonly FOR_EXTRAS=(chromium)

readonly VENV=.venv STAMP=.venv/.lsr-setup LOGS=build/setup STEPS=5
step=0 step_name='start' log=/dev/null child='' policy_is_ours=''

# --- what is there already --------------------------------------------------------------------------

key() { cat pyproject.toml scripts/setup.sh | sha256sum | cut -d ' ' -f 1; }

read_stamp() {  # sets stamp_state, stamp_key, ... from its lines "name=value"
  stamp_state='' stamp_key='' stamp_torch='' stamp_root='' stamp_python='' stamp_petsc='' stamp_slepc=''
  stamp_extras=''
  [[ -r $STAMP ]] || return 0
  local name value
  while IFS='=' read -r name value; do
    case $name in
      state | key | torch | root | python | petsc | slepc | extras) printf -v "stamp_$name" '%s' "$value" ;;
      '#'*) break ;;  # a record of versions follows
    esac
  done <"$STAMP"
}

is_complete() {
  read_stamp
  [[ $stamp_state == complete && $stamp_key == "$(key)" && $stamp_root == "$PWD" ]] &&
    [[ $stamp_python == "$(readlink -f "$PYTHON")" && -d $stamp_petsc && -d $stamp_slepc ]] &&
    [[ -x $VENV/bin/python && -x $VENV/bin/lsr-hpc ]] &&
    [[ ${TORCH:-$stamp_torch} == "$stamp_torch" && ${LSR_EXTRAS:-$stamp_extras} == "$stamp_extras" ]]
}

# --- progress and failure ---------------------------------------------------------------------------

begin() {  # begin NAME
  step=$((step + 1)) step_name=$1 log=$LOGS/$step-${1%% *}.log
  mkdir -p "$LOGS"
  : >"$log"
  printf '[%d/%d] %s\n' "$step" "$STEPS" "$step_name"
}

say() { printf '      %s\n' "$*"; }

fail() {  # fail WHAT [ADVICE...]
  trap - ERR
  {
    printf '\nset-up FAILED in step [%d/%d] %s: %s\n' "$step" "$STEPS" "$step_name" "$1"
    shift
    if [[ -s $log ]]; then
      printf '  last lines of %s:\n' "$log"
      tail -n 12 "$log" | tr -d '\r' | cut -c 1-200 | sed 's/^/    | /'
    fi
    if (($#)); then printf '  what to do:\n'; printf '    %s\n' "$@"; fi
  } >&2
  exit 76
}

quietly() {  # quietly COMMAND...: output goes to the log; a line every 15 s shows that it is alive
  local started=$SECONDS next=15 pause=0.02
  { printf '+'; printf ' %q' "$@"; printf '\n'; } >>"$log"
  "$@" >>"$log" 2>&1 </dev/null 9<&- &
  child=$!
  while kill -0 "$child" 2>/dev/null; do
    sleep "$pause"
    if ((SECONDS > started)); then pause=0.2; fi
    if ((SECONDS - started >= next)); then
      say "$next s: $(tail -n 1 "$log" | tr -d '\r' | cut -c 1-90)"
      next=$((next + 15))
    fi
  done
  local status=0
  wait "$child" || status=$?
  child=''
  return "$status"
}

leave() {
  if [[ -n $child ]]; then kill "$child" 2>/dev/null && wait "$child" || true; fi
  if [[ -n $policy_is_ours ]]; then rm -f "$POLICY"; fi
}

# --- step 1: packages of the distribution -----------------------------------------------------------

missing_of() {  # missing_of PACKAGE...: those not installed
  local package
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s ' "$package"
  done
}

apt() {
  quietly env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
    -o Acquire::Retries=3 "$@"
}

# Installing munge and SLURM must not start daemons on somebody's machine: Debian asks this file first.
no_daemons() {
  [[ -e $POLICY ]] && ! grep -q 'lsr_hpc set-up' "$POLICY" 2>/dev/null && return
  policy_is_ours=yes
  printf '#!/bin/sh\n# lsr_hpc set-up: no daemons while its packages are installed; removed afterwards\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
}

install_packages() {
  local required tests
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    fail 'this system has no apt-get' 'Only Debian and Ubuntu are set up by make.' \
      'Elsewhere use conda-forge: conda env create -f environment.yml (docs/install.md).'
  fi
  required=$(missing_of "${REQUIRED[@]}") tests=$(missing_of "${FOR_TESTS[@]}")
  if [[ $extras == 1 ]]; then tests+=$(missing_of "${FOR_EXTRAS[@]}"); fi
  if [[ -z $required$tests ]]; then say 'all there'; return; fi
  if (($(id -u) != 0)); then
    if [[ -z $required ]]; then
      say "not installed: ${tests% } (only some tests need them, which will be skipped)"
      return
    fi
    fail "packages are missing and you are not root: ${required% }" \
      'Ask for, or type:' \
      "  sudo apt-get install --no-install-recommends $required$tests" \
      'Without root use conda-forge: conda env create -f environment.yml (docs/install.md).'
  fi
  local advice=('Is the network reachable, and a package mirror set in /etc/apt? Try: apt-get update'
    'Ubuntu: the packages are in "universe": add-apt-repository universe'
    'If dpkg was interrupted earlier: dpkg --configure -a'
    'Then run the same make command again; finished steps are not repeated.')
  say "to be installed: $required$tests"
  no_daemons
  apt update || fail 'apt-get update failed' "${advice[@]}"
  # shellcheck disable=SC2086  # a list of package names
  apt install -y --no-install-recommends $required $tests || fail 'apt-get install failed' "${advice[@]}"
}

# --- step 2: the virtual environment ----------------------------------------------------------------

find_bindings() {  # find_bindings PACKAGE ROOT: newest folder with the real build's Python package
  local folder found=''
  while IFS= read -r folder; do found=$folder; done < <(
    shopt -s nullglob
    for folder in "$2"/*[0-9].[0-9]*/*-real/lib/python3/dist-packages; do
      if [[ -d $folder/$1 && $folder != *64-[0-9]* ]]; then printf '%s\n' "$folder"; fi
    done | sort -V)
  printf '%s' "$found"
}

version_of() {  # version_of INTERPRETER: such as 3.11
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

make_venv() {
  local version reuse=''
  version=$(version_of "$PYTHON") || fail "$PYTHON does not run" 'Install it: apt-get install python3'
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$PYTHON is Python $version, but 3.11 or newer is needed" \
      'Use a newer release of the distribution, or conda-forge: docs/install.md.'
  petsc=$(find_bindings petsc4py "$PETSC_ROOT") slepc=$(find_bindings slepc4py "$SLEPC_ROOT")
  [[ -n $petsc ]] || fail "no real build of petsc4py under $PETSC_ROOT" \
    'Type: apt-get install --reinstall python3-petsc4py-real (the -complex package does not serve).'
  [[ -n $slepc ]] || fail "no real build of slepc4py under $SLEPC_ROOT" \
    'Type: apt-get install --reinstall python3-slepc4py-real (the -complex package does not serve).'
  numpy=$("$PYTHON" -c 'import numpy; print(numpy.__version__)' 2>>"$log") ||
    fail "$PYTHON cannot import numpy" 'Type: apt-get install --reinstall python3-numpy'

  if [[ -x $VENV/bin/python && $(version_of $VENV/bin/python 2>/dev/null) == "$version" ]] &&
    grep -q '^include-system-site-packages = true' $VENV/pyvenv.cfg 2>/dev/null &&
    [[ $(readlink -f $VENV/bin/python) == "$(readlink -f "$PYTHON")" ]] &&
    [[ -z $stamp_root || $stamp_root == "$PWD" ]]; then
    reuse=yes
  elif [[ -e $VENV && ! -e $STAMP ]]; then
    fail "$VENV exists, was not made by this script and does not fit (it needs $PYTHON and its packages)" \
      "Move it away: mv $VENV $VENV.old"
  fi
  if [[ -n $reuse ]]; then
    say "kept: $VENV (Python $version)"
    [[ -e $STAMP ]] || printf 'state=incomplete\n' >"$STAMP"
    sed -i 's/^state=.*/state=incomplete/' "$STAMP"
  else
    rm -rf "$VENV"
    mkdir "$VENV"
    printf 'state=incomplete\ntorch=%s\n' "$stamp_torch" >"$STAMP"
    quietly "$PYTHON" -m venv --system-site-packages "$VENV" ||
      fail 'the virtual environment could not be made' 'Type: apt-get install --reinstall python3-venv'
    say "made: $VENV (Python $version)"
  fi
  # The bindings lie outside Python's path in Debian; two lines in a .pth file put them there.
  printf '%s\n%s\n' "$petsc" "$slepc" >"$($VENV/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/petsc-slepc.pth"
  # petsc4py and mpi4py were compiled against the distribution's numpy: pip must not bring another.
  printf '%s\n' "numpy==$numpy" "dask==$DASK_VERSION" "distributed==$DASK_VERSION" >"$LOGS/constraints.txt"
  say "petsc4py from ${petsc%/lib/python3*}, numpy $numpy"
}

# --- steps 3 and 4: torch, lsr_hpc and the tools ----------------------------------------------------

pip_install() {
  quietly "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
    --constraint "$LOGS/constraints.txt" "$@"
}

torch_build() {  # what is installed: cpu, cuda or nothing
  "$VENV/bin/python" -c 'import torch; print("cuda" if torch.version.cuda else "cpu")' 2>/dev/null || true
}

choose_torch() {
  local asked=${TORCH:-$stamp_torch}
  case $asked in
    cpu | cuda) torch=$asked ;;
    '') if timeout 20 nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then torch=cuda; else torch=cpu; fi ;;
    *) fail "TORCH=$asked is not known" 'Use TORCH=cpu or TORCH=cuda.' ;;
  esac
}

install_torch() {
  local advice=('Is the network reachable, and does a proxy need to be set (https_proxy)?'
    "A wheel you have: PIP_FIND_LINKS=/folder/with/wheels make env"
    'conda-forge has torch for more Python versions: docs/install.md')
  local what
  what="torch $TORCH_VERSION for Python $(version_of $VENV/bin/python) on $(uname -m)"
  if [[ $torch == cuda ]]; then
    if [[ $(torch_build) == cpu ]]; then quietly $VENV/bin/python -m pip uninstall -y torch || true; fi
    say 'CUDA build (several GB)'
    pip_install "torch==$TORCH_VERSION" || fail "$what (CUDA) could not be installed" "${advice[@]}"
    [[ $(torch_build) == cuda ]] ||
      fail 'pip chose a build without CUDA' 'Look at: pip config list (find-links with a CPU wheel?)'
    return
  fi
  # Only builds that are marked +cpu: the plain name would bring gigabytes of CUDA libraries from PyPI.
  pip_install "torch==$TORCH_VERSION+cpu" && return
  say "not in the configured package indexes, trying $TORCH_CPU_INDEX"
  pip_install --index-url "$TORCH_CPU_INDEX" "torch==$TORCH_VERSION+cpu" && return
  fail "no CPU build of $what, neither in the configured package indexes nor at $TORCH_CPU_INDEX" "${advice[@]}" \
    'TORCH=cuda make env takes the CUDA build (several GB), which runs on the CPU as well.'
}

install_project() {
  local advice=('Is the network reachable, and does a proxy need to be set (https_proxy)?'
    'Then run the same make command again; finished steps are not repeated.')
  # The build tool once, in .venv, instead of a download for every build.
  pip_install 'setuptools>=70.1' || fail 'setuptools could not be installed' "${advice[@]}"
  local wanted=dev also=()
  # torch is named again, or a package that asks for a range of it could bring another build.
  if [[ $extras == 1 ]]; then wanted=dev,docs,onnx,peers also=("torch==$TORCH_VERSION"); fi
  pip_install --no-build-isolation --editable ".[$wanted]" "${also[@]}" ||
    fail 'lsr_hpc could not be installed' "${advice[@]}"
}

write_stamp() {
  {
    printf '%s\n' 'state=complete' "key=$(key)" "torch=$torch" "root=$PWD" "python=$(readlink -f "$PYTHON")" \
      "petsc=$petsc" "slepc=$slepc" "extras=$extras"
    printf '# packages of the distribution\n'
    dpkg-query -W -f '${Package}=${Version}\n' "${REQUIRED[@]}" "${FOR_TESTS[@]}" 2>/dev/null || true
    printf '# Python packages\n'
    "$VENV/bin/python" -c '
import importlib.metadata as m
for d in sorted(m.distributions(), key=lambda d: d.name.lower()): print(d.name + "==" + d.version)' | uniq
  } >"$STAMP.new"
  mv "$STAMP.new" "$STAMP"
}

main() {
  if [[ ${1:-} == --check ]]; then
    if is_complete; then return 0; else return 1; fi
  fi
  (($# == 0)) || { printf 'usage: scripts/setup.sh [--check]\n' >&2; return 2; }
  if is_complete; then printf 'set-up: complete (%s)\n' "$VENV"; return 0; fi
  exec 9<scripts/setup.sh
  flock -n 9 2>/dev/null || { printf 'set-up: another one is running, waiting for it\n'; flock 9 2>/dev/null || true; }
  if is_complete; then printf 'set-up: complete (%s)\n' "$VENV"; return 0; fi

  trap leave EXIT
  trap 'exit 130' INT TERM HUP
  trap 'fail "unexpected error in line $LINENO: $BASH_COMMAND"' ERR
  # What would steer pip and Python away from .venv.
  unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX VIRTUAL_ENV
  export PIP_ROOT_USER_ACTION=ignore
  local petsc slepc numpy torch extras started=$SECONDS
  extras=${LSR_EXTRAS:-$stamp_extras}

  begin 'packages of the distribution'
  install_packages
  begin "virtual environment $VENV"
  make_venv
  choose_torch
  begin "torch $TORCH_VERSION, $torch build"
  install_torch
  begin 'lsr_hpc and its tools'
  install_project
  begin 'doctor'
  if (($(id -u) == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$VENV/bin/lsr-hpc" doctor --short | sed 's/^/      /' ||
    fail 'the environment was installed but does not work' 'Follow the -> lines above, then run the same make command again.'
  write_stamp
  printf 'set-up: complete in %d s (%s)\n' "$((SECONDS - started))" "$VENV"
}

main "$@"
