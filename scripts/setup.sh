# shellcheck shell=bash
# Set-up shared by the scripts beside it, which source it: Debian packages, Python, .venv. It repeats nothing that stands.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { if [ -t 2 ]; then printf '\033[1m%s\033[0m\n' "$*" >&2; else printf '%s\n' "$*" >&2; fi; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGE...: installs the Debian packages that are missing, or says which and stops.
need_packages() {
  local missing=() package sudo=()
  command -v dpkg-query >/dev/null || { say "Not a Debian system; please see to: $*"; return; }
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || die "these Debian packages are missing: ${missing[*]} (apt-get install ${missing[*]})"
    sudo=(sudo -n)
  fi
  say "Installing Debian packages: ${missing[*]}"
  "${sudo[@]}" apt-get -qq update </dev/null >&2 || say "apt-get update failed; going on with the lists at hand"
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" \
    </dev/null >&2 || die "apt-get could not install ${missing[*]}"
}

# find_python: prints a Python 3.11 or later; $PYTHON wins.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    command -v "$candidate"
    return
  done
  die "Python 3.11 or later is missing (Debian 12: apt-get install python3 python3-venv)"
}

# need_venv tink|test|dev: makes .venv with hsmd[EXTRA] installed from this folder; stamps tell what stands already.
need_venv() {
  local extra=$1 python stamp implied
  stamp=$(cd "$root" && cat pyproject.toml hatch_build.py $(find proto -name '*.proto' | LC_ALL=C sort) | sha256sum)
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python) || exit 1
    "$python" -c 'import ensurepip' 2>/dev/null || need_packages "$(venv_package "$python")"
    say "Making $venv"
    "$python" -m venv --clear "$venv" || die "$python could not make $venv"
  fi
  [ "$(cat "$venv/.hsmd-$extra" 2>/dev/null)" != "$stamp" ] || [ ! -d "$root/hsmd/pb" ] || return 0
  say "Installing hsmd[$extra] into $venv (a minute on a new machine)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$extra]" >&2 \
    || die "pip could not install hsmd; its message stands above"
  case $extra in dev) implied="dev test tink" ;; test) implied="test tink" ;; *) implied=$extra ;; esac
  for extra in $implied; do printf '%s\n' "$stamp" >"$venv/.hsmd-$extra"; done
}

# want_promtool: puts Prometheus' promtool into .venv/bin, from the Debian package, which is not installed: it would
# start a server. Goes on without it where it can't be had.
want_promtool() {
  local folder
  [ ! -x "$venv/bin/promtool" ] && ! command -v promtool >/dev/null || return 0
  folder=$(mktemp -d)
  say "Fetching promtool (19 MB)"
  (
    set -euo pipefail
    cd "$folder" && chmod 755 . && apt-get -qq download prometheus 2>/dev/null >&2 &&
      dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool && chmod 755 promtool &&
      mv promtool "$venv/bin/promtool"
  ) || say "Going on without promtool"
  rm -rf "$folder"
}

# venv_package PYTHON: the Debian package that brings ensurepip for it.
venv_package() {
  "$1" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")'
}
