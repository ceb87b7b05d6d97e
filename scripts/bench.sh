#!/usr/bin/env bash
# Measures a release build of Weir on this machine and prints one line a figure; docs/performance.md says what they mean.
# Every load is bounded in number and time: about ten minutes in all. BENCH_QUICK=1 is about one, to see that it works.
# BENCH_ONLY="fanout publish idle storm tokens archive cassandra" picks some. Exits 1 when a load lost something or could not run.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
only=${BENCH_ONLY:-fanout publish idle storm tokens archive cassandra}
weir=$target/release/weir
load=$target/bench/release/loadgen
floor=$target/bench/release/floor

if [ -n "${BENCH_QUICK:-}" ]; then
  rounds=1 fanout_s=3 publish_s=3 idle_conns=1000 idle_s=4 storm_conns=500 rows=20000 deep_rows=100000
else
  rounds=5 fanout_s=6 publish_s=8 idle_conns=10000 idle_s=20 storm_conns=2000 rows=100000 deep_rows=1000000
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/weir-bench.XXXXXX")
server_pid=
nats_pid=
failures=0

fail() {
  echo "bench: $*" >&2
  failures=$((failures + 1))
}

# Ends what the bench started, and waits for it: politely, then not.
stop_servers() {
  local pid tries
  for pid in $server_pid $nats_pid; do kill -TERM "$pid" 2>/dev/null; done
  for pid in $server_pid $nats_pid; do
    for tries in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      [ "$tries" -lt 100 ] || kill -KILL "$pid" 2>/dev/null
      sleep 0.1
    done
    wait "$pid" 2>/dev/null
  done
  server_pid=
  nats_pid=
}
cleanup() {
  # A Weir that was stopped while it started has written its server's pid by now.
  if [ -z "$nats_pid" ] && [ -n "$server_pid" ]; then
    nats_pid=$(cat "$work"/data/*/nats-server.pid 2>/dev/null)
  fi
  stop_servers
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 10000))
    listens "$port" || { echo "$port"; return; }
  done
}
# get PORT PATH: the body of a page, or nothing.
get() {
  (
    exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
    printf 'GET %s HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n' "$2" >&3
    timeout 5 cat <&3
  ) 2>/dev/null
}
metric() { get "$internal" /metrics | awk -v name="$1" '$1 == name { print int($2) }'; }
cpu_s() { awk '{ sub(/.*\) /, ""); print ($12 + $13) / 100 }' "/proc/$1/stat"; }

start_floor() {
  local port
  : >"$work/out"
  port=$(free_port)
  "$floor" "127.0.0.1:$port" >"$work/floor.log" 2>&1 &
  server_pid=$!
  args=(--url "ws://127.0.0.1:$port/connection/websocket" --pid "$server_pid:floor")
  for _ in $(seq 100); do listens "$port" && return; sleep 0.1; done
  fail "the floor does not listen"
  return 1
}
# Starts Weir on the data folder that is there, or a new one.
start_weir() {
  local port
  port=$(free_port)
  internal=$(free_port)
  nats_port=$(free_port)
  "$weir" up --config bench/weir.toml --data "$work/data" \
    --set "http_server.port=$port" --set "http_server.internal_port=$internal" \
    --set "nats_server.port=$nats_port" --set "nats_server.mqtt_port=$(free_port)" >"$work/weir.log" 2>&1 &
  server_pid=$!
  for _ in $(seq 300); do
    if get "$internal" /ready | head -n 1 | grep -q ' 200 '; then
      nats_pid=$(cat "$work"/data/*/nats-server.pid)
      args=(--url "ws://127.0.0.1:$port/connection/websocket" --pid "$server_pid:weir" --pid "$nats_pid:nats")
      return
    fi
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.1
  done
  fail "weir is not ready:"
  tail -n 5 "$work/weir.log" >&2
  return 1
}
fresh_weir() {
  rm -rf "$work/data"
  : >"$work/out"
  start_weir
}

# run SECONDS LOAD…: runs a load within that time; its figures are then in $work/out.
run() {
  local most=$1
  shift
  timeout "$most" "$load" "$@" "${args[@]}" >"$work/out" 2>"$work/err" || {
    fail "$*: $(head -n 1 "$work/err")"
    cat "$work/out" >&2
  }
}
have_figures() { [ -s "$work/out" ]; }
figure() { awk -v name="$1" '$1 == name { print $2 }' "$work/out"; }
line() { printf '%-58s %s\n' "$1" "$2"; }
median() { sort -n | awk '{ all[NR] = $1 } END { if (NR) print all[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f\n", a / b; else print "?" }'; }

