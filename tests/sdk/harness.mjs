// Knows: how a test starts the real binary on free ports and a temporary folder, looks into its NATS, breaks it, and cleans up.
// Never: what a client should see; waits by sleeping and hoping.
//
// WEIR_BIN names the binary (default: target/debug/weir). The nats-server is found as Weir itself finds it. With
// WEIR_TEST_ARCHIVE=cassandra each Weir keeps its rooms in a keyspace of its own on the node at WEIR_TEST_CASSANDRA (host:port).

import { connect } from "@nats-io/transport-node";
import { spawn, spawnSync } from "node:child_process";
import { appendFileSync, closeSync, mkdtempSync, openSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const WEIR_BIN = process.env.WEIR_BIN || join(ROOT, "target/debug/weir");
const START_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 30_000;
const POLL_MS = 20;
const CQL_PATH = fileURLToPath(new URL("cql.mjs", import.meta.url));
const ARCHIVE = process.env.WEIR_TEST_ARCHIVE || "sqlite";
const CASSANDRA = process.env.WEIR_TEST_CASSANDRA || "";
/** A test's node of Cassandra is slow to make a keyspace, and to write on a machine that does other things. */
const ARCHIVE_TIMEOUT_MS = ARCHIVE === "cassandra" ? 240_000 : 60_000;
const LOG_TAIL_BYTES = 6_000;
const PUBLISH_CHUNK_MESSAGES = 50;

/** Pictures of the page, for people. */
export const RESULTS_DIR = join(ROOT, "test-results");

/** For tests whose outcome cannot depend on the archive: they run beside SQLite only. */
export const ANY_ARCHIVE = { skip: ARCHIVE !== "sqlite" && "the archive has no part in it" };

/** A measured value, for who reads the run; also a line of the file WEIR_TEST_FIGURES, if it names one. */
export function figure(text) {
  console.log(`# ${text}`);
  const file = process.env.WEIR_TEST_FIGURES;
  if (file) appendFileSync(file, `sdk${ARCHIVE === "sqlite" ? "" : `-${ARCHIVE}`}: ${text}\n`);
}

/** Milliseconds since `start`, a `performance.now()`, for people. */
export const sinceMs = (start) => `${Math.round(performance.now() - start)} ms`;

/** The value below which the share `share` of `list` lies. */
export function quantile(list, share) {
  const sorted = Float64Array.from(list).sort();
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** Waiting longer changes nothing. */
class Hopeless extends Error {}

/** Resolves with the first truthy value of `look`; a deadline that passes is an error that says what was waited for. */
export async function until(what, look, timeoutMs = 20_000) {
  const deadline = Date.now() + timeoutMs;
  let problem = "";
  for (;;) {
    try {
      const value = await look();
      if (value) return value;
      problem = "";
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      problem = ` (${error.message})`;
    }
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}${problem}`);
    await new Promise((wake) => setTimeout(wake, POLL_MS));
  }
}

// Below the range of outgoing connections: the port of a server that is down for a moment must not be taken by a client of its own.
const freePort = () => new Promise((found, failed) => {
  const port = 10_000 + Math.floor(Math.random() * 22_000);
  const server = createServer();
  server.once("error", (error) => error.code === "EADDRINUSE" ? found(freePort()) : failed(error));
  server.listen(port, "127.0.0.1", () => server.close(() => found(port)));
});

// What must not outlive this process, however it ends: `stop` of each is synchronous and harmless when repeated.
const running = new Set();
process.on("exit", () => { for (const weir of running) weir.killNow(); });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1));

const RIGHTS = ["subscribe_for_client", "subscribe_for_anonymous", "publish_for_subscriber", "publish_for_client", "publish_for_anonymous",
  "history_for_subscriber", "history_for_client", "history_for_anonymous"];

let keyspaces = 0;

/** One `weir up` with its own ports, folder, nats-server and archive. */
export class Weir {
  #child = null;
  #dir = mkdtempSync(join(tmpdir(), "weir-sdk-"));
  #ports = null;
  #config = "";
  /** Of this Weir alone; empty with SQLite. */
  #keyspace = "";

  /**
   * Started and ready. `t` is the test: everything is gone when it ends, and a failed one shows the log. `origins` are allowed beside Weir's
   * own, `client` is more of the section [client].
   */
  static async start(t, { origins = [], client = "" } = {}) {
    const weir = new Weir();
    running.add(weir);
    t.after(() => weir.remove(t));
    const [http, internal, nats, mqtt] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
    weir.#ports = { http, internal, nats, mqtt };
    weir.#config = join(weir.#dir, "weir.toml");
    if (ARCHIVE === "cassandra") weir.#keyspace = `t${Date.now()}_${process.pid}_${keyspaces++}`;
    writeFileSync(weir.#config, `
[http_server]
port = ${http}
internal_port = ${internal}
[nats_server]
port = ${nats}
mqtt_port = ${mqtt}
[client]
allow_anonymous_connect_without_token = true
# Writers publish as fast as they are answered, and a refusal in the middle of a chunk would change the order that the tests know.
command_rate_limit = 0
allowed_origins = ${JSON.stringify(origins)}
${client}
[[channel.namespaces]]
name = "chat"
history_size = -1
force_recovery = true
${RIGHTS.map((right) => `allow_${right} = true`).join("\n")}
${weir.#keyspace && `[archive]
kind = "cassandra"
nodes = ["${CASSANDRA}"]
keyspace = "${weir.#keyspace}"
replication_factor = 1
`}`);
    await weir.up();
    return weir;
  }

  get pageUrl() { return `http://127.0.0.1:${this.#ports.http}/`; }
  get socketUrl() { return `ws://127.0.0.1:${this.#ports.http}/connection/websocket`; }
  get mqttUrl() { return `mqtt://127.0.0.1:${this.#ports.mqtt}`; }
  get internalUrl() { return `http://127.0.0.1:${this.#ports.internal}`; }
  get data() { return join(this.#dir, "data"); }
  get #log() { return join(this.#dir, "weir.log"); }

  /** Starts it (again) and waits until it says that it is ready. */
  async up() {
    const log = openSync(this.#log, "a");
    // Of the variables that Weir reads, none of the caller's shell: its settings are this file's.
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("WEIR_") || name === "WEIR_NATS_SERVER"));
    const child = spawn(WEIR_BIN, ["up", "--config", this.#config, "--data", this.data], { cwd: ROOT, env, stdio: ["ignore", log, log] });
    closeSync(log);
    this.#child = child;
    let failure = null;
    child.once("error", (error) => { failure = error; });
    await until("weir is ready", async () => {
      if (failure) throw new Hopeless(`${WEIR_BIN}: ${failure.message}`);
      if (child.exitCode !== null || child.signalCode !== null) throw new Hopeless(`weir ended with ${child.exitCode ?? child.signalCode}`);
      return (await fetch(`${this.internalUrl}/ready`)).ok;
    }, START_TIMEOUT_MS).catch((error) => { throw new Error(`${error.message}\n${this.logTail()}`); });
  }

  /** Ends it as Ctrl-C does, its nats-server too. */
  async down() {
    const child = this.#child;
    if (!child) return;
    this.#child = null;
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    child.kill("SIGCONT");
    try {
      await until("weir has ended", () => child.exitCode !== null || child.signalCode !== null, STOP_TIMEOUT_MS);
    } catch (error) {
      child.kill("SIGKILL");
      throw new Error(`${error.message}\n${this.logTail()}`);
    }
  }

  /** It answers nobody until it is thawed, and every socket stays open. */
  freeze() { this.#child.kill("SIGSTOP"); }
  thaw() { this.#child.kill("SIGCONT"); }

  async restart() { await this.down(); await this.up(); }

  /** A restart that finds JetStream's store gone; the archive stays. */
  async restartWithoutLog() {
    await this.down();
    rmSync(join(this.data, "nats-server", "store"), { recursive: true });
    await this.up();
  }

  /** All that it logged so far. */
  log() { return readFileSync(this.#log, "utf8"); }

  logTail() {
    try {
      const text = readFileSync(this.#log);
      return text.subarray(Math.max(0, text.length - LOG_TAIL_BYTES)).toString();
    } catch { return "(no log)"; }
  }

  killNow() {
    this.#child?.kill("SIGKILL");
    // Its nats-server is a process group of its own. The pid file may be old, so the process must run on our folder.
    try {
      const pid = Number(readFileSync(join(this.data, "nats-server", "nats-server.pid"), "utf8"));
      if (pid > 1 && readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(this.data)) process.kill(pid, "SIGKILL");
    } catch { /* no pid file or no such process: nothing is left */ }
    rmSync(this.#dir, { recursive: true, force: true, maxRetries: 5 });
    if (this.#keyspace) {
      // Synchronous, so that a process that ends does it too.
      const dropped = spawnSync(process.execPath, [CQL_PATH, CASSANDRA, `DROP KEYSPACE IF EXISTS ${this.#keyspace}`], { encoding: "utf8" });
      this.#keyspace = "";
      if (dropped.status !== 0) console.error(`a keyspace is left behind: ${dropped.stderr}`);
    }
  }

  async remove(t) {
    if (t.passed === false || process.env.WEIR_TEST_LOG) console.error(`--- weir log of "${t.name}"\n${this.logTail()}`);
    try { await this.down(); } finally { this.killNow(); running.delete(this); }
  }

  /** A NATS connection of a user, closed when the test ends. Weir's own users have their passwords in the data folder. */
  async nats(t, user) {
    const passwords = JSON.parse(readFileSync(join(this.data, "nats-server", "passwords.json"), "utf8"));
    const demo = ["ops", "bot", "dev1", "backend"].includes(user);
    const nats = await connect({ servers: `127.0.0.1:${this.#ports.nats}`, user, pass: demo ? user : passwords[user],
      inboxPrefix: `_INBOX.${user}`, reconnect: false });
    t.after(() => nats.close());
    return nats;
  }

  /** Asks JetStream's API as Weir's own user, over a connection of its own. */
  async jetstream(subject, request = {}) {
    let closing = null;
    const nats = await this.nats({ after: (close) => { closing = close; } }, "weir");
    try {
      const answer = await nats.request(`$JS.API.${subject}`, JSON.stringify(request), { timeout: 5_000 });
      const body = answer.json();
      if (body.error) throw new Error(`${subject}: ${body.error.description}`);
      return body;
    } finally { await closing(); }
  }

  /** Its resident memory, in bytes. */
  memoryBytes() {
    const [, kib] = readFileSync(`/proc/${this.#child.pid}/status`, "utf8").match(/^VmRSS:\s+(\d+) kB$/m);
    return Number(kib) * 1024;
  }

  /** The value of a metric of this process. */
  async metric(name) {
    const text = await (await fetch(`${this.internalUrl}/metrics`)).text();
    const line = text.split("\n").find((candidate) => candidate.startsWith(`${name} `));
    if (!line) throw new Error(`there is no metric ${name}`);
    return Number(line.slice(name.length + 1));
  }

  /**
   * The archive has everything that the stream holds. Rows are counted and the worker's lag alone is not believed, as it is what it was at
   * the last look. Since rows count from the start of the process: only before a restart, or when nothing was archived before it.
   */
  archived(stream = "ROOMS_0") {
    return until("the archive has everything", async () => {
      const { state } = await this.jetstream(`STREAM.INFO.${stream}`);
      return await this.metric("weir_archive_rows") >= state.messages && await this.metric("weir_archive_lag_messages") === 0;
    }, ARCHIVE_TIMEOUT_MS);
  }

  /** Cuts the stream to its newest messages. */
  async trim(messages, stream = "ROOMS_0") {
    const { config } = await this.jetstream(`STREAM.INFO.${stream}`);
    await this.jetstream(`STREAM.UPDATE.${stream}`, { ...config, max_msgs: messages });
    return until("the stream is trimmed", async () => {
      const { state } = await this.jetstream(`STREAM.INFO.${stream}`);
      return state.messages <= messages && state;
    });
  }
}

/** Publishes `count` numbered messages, awaiting each chunk, and returns their payloads in order. */
export async function publishMany(client, channel, count, label = "n") {
  const payloads = Array.from({ length: count }, (_, index) => ({ text: `${label} ${index}`, index }));
  for (let start = 0; start < count; start += PUBLISH_CHUNK_MESSAGES) {
    await Promise.all(payloads.slice(start, start + PUBLISH_CHUNK_MESSAGES).map((payload) => client.publish(channel, payload)));
  }
  return payloads;
}

/** A clear message beats forty time-outs. */
function requireSurroundings() {
  try { statSync(WEIR_BIN); } catch {
    throw new Error(`there is no weir at ${WEIR_BIN}: build it, or set WEIR_BIN`);
  }
  if (!["sqlite", "cassandra"].includes(ARCHIVE)) throw new Error(`WEIR_TEST_ARCHIVE=${ARCHIVE}: sqlite or cassandra`);
  if (ARCHIVE === "cassandra" && !CASSANDRA) throw new Error("WEIR_TEST_CASSANDRA=host:port must name a node that runs (make cassandra)");
}
requireSurroundings();
