#!/usr/bin/env bash
# A real Cassandra on loopback, from Maven artifacts, in the foreground: for trying Weir's archive and for its tests. See --help.
set -euo pipefail

version=${CASSANDRA_VERSION:-5.0.9}
plugin=org.apache.maven.plugins:maven-dependency-plugin:3.8.1
start_limit_s=180 # a node that does not answer by then is given up
stop_limit_s=20   # a node that has not stopped by then is killed

usage() {
  cat <<HELP
Starts Apache Cassandra $version on loopback, in the foreground; Ctrl-C stops it.

  scripts/cassandra.sh [OPTION…]            one node on 127.0.0.1:9042, its data in data/cassandra
  scripts/cassandra.sh prepare              only fetches what is missing
  scripts/cassandra.sh java                 prints the Java that would be used
  scripts/cassandra.sh nodetool COMMAND…    asks the running node (JMX_PORT, 7199), e.g. nodetool status

Needs Java 17 (or 11): --java, CASSANDRA_JAVA, JAVA_HOME, PATH and /usr/lib/jvm are looked at, in this order. The first start needs
Maven (mvn) too; it fetches about 80 MiB. What it fetched stays in .tools/cassandra.

  --port N           CQL (CASSANDRA_PORT, 9042)
  --storage-port N   between nodes (7000)
  --jmx-port N       for nodetool, 127.0.0.1 only; 0: none (7199; none in a ring)
  --data DIR         where node1, node2, … keep everything, logs included (CASSANDRA_DATA, data/cassandra)
  --heap SIZE        Java heap (CASSANDRA_HEAP, 512M; 384M in a ring). The process needs about 400 MiB more.
  --sync MODE        commit log: group (an acknowledged write is on the disk), batch (the same, each for itself) or periodic (a node
                     that is killed loses what it acknowledged last; right where two more hold a copy). Default: group; periodic in a ring.
  --nodes N          this is one of a ring of N nodes on 127.0.0.1 … 127.0.0.N
  --node I           which one, 1 to N. Start them all; the ports are the same on each address.
  --seeds LIST       addresses with storage ports of nodes to begin with (all of the ring)
  --auth             with passwords; the first user is cassandra, password cassandra
  --yaml FILE        appended to the generated cassandra.yaml
  --light            for tests: half the CPU time at the start and less memory, but no optimising compiler
  --jvm FLAGS        more flags for Java, split at spaces
  --java PROGRAM     this Java
  --wipe             removes what the node had before it starts
  --throwaway        a node for a test: killed rather than stopped, and its data removed; without --data in a folder of its own
  --until-eof        also stops when standard input ends, so that a node does not outlive who started it

A running node has the files pid and ready (once CQL answers) in its folder, DATA/nodeI.
HELP
}

say() { printf 'cassandra: %s\n' "$*"; }
die() {
  printf 'cassandra: %s\n' "$*" >&2
  exit 1
}
url() { printf 'file://%s' "${1// /%20}"; }
running() { kill -0 "$1" 2>/dev/null; } # a child that ended is reaped by bash and counts as gone

command=run
case ${1:-} in
  prepare | java | nodetool) command=$1 && shift ;;
esac

port=${CASSANDRA_PORT:-9042} storage_port=7000 jmx_port=
data=${CASSANDRA_DATA:-} heap=${CASSANDRA_HEAP:-} sync='' nodes=1 ordinal=1 seeds='' yaml='' java=${CASSANDRA_JAVA:-}
auth='' wipe='' throwaway='' until_eof='' light=''
declare -a more_jvm=()
while [ $# -gt 0 ] && [ "$command" != nodetool ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --auth) auth=1 ;;
    --wipe) wipe=1 ;;
    --throwaway) throwaway=1 ;;
    --until-eof) until_eof=1 ;;
    --light) light=1 ;;
    --port | --storage-port | --jmx-port | --data | --heap | --sync | --nodes | --node | --seeds | --yaml | --jvm | --java)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --port) port=$2 ;;
        --storage-port) storage_port=$2 ;;
        --jmx-port) jmx_port=$2 ;;
        --data) data=$2 ;;
        --heap) heap=$2 ;;
        --sync) sync=$2 ;;
        --nodes) nodes=$2 ;;
        --node) ordinal=$2 ;;
        --seeds) seeds=$2 ;;
        --yaml) yaml=$2 ;;
        --jvm) read -r -a more_jvm <<<"$2" ;;
        --java) java=$2 ;;
      esac
      shift
      ;;
    *) die "unknown option $1; --help lists them" ;;
  esac
  shift
