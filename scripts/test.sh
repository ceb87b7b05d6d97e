#!/usr/bin/env bash
# Everything that must hold before a change lands. All of it runs, whatever fails; the last line counts: `N passed, N failed`.
# Output is kept in test-results/. WEIR_TEST_LONG=1 runs the long tests whole.
set -uo pipefail
cd "$(dirname "$0")/.."

results=test-results
mkdir -p "$results"
rm -f "$results"/*.log
passed=0
failed=0
declare -a failures=()

# step NAME COMMAND…: runs it, shows and keeps its output, and adds up what its test runners counted.
step() {
  local name=$1 log="$results/$1.log" status=0 ok bad
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  # Nothing that a step leaves behind may hold the pipe that the node of Cassandra listens to.
  (exec 7>&- && "$@" 2>&1 | tee "$log") || status=$?
  # Two runners: cargo's `test result: ok. 3 passed; 0 failed`, node's `# pass 3` or `ℹ pass 3`.
  read -r ok bad < <(awk '
    /^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) ok += $(i - 1); if ($i ~ /^failed/) bad += $(i - 1) } }
    /^(#|ℹ) pass [0-9]+$/ { ok += $3 }
    /^(#|ℹ) (fail|cancelled) [0-9]+$/ { bad += $3 }
    END { print ok + 0, bad + 0 }' "$log")
  # A step that fails without a failed test (a lint, a crash, a build) is one failure.
  if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
  passed=$((passed + ok))
  failed=$((failed + bad))
  if [ "$bad" -ne 0 ]; then failures+=("$name ($log)"); fi
}

install() { # WHAT PACKAGE…
  local what=$1
  shift
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" && return 0
  fi
  echo "$what is missing; install it: apt-get install $*" >&2
  return 1
}

have_or_install() { # PROGRAM PACKAGE…
  command -v "$1" >/dev/null || install "$@"
}

sdk_ready() {
  have_or_install node nodejs npm && have_or_install npm npm || return 1
  [ -n "${WEIR_CHROMIUM:-}" ] || have_or_install chromium chromium || return 1
  npm ci --prefix tests/sdk --no-audit --no-fund
}

# What tests measured, as `test: figure`; shown at the end.
export WEIR_TEST_FIGURES=$PWD/$results/figures.log

# One node of Cassandra for all tests, on free ports and in a folder of its own. It ends when pipe 7 does: with this script.
node_folder=
node_script=
stop_node() {
  exec 7>&-
  if [ -n "$node_script" ] && kill -TERM "$node_script" 2>/dev/null; then wait "$node_script" 2>/dev/null; fi
  [ -z "$node_folder" ] || rm -rf "$node_folder"
}
trap stop_node EXIT
trap 'exit 130' INT TERM HUP

free_port() {
  local port
  while port=$((10000 + RANDOM % 22000)) && (exec 6<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

start_node() {
  local port
  if ! scripts/cassandra.sh java >/dev/null 2>&1; then install "Java 17" openjdk-17-jdk-headless || return 1; fi
  if ! ls -d .tools/cassandra/*/lib >/dev/null 2>&1; then have_or_install mvn maven || return 1; fi
  port=$(free_port)
  node_folder=$(mktemp -d "${TMPDIR:-/tmp}/weir-test-cassandra.XXXXXX") || return 1
  exec 7> >(exec scripts/cassandra.sh --light --throwaway --until-eof --data "$node_folder" \
    --port "$port" --storage-port "$(free_port)" --jmx-port 0 >"$results/cassandra-node.log" 2>&1)
  node_script=$!
  export WEIR_TEST_CASSANDRA=127.0.0.1:$port
}

node_ready() {
  local began=$SECONDS
  if [ -z "$node_script" ]; then echo "it was not started; the reason is above" && return 1; fi
  while [ ! -e "$node_folder/node1/ready" ] && kill -0 "$node_script" 2>/dev/null; do sleep 0.1; done
  cat "$results/cassandra-node.log"
  [ -e "$node_folder/node1/ready" ] && echo "waited $((SECONDS - began)) s for it"
}

nats_server=$(scripts/get-nats-server.sh) || { echo "0 passed, 1 failed"; exit 1; }
export WEIR_NATS_SERVER=$nats_server

# It comes up while clippy works.
own_node=
if [ -z "${WEIR_TEST_CASSANDRA:-}" ]; then
  own_node=1
  start_node
fi

step format cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
step doc env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
if [ -n "$own_node" ]; then step cassandra node_ready; fi
# The longest tests are ignored unless asked for.
long=()
if [ "${WEIR_TEST_LONG:-}" = 1 ]; then long=(-- --include-ignored); fi
step cargo cargo test --workspace --locked --no-fail-fast ${long[@]+"${long[@]}"}
# What the black-box tests promise of history and recovery holds for an archive in Cassandra, too.
step cargo-cassandra env WEIR_TEST_ARCHIVE=cassandra cargo test --locked --no-fail-fast --test it -- \
  archive:: bot_recovers:: deploy:: far_behind:: kill_nine:: lost_ack:: lost_tail:: rollback:: slow_reader:: trimmed::

if [ -f tests/sdk/package.json ]; then
  step sdk-install sdk_ready
  target=${CARGO_TARGET_DIR:-target}
  case $target in /*) ;; *) target=$PWD/$target ;; esac
  step sdk env WEIR_BIN="$target/debug/weir" npm test --prefix tests/sdk
  # Again on Cassandra, without what has nothing to do with the archive.
  step sdk-cassandra env WEIR_TEST_ARCHIVE=cassandra WEIR_BIN="$target/debug/weir" npm test --prefix tests/sdk
fi

if [ -s "$WEIR_TEST_FIGURES" ]; then printf '\n== figures\n' && sort "$WEIR_TEST_FIGURES"; fi
printf '\n'
for failure in ${failures[@]+"${failures[@]}"}; do echo "failed: $failure"; done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