# fan_out SERVER START: one load on that server.
fan_out() {
  "$2" && run $((fanout_s + 40)) fanout --subs 1000 --rate 100 --size 128 --seconds "$fanout_s"
  if have_figures; then
    if [ "$1" = weir ]; then
      weirs+=("$(figure weir_cpu_s_per_1m)")
      natses+=("$(figure nats_cpu_s_per_1m)")
      waits+=("$(figure latency_p50_ms)")
    else
      floors+=("$(figure floor_cpu_s_per_1m)")
    fi
  fi
  stop_servers
}
fanout() {
  local round
  local -a weirs=() floors=() natses=() waits=() ratios=()
  # Turn about, so that neither always has the quieter half of a round.
  for round in $(seq "$rounds"); do
    if [ $((round % 2)) = 1 ]; then
      fan_out floor start_floor
      fan_out weir fresh_weir
    else
      fan_out weir fresh_weir
      fan_out floor start_floor
    fi
    [ "${#weirs[@]}" = "${#floors[@]}" ] || return
    ratios+=("$(ratio "${weirs[-1]}" "${floors[-1]}")")
  done
  line "fan-out 1,000 x 100/s x 128 B, floor" "$(printf '%s\n' "${floors[@]}" | median) CPU-s per 1M deliveries (median of $rounds: ${floors[*]})"
  line "fan-out 1,000 x 100/s x 128 B, weir" "$(printf '%s\n' "${weirs[@]}" | median) CPU-s per 1M deliveries (${weirs[*]})"
  line "fan-out, nats-server beside weir" "$(printf '%s\n' "${natses[@]}" | median) CPU-s per 1M deliveries"
  line "fan-out, weir / floor" "$(printf '%s\n' "${ratios[@]}" | median) (rounds: ${ratios[*]})"
  line "fan-out, weir, send to arrival, p50" "$(printf '%s\n' "${waits[@]}" | median) ms (the generator shares the cores)"
}

publish() {
  local conns inflight
  for conns in 1 50; do
    inflight=$([ "$conns" = 1 ] && echo 1 || echo 8)
    fresh_weir && run $((publish_s + 40)) publish --conns "$conns" --inflight "$inflight" --size 128 --seconds "$publish_s"
    if have_figures; then
      line "publish, $conns x $inflight in flight, sync always" "$(figure acked_per_s) acknowledged/s, p50 $(figure ack_p50_ms) ms, p99 $(figure ack_p99_ms) ms"
      line "publish, $conns x $inflight in flight, cost" "weir $(figure weir_cpu_s_per_1m), nats-server $(figure nats_cpu_s_per_1m) CPU-s per 1M"
    fi
    stop_servers
  done
}

idle() {
  local conns=$idle_conns most
  most=$(ulimit -n)
  if [ "$most" != unlimited ] && [ "$most" -lt $((conns + 1000)) ]; then
    conns=$((most - 1000))
    echo "bench: only $most open files are allowed (ulimit -n): $conns idle connections instead of $idle_conns" >&2
  fi
  start_floor && run $((idle_s + 60)) idle --conns "$conns" --channels 1000 --seconds "$idle_s"
  have_figures && line "idle, $conns connections in 1,000 rooms, floor" "$(figure floor_kib_per_conn) KiB RSS per connection, $(figure floor_cores_idle) cores (it sends no pings)"
  stop_servers
  fresh_weir && run $((idle_s + 60)) idle --conns "$conns" --channels 1000 --seconds "$idle_s"
  have_figures && line "idle, $conns connections in 1,000 rooms, weir" "$(figure weir_kib_per_conn) KiB RSS per connection, $(figure weir_cores_idle) cores; nats-server $(figure nats_kib_per_conn) KiB"
  stop_servers
}

storm() {
  fresh_weir && run 90 storm --conns "$storm_conns" --missed 20 --size 128
  have_figures && line "storm, $storm_conns come back at once, each recovers 20" "all back in $(figure all_back_s) s (one: p50 $(figure recovery_p50_ms) ms, p99 $(figure recovery_p99_ms) ms), $(figure recovered_whole) whole"
  have_figures && line "storm, cost" "weir $(figure weir_cpu_s), nats-server $(figure nats_cpu_s) CPU-s"
  stop_servers
}

# The store is filled, the archive taken away, and Weir started again on both.
archive() {
  local started now written=0 first_written='' first_at='' cpu=''
  fresh_weir || { stop_servers; return; }
  run 60 publish --conns 50 --inflight 8 --size 128 --seconds 45 --count "$rows"
  rows=$(figure acked)
  stop_servers
  [ "${rows:-0}" -gt 0 ] || { fail "nothing to archive"; return; }
  rm -f "$work"/data/archive.db*
  started=$(date +%s%N)
  start_weir || { stop_servers; return; }
  for _ in $(seq 1000); do
    written=$(metric weir_archive_rows)
    now=$(date +%s%N)
    if [ -z "$first_at" ] && [ "${written:-0}" -gt 0 ]; then
      first_written=$written first_at=$now
    fi
    if [ "${written:-0}" -ge "$rows" ] && [ "$(metric weir_archive_lag_messages)" = 0 ]; then
      cpu=$(cpu_s "$server_pid")
      break
    fi
    sleep 0.05
  done
  if [ -z "$cpu" ]; then
    fail "the archive has ${written:-0} of $rows rows"
  else
    line "archive, $rows rows into an empty one" "$(awk -v n="$rows" -v ns=$((now - started)) 'BEGIN { printf "%.1f s from the start of weir, %d rows/s", ns / 1e9, n / (ns / 1e9) }')"
    if [ "$first_written" -lt "$rows" ]; then
      line "archive, once it runs" "$(awk -v n=$((rows - first_written)) -v ns=$((now - first_at)) 'BEGIN { printf "%d rows/s over the last %d", n / (ns / 1e9), n }')"
    fi
    line "archive, cost" "$(awk -v n="$rows" -v s="$cpu" 'BEGIN { printf "weir %.1f CPU-s per 1M rows, its start included", s / n * 1e6 }')"
  fi
  stop_servers
}