done

number() { # NAME VALUE LOWEST HIGHEST
  if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then die "$1 $2: expected a number from $3 to $4"; fi
}
number --port "$port" 1 65535
number --storage-port "$storage_port" 1 65535
number --nodes "$nodes" 1 9
number --node "$ordinal" 1 "$nodes"
if [ "$nodes" -eq 1 ]; then
  heap=${heap:-512M} sync=${sync:-group} jmx_port=${jmx_port:-7199}
else
  heap=${heap:-384M} sync=${sync:-periodic} jmx_port=${jmx_port:-0}
fi
number --jmx-port "$jmx_port" 0 65535
[[ $heap =~ ^[0-9]+[kKmMgG]$ ]] || die "--heap $heap: expected a size such as 512M"
case $sync in group | batch | periodic) ;; *) die "--sync $sync: expected group, batch or periodic" ;; esac
if [ -n "$yaml" ]; then
  [ -f "$yaml" ] || die "--yaml $yaml: no such file"
  yaml=$(cd "$(dirname "$yaml")" && pwd)/$(basename "$yaml")
fi
if [ -n "$data" ]; then
  mkdir -p "$data"
  data=$(cd "$data" && pwd)
fi
cd "$(dirname "$0")/.."
home=$PWD/.tools/cassandra/$version

# ---- Java

java_version() { # PROGRAM: 17.0.15, say, or nothing
  "$1" -version 2>&1 | sed -n 's/.* version "\([^"]*\)".*/\1/p' | head -n 1
}

# Sets java to a program that Cassandra runs on, and java_found to its version. One that was asked for is not replaced.
find_java() {
  local candidate found seen=''
  local -a candidates=()
  if [ -n "$java" ]; then
    candidates=("$java")
  else
    if [ -n "${JAVA_HOME:-}" ]; then candidates+=("$JAVA_HOME/bin/java"); fi
    if candidate=$(command -v java); then candidates+=("$candidate"); fi
    candidates+=(/usr/lib/jvm/*17*/bin/java /usr/lib/jvm/*11*/bin/java /Library/Java/JavaVirtualMachines/*17*/Contents/Home/bin/java)
  fi
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null || continue
    found=$(java_version "$candidate")
    case $found in
      17 | 17.* | 11 | 11.*)
        java=$candidate java_found=$found
        return
        ;;
    esac
    seen+="${seen:+, }$candidate is Java ${found:-of an unknown version}"
  done
  die "Cassandra $version runs on Java 17 or 11 only${seen:+; $seen}. Install one (Debian 12, Ubuntu: apt-get install" \
    "openjdk-17-jdk-headless) or name it: --java PROGRAM, CASSANDRA_JAVA or JAVA_HOME"
}

# ---- What ends with this script, however it ends

jvm='' jvm_ready='' draft='' node='' maven=''

hurry() { [ -z "$jvm" ] || kill -KILL "$jvm" 2>/dev/null || true; }

finish() {
  local status=$? waited=0
  trap '' HUP PIPE
  trap hurry INT TERM
  set +e
  if [ -n "$maven" ]; then kill -TERM "$maven" 2>/dev/null; fi
  if [ -n "$jvm" ] && running "$jvm"; then
    if [ -n "$throwaway" ]; then
      kill -KILL "$jvm"
    else
      say "stopping …"
      kill -TERM "$jvm"
      kill -CONT "$jvm" # one that is frozen could not hear it
      while running "$jvm" && ((waited < stop_limit_s * 10)); do
        sleep 0.1
        waited=$((waited + 1))
      done
      if running "$jvm"; then
        say "it did not stop within $stop_limit_s s: killed"
        kill -KILL "$jvm"
      fi
    fi
    wait "$jvm" 2>/dev/null # until its last thread, and with it its ports, are gone
    if [ -n "$throwaway" ]; then rm -rf "$node"; fi
  fi
  if [ -n "$throwaway_root" ]; then rm -rf "$throwaway_root"; fi
  if [ -n "$jvm" ]; then rm -f "$node/pid" "$node/ready"; fi
  if [ -n "$draft" ]; then rm -rf "$draft"; fi
  exit "$status"
}
throwaway_root=
trap finish EXIT
# A node that ran and was told to stop has done its work.
trap 'if [ -n "$jvm_ready" ]; then exit 0; else exit 130; fi' INT TERM HUP

