// Promise: the centrifuge SDK, unchanged, recovers from very far behind: everything, once, in order, in bounded memory, while others chat.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { Weir, until } from "./harness.mjs";

const BEHIND_MESSAGES = process.env.WEIR_TEST_LONG === "1" ? 300_000 : 20_000;
const FAR = "chat:far";
const LIVE = "chat:live";
const CHATTERS = 100;
const CHUNK_MESSAGES = 500;
/** What the process of all clients may take more; all messages together take several times as much. */
const MEMORY_MAX_BYTES = 96 << 20;

function client(t, url) {
  const made = new Centrifuge(url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500, timeout: 10_000 });
  t.after(() => made.disconnect());
  made.connect();
  return made;
}

/** Joins a room and hands every publication to `take`. */
async function join(made, channel, take, options = {}) {
  const subscription = made.newSubscription(channel, options);
  const joins = [];
  subscription.on("publication", take);
  subscription.on("subscribed", (context) => joins.push(context));
  subscription.subscribe();
  await subscription.ready(60_000);
  return joins;
}

test(`Node: ${BEHIND_MESSAGES} messages behind, while ${CHATTERS} others chat`, { timeout: 900_000 }, async (t) => {
  const weir = await Weir.start(t);
  const writer = client(t, weir.socketUrl);
  await writer.ready(30_000);
  const fill = "f".repeat(300);
  for (let start = 0; start < BEHIND_MESSAGES; start += CHUNK_MESSAGES) {
    const indexes = Array.from({ length: Math.min(CHUNK_MESSAGES, BEHIND_MESSAGES - start) }, (_, nth) => start + nth);
    await Promise.all(indexes.map((index) => writer.publish(FAR, { index, fill })));
  }
  await weir.archived();
  await weir.trim(1_000);

  const heard = Array.from({ length: CHATTERS }, () => []);
  await Promise.all(heard.map((list) => join(client(t, weir.socketUrl), LIVE, ({ data }) => list.push(data))));
  let said = 0;
  const chat = setInterval(() => { writer.publish(LIVE, said++).catch(() => { /* the count at the end shows it */ }); }, 50);
  t.after(() => clearInterval(chat));

  const before = process.memoryUsage().rss;
  let next = 0, most = before, wrong = null;
  const joins = await join(client(t, weir.socketUrl), FAR, ({ data }) => {
    if (data.index !== next) wrong ??= `${data.index} where ${next} was due`;
    next += 1;
    if (next % 1_000 === 0) most = Math.max(most, process.memoryUsage().rss);
  }, { since: { offset: 0, epoch: "" }, recoverable: true, positioned: true });
  await until("everything came", () => wrong || next >= BEHIND_MESSAGES, 600_000);
  assert.equal(wrong, null);
  assert.equal(joins[0].wasRecovering, true);
  assert.equal(joins[0].recovered, true);
  await writer.publish(FAR, { index: BEHIND_MESSAGES });
  await until("the live one came", () => next === BEHIND_MESSAGES + 1);
  assert.equal(wrong, null);
  assert.equal(joins.length, 1, "the SDK joined again while it caught up");
  console.log(`# ${BEHIND_MESSAGES} behind: ${Math.round((most - before) / 1024)} KiB more memory in the process of all clients`);
  assert.ok(most - before <= MEMORY_MAX_BYTES, `${most - before} bytes more`);

  clearInterval(chat);
  await until("everybody heard everything", () => heard.every((list) => list.length === said));
  const all = Array.from({ length: said }, (_, index) => index);
  for (const list of heard) assert.deepEqual(list, all);
});