# What a token costs to verify.
tokens() {
  local out
  if out=$(cargo run --release --locked --quiet -p weir-authz --example verify_cost); then
    while read -r text; do line "tokens" "$text"; done <<<"$out"
  else
    fail "verify_cost"
  fi
}

bytes_a_row() { du -cb "$@" 2>/dev/null | awk -v rows="$deep_rows" 'END { printf "%d bytes a message on the disk", $1 / rows }'; }

# Both archives: batches beside the bare driver; a backlog of the same stream by the worker; pages, cold and cached; bytes on the disk.
# Needs Java; see scripts/cassandra.sh.
cassandra() {
  local bench=$target/release/examples/archive_bench node=$work/cassandra url script pid port jmx
  cargo build --release --locked -p weir-history --example archive_bench || { fail "archive_bench does not build"; return; }
  # measure ARGUMENT…: one run of the bench.
  measure() {
    local out text
    out=$(timeout 900 "$bench" "$@" 2>"$work/err") || fail "archive_bench $*: $(head -n 3 "$work/err")"
    while read -r text; do [ -z "$text" ] || line "archive" "$text"; done <<<"$out"
  }
  port=$(free_port)
  url=nats://127.0.0.1:$port
  "$WEIR_NATS_SERVER" -a 127.0.0.1 -p "$port" -js -sd "$work/jetstream" >"$work/nats.log" 2>&1 &
  nats_pid=$!
  for _ in $(seq 100); do listens "$port" && break; sleep 0.1; done

  measure append sqlite "$work/append.db" "$deep_rows"
  rm -f "$work"/append.db*
  measure backlog sqlite "$work/backlog.db" "$deep_rows" "$url" "$nats_pid"
  line "archive" "sqlite: $(bytes_a_row "$work"/backlog.db*), indexes included"
  rm -f "$work"/backlog.db*

  port=$(free_port) jmx=$(free_port)
  mkdir -p "$node"
  exec 8> >(exec scripts/cassandra.sh --throwaway --until-eof --heap 1G --data "$node" --port "$port" \
    --storage-port "$(free_port)" --jmx-port "$jmx" >"$work/cassandra.log" 2>&1)
  script=$!
  while [ ! -e "$node/node1/ready" ] && kill -0 "$script" 2>/dev/null; do sleep 0.2; done
  if [ -e "$node/node1/ready" ]; then
    pid=$(cat "$node/node1/pid")
    measure append cassandra "127.0.0.1:$port" "$deep_rows" "$pid"
    measure backlog cassandra "127.0.0.1:$port" "$deep_rows" "$url" "$nats_pid" "$pid"
    JMX_PORT=$jmx scripts/cassandra.sh nodetool flush backlog >>"$work/cassandra.log" 2>&1
    line "archive" "cassandra: $(bytes_a_row "$node"/node1/data/data/backlog "$node"/node1/data/backlog), indexes included, compressed"
  else
    fail "Cassandra did not start: $(tail -3 "$work/cassandra.log")"
  fi
  exec 8>&-
  wait "$script" 2>/dev/null
  stop_servers
}

ulimit -n "$(ulimit -Hn)" || echo "bench: ulimit -n stays $(ulimit -n)" >&2
cargo build --release --locked --manifest-path bench/Cargo.toml --target-dir "$target/bench" || exit 1
[ -x "$weir" ] || { echo "bench: no $weir; run make bench" >&2; exit 1; }
WEIR_NATS_SERVER=$(scripts/get-nats-server.sh) || exit 1
export WEIR_NATS_SERVER

line "machine" "$(nproc) cores, $(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo), Linux $(uname -r)"
line "versions" "$("$weir" --version), $("$WEIR_NATS_SERVER" --version), $(rustc --version | cut -d' ' -f1,2)"
line "load before" "$(cut -d' ' -f1-3 /proc/loadavg)"
for one in $only; do
  case $one in
    fanout | publish | idle | storm | tokens | archive | cassandra) "$one" ;;
    *) fail "BENCH_ONLY: no such load: $one" ;;
  esac
done
line "load after" "$(cut -d' ' -f1-3 /proc/loadavg), $SECONDS s in all"
[ "$failures" -eq 0 ]