# Waits a moment, and ends the script when whoever started it is gone.
pause() { # SECONDS
  local status=0
  if [ -z "$until_eof" ]; then
    sleep "$1"
    return
  fi
  # Larger than 128: nothing came in time. What does come means nothing.
  IFS= read -r -t "$1" -n 1 -u 3 _ || status=$?
  if [ "$status" -ne 0 ] && [ "$status" -le 128 ]; then exit 0; fi
}
if [ -n "$until_eof" ]; then
  ((BASH_VERSINFO[0] >= 4)) || die "--until-eof needs bash 4 or newer"
  exec 3<&0
fi

# ---- What is fetched

# Fills $home/lib. Two that do it at once would share Maven's own folder, which Maven does not bear.
prepare() {
  if [ -d "$home/lib" ]; then return; fi
  command -v mvn >/dev/null || die "Maven is missing, and Cassandra $version has not been fetched yet: apt-get install maven" \
    "(macOS: brew install maven), then try again"
  mkdir -p .tools/cassandra
  if command -v flock >/dev/null; then
    exec 9>.tools/cassandra/lock
    until flock --nonblock 9; do pause 0.2; done
    if [ -d "$home/lib" ]; then
      exec 9>&-
      return
    fi
  fi
  draft=$(mktemp -d "$PWD/.tools/cassandra/draft.XXXXXX")
  cat >"$draft/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>weir.tools</groupId>
  <artifactId>cassandra</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.cassandra</groupId>
      <artifactId>cassandra-all</artifactId>
      <version>$version</version>
    </dependency>
  </dependencies>
</project>
POM
  say "fetching $version with Maven (once, about 80 MiB) …"
  mvn --batch-mode --no-transfer-progress --strict-checksums --file "$draft/pom.xml" "$plugin:copy-dependencies" \
    -DincludeScope=runtime "-DoutputDirectory=$draft/lib" </dev/null >"$draft/mvn.log" 2>&1 3<&- &
  maven=$!
  while running "$maven"; do pause 0.2; done
  if ! wait "$maven"; then
    maven=
    grep -E '^\[(ERROR|WARNING)\]' "$draft/mvn.log" | head -n 15 >&2 || cat "$draft/mvn.log" >&2
    die "Maven could not fetch org.apache.cassandra:cassandra-all:$version"
  fi
  maven=
  mkdir -p "$home"
  mv "$draft/lib" "$home/lib"
  rm -rf "$draft"
  draft=
  if command -v flock >/dev/null; then exec 9>&-; fi
}

