// Promise: the centrifuge SDK, unchanged, recovers from very far behind: everything, once, in order, in bounded memory, while others chat.

import assert from "node:assert/strict";
import { fork } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { Weir, figure, quantile, until } from "./harness.mjs";

const BEHIND_MESSAGES = process.env.WEIR_TEST_LONG === "1" ? 300_000 : 20_000;
const ALONE_MESSAGES = process.env.WEIR_TEST_LONG === "1" ? 400 : 100;
const FAR = "chat:far";
const LIVE = "chat:live";
const CHATTERS = 100;
const SAY_EVERY_MS = 50;
const CHUNK_MESSAGES = 500;
/** What the process of the client may take more; all messages together take several times as much. */
const CLIENT_MAX_BYTES = 96 << 20;
/** What Weir may take more, its cache of pages included. */
const WEIR_MAX_BYTES = 128 << 20;

async function client(t, url) {
  const made = new Centrifuge(url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500, timeout: 10_000 });
  t.after(() => made.disconnect());
  made.connect();
  await made.ready(30_000);
  return made;
}

/** Joins a room and hands every publication to `take`. */
async function join(made, channel, take) {
  const subscription = made.newSubscription(channel);
  subscription.on("publication", take);
  subscription.subscribe();
  await subscription.ready(60_000);
}

/** The client that is behind, in a process of its own: `state` is what it said last. */
async function reader(t, url) {
  const process_ = fork(fileURLToPath(new URL("far-reader.mjs", import.meta.url)), [url, FAR, String(BEHIND_MESSAGES)]);
  t.after(() => process_.kill("SIGKILL"));
  const late = { state: null, start: () => process_.send("start") };
  process_.on("message", (state) => { late.state = state; });
  await until("the one who is behind is connected", () => {
    if (process_.exitCode !== null) throw new Error(`it ended with ${process_.exitCode}`);
    return late.state;
  }, 60_000);
  return late;
}

test(`Node: ${BEHIND_MESSAGES} messages behind, while ${CHATTERS} others chat`, { timeout: 1_200_000 }, async (t) => {
  const weir = await Weir.start(t);
  const writer = await client(t, weir.socketUrl);
  const fill = "f".repeat(300);
  for (let start = 0; start < BEHIND_MESSAGES; start += CHUNK_MESSAGES) {
    const indexes = Array.from({ length: Math.min(CHUNK_MESSAGES, BEHIND_MESSAGES - start) }, (_, nth) => start + nth);
    await Promise.all(indexes.map((index) => writer.publish(FAR, { index, fill })));
  }
  await weir.archived();
  await weir.trim(1_000);

  // Each message of the chat says when it was sent, and everybody notes how long it took.
  const heard = Array.from({ length: CHATTERS }, () => []);
  const took = { alone: [], beside: [] };
  let phase = "alone";
  await Promise.all(heard.map(async (list) => join(await client(t, weir.socketUrl), LIVE, ({ data }) => {
    list.push(data.index);
    took[data.phase].push(performance.now() - data.at);
  })));
  const late = await reader(t, weir.socketUrl);
  let said = 0;
  const chat = setInterval(() => {
    writer.publish(LIVE, { index: said++, phase, at: performance.now() }).catch(() => { /* the count at the end shows it */ });
  }, SAY_EVERY_MS);
  t.after(() => clearInterval(chat));
  await until("they chatted alone", () => took.alone.length >= ALONE_MESSAGES * CHATTERS, 120_000);

  const before = weir.memoryBytes();
  let most = before;
  phase = "beside";
  late.start();
  await until("everything came", () => {
    most = Math.max(most, weir.memoryBytes());
    return late.state.wrong || late.state.next >= BEHIND_MESSAGES;
  }, 600_000);
  clearInterval(chat);
  assert.equal(late.state.wrong, null);
  assert.deepEqual(late.state.joins, [{ wasRecovering: true, recovered: true }]);
  await writer.publish(FAR, { index: BEHIND_MESSAGES });
  await until("the live one came", () => late.state.next === BEHIND_MESSAGES + 1);
  assert.equal(late.state.wrong, null);
  assert.equal(late.state.joins.length, 1, "the SDK joined again while it caught up");
  await until("everybody heard everything", () => heard.every((list) => list.length === said));
  const all = Array.from({ length: said }, (_, index) => index);
  for (const list of heard) assert.deepEqual(list, all);

  const more = { client: late.state.mostBytes - late.state.beforeBytes, weir: most - before };
  const mib = (bytes) => `${(bytes / (1 << 20)).toFixed(1)} MiB`;
  const latency = (list) => `p50 ${quantile(list, 0.5).toFixed(1)} ms, p99 ${quantile(list, 0.99).toFixed(1)} ms`;
  figure(`a client of the SDK ${BEHIND_MESSAGES} messages behind has all of them, in order, recovered: true, after ` +
    `${(late.state.tookMs / 1000).toFixed(1)} s; memory more: the client ${mib(more.client)}, weir ${mib(more.weir)}`);
  figure(`${CHATTERS} others chat meanwhile, from publish to arrival: alone ${latency(took.alone)}; beside the recovery ${latency(took.beside)}`);
  assert.ok(more.client <= CLIENT_MAX_BYTES, `${more.client} bytes more in the client`);
  assert.ok(more.weir <= WEIR_MAX_BYTES, `${more.weir} bytes more in weir`);
});
