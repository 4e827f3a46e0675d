#!/usr/bin/env bash
# Installs the system packages that are missing: setup.sh build|run|test|bench …
# Says nothing when all is there.
set -euo pipefail

# Each line: what it is for, what must be there (a command or a file), and the package that brings it.
needs() {
  cat <<'LIST'
build cc gcc
build clang clang
build libclang.so libclang-dev
build pkg-config pkg-config
build libseccomp.pc libseccomp-dev
run ip iproute2
run nft nftables
run bash bash
test busybox busybox-static
test runc runc
test docker-registry docker-registry
test skopeo skopeo
test umoci umoci
test nginx nginx-light
test kubectl kubernetes-client
bench etcd etcd-server
LIST
}

# Their services are wanted by nobody here: the tests run these programs themselves.
SERVICES="docker-registry nginx etcd"

die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "root is needed to install packages, and there is no sudo: run this as root"
  fi
}

has() {
  case $1 in
    libclang.so) compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || compgen -G '/usr/lib*/libclang.so*' >/dev/null ;;
    libseccomp.pc) pkg-config --exists libseccomp 2>/dev/null ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

missing_packages() {
  local group what package
  while read -r group what package; do
    if [[ " $* " == *" $group "* ]] && ! has "$what"; then
      echo "$package"
    fi
  done < <(needs)
}

install_packages() {
  command -v apt-get >/dev/null || die "this machine has no apt-get; install these yourself: $*"
  echo "setup: installing $*"
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
  disable_services "$@"
}

disable_services() {
  [ -d /run/systemd/system ] || return 0
  local service
  for service in $SERVICES; do
    if [[ " $* " == *" $service"* ]]; then
      as_root systemctl disable --quiet "$service" || true
    fi
  done
}

# The kubectl of Debian 12 is of 2021: one story uses it, beside the one that is there. Elsewhere there is none.
OLD_KUBECTL=/opt/flotilla-tests/kubectl-1.20
fetch_old_kubectl() {
  local dir
  [ ! -e "$OLD_KUBECTL" ] && command -v apt-get >/dev/null || return 0
  dir=$(mktemp -d)
  if (cd "$dir" && apt-get download -qq 'kubernetes-client=1.20*') >/dev/null 2>&1; then
    echo "setup: fetching kubectl 1.20"
    as_root mkdir -p "$OLD_KUBECTL"
    as_root dpkg-deb -x "$dir"/kubernetes-client_*.deb "$OLD_KUBECTL"
  fi
  rm -rf "$dir"
}

[ "$(uname -s)" = Linux ] || die "Flotilla runs on Linux; this is $(uname -s)"
command -v cargo >/dev/null || die "Rust is needed: https://rustup.rs"
mapfile -t packages < <(missing_packages "$@")
if [ "${#packages[@]}" -gt 0 ]; then
  install_packages "${packages[@]}"
  mapfile -t packages < <(missing_packages "$@")
  [ "${#packages[@]}" = 0 ] || die "still missing after installation: ${packages[*]}"
fi
[[ " $* " != *" test "* ]] || fetch_old_kubectl