# Sets class_path: in a fixed order, and jars only, or a class archive would not fit.
find_jars() {
  local jar
  class_path=
  for jar in "$home"/lib/*.jar; do class_path+="${class_path:+:}$jar"; done
}

# The packages that Cassandra reaches into.
opens=(-Djdk.attach.allowAttachSelf=true -Dio.netty.tryReflectionSetAccessible=true)
for package in java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch java.base/java.lang.ref \
  java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server java.sql/java.sql \
  jdk.unsupported/sun.misc; do
  opens+=(--add-exports "$package=ALL-UNNAMED")
done
for package in java.io java.lang java.lang.module java.lang.reflect java.nio java.util java.util.concurrent \
  java.util.concurrent.atomic jdk.internal.loader jdk.internal.math jdk.internal.module jdk.internal.ref jdk.internal.reflect \
  jdk.internal.util.jar sun.nio.ch; do
  opens+=(--add-opens "java.base/$package=ALL-UNNAMED")
done
opens+=(--add-opens jdk.management/com.sun.management.internal=ALL-UNNAMED)

case $command in
  java)
    find_java
    command -v "$java"
    exit 0
    ;;
  prepare)
    find_java
    prepare
    exit 0
    ;;
  nodetool)
    find_java
    prepare
    find_jars
    echo '<configuration/>' >"$home/quiet.xml"
    # Its history file goes beside the jars, not into the home folder.
    exec "$java" -Xmx64M -XX:TieredStopAtLevel=1 "${opens[@]}" "-Duser.home=$home" "-Dlogback.configurationFile=$(url "$home/quiet.xml")" \
      -cp "$class_path" org.apache.cassandra.tools.NodeTool -h 127.0.0.1 -p "${JMX_PORT:-7199}" "$@"
    ;;
esac

# ---- The node

host=127.0.0.$ordinal
find_java
prepare
find_jars

if [ -z "$data" ]; then
  if [ -n "$throwaway" ]; then
    data=$(mktemp -d "${TMPDIR:-/tmp}/weir-cassandra.XXXXXX")
    throwaway_root=$data
  else
    mkdir -p data/cassandra
    data=$PWD/data/cassandra
  fi
fi
node=$data/node$ordinal
mkdir -p "$node"
if command -v flock >/dev/null; then
  # Held by the JVM too: it ends with the last process that could write there.
  exec 8>"$node/lock"
  flock --nonblock 8 || die "$node is in use by another Cassandra$([ ! -f "$node/pid" ] || echo " (process $(cat "$node/pid"))")"
fi
if [ -n "$wipe" ]; then
  rm -rf "$node"/{data,commitlog,hints,saved_caches,cdc_raw,logs,conf} "$node"/*.log
fi
rm -f "$node/ready"
mkdir -p "$node/conf"

someone_listens() { (exec 4<>"/dev/tcp/$1/$2") 2>/dev/null; }
for place in "$host $port --port" "$host $storage_port --storage-port" "127.0.0.1 $jmx_port --jmx-port"; do
  read -r address number option <<<"$place"
  if [ "$number" -ne 0 ] && someone_listens "$address" "$number"; then
    die "port $number on $address is taken by something that runs already; choose another with $option"
  fi
done

if [ -z "$seeds" ]; then
  for ((i = 1; i <= nodes; i++)); do seeds+="${seeds:+,}127.0.0.$i:$storage_port"; done
fi
# Equal parts of the ring: 2^64 tokens from -2^63.
token=0
if [ "$nodes" -gt 1 ]; then token=$((-9223372036854775807 + (ordinal - 1) * (9223372036854775807 / nodes * 2))); fi
case $sync in
  # concurrent_writes: every writer waits for the sync, so that many may share one.
  group) sync_keys=$'commitlog_sync: group\ncommitlog_sync_group_window: 10ms\nconcurrent_writes: 128' ;;
  batch) sync_keys='commitlog_sync: batch' ;;
  periodic) sync_keys=$'commitlog_sync: periodic\ncommitlog_sync_period: 10s' ;;
esac
{
  cat <<YAML
# Written by scripts/cassandra.sh at each start.
cluster_name: weir
num_tokens: 1
initial_token: $token
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "$seeds"}]
listen_address: $host
storage_port: $storage_port
rpc_address: $host
native_transport_port: $port
$sync_keys
storage_compatibility_mode: NONE
sstable: {selected_format: bti}
memtable:
  configurations:
    trie: {class_name: TrieMemtable}
    default: {inherits: trie}
memtable_allocation_type: offheap_objects
# A dropped or truncated table leaves nothing behind.
auto_snapshot: false
YAML
  if [ -n "$auth" ]; then printf 'authenticator: PasswordAuthenticator\nauthorizer: CassandraAuthorizer\n'; fi
  if [ -n "$yaml" ]; then cat "$yaml"; fi
} >"$node/conf/cassandra.yaml"
cat >"$node/conf/logback.xml" <<XML
<configuration>
  <appender name="file" class="ch.qos.logback.core.rolling.RollingFileAppender">
    <file>\${cassandra.storagedir}/system.log</file>
    <rollingPolicy class="ch.qos.logback.core.rolling.FixedWindowRollingPolicy">
      <fileNamePattern>\${cassandra.storagedir}/system.%i.log</fileNamePattern>
      <minIndex>1</minIndex>
      <maxIndex>2</maxIndex>
    </rollingPolicy>
    <triggeringPolicy class="ch.qos.logback.core.rolling.SizeBasedTriggeringPolicy"><maxFileSize>20MB</maxFileSize></triggeringPolicy>
    <encoder><pattern>%-5level %d{HH:mm:ss.SSS} [%thread] %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="file" /></root>
</configuration>
XML

flags=(
  "-Xms$heap" "-Xmx$heap" -XX:+ExitOnOutOfMemoryError -XX:+PerfDisableSharedMem "-XX:ErrorFile=$node/hs_err.log" -Xss512k
  "${opens[@]}"
  "-Dcassandra.config=$(url "$node/conf/cassandra.yaml")" "-Dcassandra.storagedir=$node"
  "-Dlogback.configurationFile=$(url "$node/conf/logback.xml")" "-Djava.io.tmpdir=$node/tmp"
  -Dcassandra-foreground=yes -Djava.net.preferIPv4Stack=true
  -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.shutdown_announce_in_ms=0
)
mkdir -p "$node/tmp"
if [ "$nodes" -eq 1 ]; then
  flags+=(-Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=0)
else
  flags+=(-Dcassandra.gossip_settle_min_wait_ms=500 -Dcassandra.gossip_settle_interval_ms=250 -Dcassandra.ring_delay_ms=5000)
fi
if [ -n "$light" ]; then flags+=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1); fi
if [ "$jmx_port" -ne 0 ]; then flags+=("-Dcassandra.jmx.local.port=$jmx_port"); fi

# An archive of loaded classes makes the next starts some seconds shorter. It fits one Java and one class path.
java_program=$(readlink -f "$(command -v "$java")")
archive=$home/classes-$(printf '%s\n' "$java_program" "$java_found" "$class_path" | cksum | cut -d ' ' -f 1).jsa
jcmd=$(dirname "$java_program")/jcmd
record=
if [ -f "$archive" ]; then
  flags+=("-XX:SharedArchiveFile=$archive" -Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off)
elif [[ $java_found == 17* ]] && [ -x "$jcmd" ] && [ "$ordinal" -eq 1 ]; then
  record=1
  flags+=(-XX:+RecordDynamicDumpInfo)
fi

# Where the system can do it, the node dies with this script even when that is killed.
launch=()
if setpriv --pdeathsig KILL true 2>/dev/null; then launch=(setpriv --pdeathsig KILL); fi

millis() { local now=${EPOCHREALTIME:-$SECONDS.000000}; now=${now/,/.}; printf '%s' "$((${now%.*} * 1000 + 10#${now#*.} / 1000))"; }
began=$(millis)
log_size=$(wc -c 2>/dev/null <"$node/system.log" || echo 0)
say "starting $version on $host:$port (Java $java_found, heap $heap, commit log $sync); its log is $node/system.log"
(
  cd "$node"
  exec ${launch[@]+"${launch[@]}"} "$java" "${flags[@]}" ${more_jvm[@]+"${more_jvm[@]}"} -cp "$class_path" \
    org.apache.cassandra.service.CassandraDaemon
) </dev/null >"$node/jvm.log" 2>&1 3<&- &
jvm=$!
echo "$jvm" >"$node/pid"

log_tail() {
  {
    printf -- '---- end of %s\n' "$node/jvm.log"
    tail -n 15 "$node/jvm.log"
    printf -- '---- end of %s\n' "$node/system.log"
    # Only what this start wrote.
    tail -c "+$((log_size + 1))" "$node/system.log" | tail -n 40
  } >&2 2>/dev/null || true
}
gave_up() { # WHY
  log_tail
  die "$1"
}

# An OPTIONS request (protocol version 4) is answered by SUPPORTED.
cql_answers() (
  LC_ALL=C
  exec 4<>"/dev/tcp/$host/$port" || exit 1
  printf '\x04\x00\x00\x00\x05\x00\x00\x00\x00' >&4
  for expected in $'\x84' '' '' '' $'\x06'; do
    IFS= read -r -d '' -n 1 -t 5 -u 4 byte || exit 1
    [ "$byte" = "$expected" ] || exit 1
  done
)
deadline=$((SECONDS + start_limit_s))
until cql_answers 2>/dev/null; do
  running "$jvm" || gave_up "the node ended before it answered"
  ((SECONDS < deadline)) || gave_up "the node did not answer within $start_limit_s s"
  pause 0.1
done
answered=$(($(millis) - began))

if [ -n "$record" ]; then
  say "keeping its classes for quicker starts …"
  draft=$(mktemp -d "$PWD/.tools/cassandra/draft.XXXXXX")
  "$jcmd" "$jvm" VM.cds dynamic_dump "$draft/classes.jsa" </dev/null >"$draft/jcmd.log" 2>&1 3<&- &
  dump=$!
  while running "$dump"; do pause 0.1; done
  if wait "$dump" && [ -s "$draft/classes.jsa" ]; then
    mv "$draft/classes.jsa" "$archive"
  else
    say "that failed, so the next start is no quicker: $(tail -n 1 "$draft/jcmd.log")"
  fi
  rm -rf "$draft"
  draft=
fi

: >"$node/ready"
jvm_ready=1
printf 'cassandra: ready on %s:%s after %d.%d s; everything it keeps is in %s\n' "$host" "$port" \
  $((answered / 1000)) $((answered % 1000 / 100)) "$node"
if [ -z "$until_eof" ] && [ "$nodes" -eq 1 ]; then
  say "point Weir at it:  make up ARGS=\"--config deploy/weir-cassandra.toml\"   (or: weir up --config deploy/weir-cassandra.toml)"
  if [ "$port" -ne 9042 ]; then say "with              --set archive.nodes=$host:$port"; fi
  say "Ctrl-C stops it"
fi

if [ -n "$until_eof" ]; then
  while running "$jvm"; do pause 0.25; done
fi
status=0
wait "$jvm" || status=$?
gave_up "the node ended by itself (status $status)"
