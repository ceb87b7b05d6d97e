// Promise: the centrifuge SDK, unchanged, in Node and in a browser: subscribe, publish, history pages, and a recovery that is complete or
// says that it is not.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { clientInTab, launch, serveSdk } from "./browser.mjs";
import { Client } from "./client.mjs";
import { Weir, figure, publishMany, sinceMs, until } from "./harness.mjs";

const ROOM = "chat:lobby";
const MISSED_MESSAGES = 1_500;

const inNode = (url) => new Client(Centrifuge, url, { websocket: WebSocket });

/** Where the SDK runs: each gives a running Weir and a way to make clients. */
const PLACES = {
  "Node": async (t) => {
    const weir = await Weir.start(t);
    return { weir, make: async () => inNode(weir.socketUrl) };
  },
  "Chromium": async (t) => {
    const origin = await serveSdk(t);
    const weir = await Weir.start(t, { origins: [origin] });
    const browser = await launch(t);
    return { weir, make: () => clientInTab(browser, origin, weir.socketUrl) };
  },
};

async function connected(t, client) {
  t.after(() => client.disconnect().catch(() => { /* its tab or its server is gone already */ }));
  await client.connect();
  return client;
}

const offsets = (publications) => publications.map(({ offset }) => offset);
const indexes = (publications) => publications.map(({ data }) => data.index);
const numbers = (count) => Array.from({ length: count }, (_, index) => index);

function assertIncreasing(list, above = 0) {
  for (const offset of list) {
    assert.ok(offset > above, `offset ${offset} is not above ${above}`);
    above = offset;
  }
}

/** All pages of a room from its end to its beginning, newest first. */
async function pagesBackward(client, limit) {
  const all = [];
  for (let since; ;) {
    const page = await client.history(ROOM, { limit, reverse: true, ...(since && { since }) });
    if (page.publications.length === 0) return all;
    all.push(...page.publications);
    since = { offset: page.publications.at(-1).offset, epoch: page.epoch };
  }
}

async function pagesForward(client, limit) {
  const all = [];
  for (let since = { offset: 0, epoch: "" }; ;) {
    const page = await client.history(ROOM, { limit, since });
    if (page.publications.length === 0) return all;
    all.push(...page.publications);
    since = { offset: page.publications.at(-1).offset, epoch: page.epoch };
  }
}

for (const [place, prepare] of Object.entries(PLACES)) {
  test(`${place}: everyone sees every publication once, in one order, with its author`, async (t) => {
    const { weir, make } = await prepare(t);
    const [reader, writer] = [await connected(t, await make()), await connected(t, inNode(weir.socketUrl))];
    const join = await reader.subscribe(ROOM);
    assert.equal(join.recoverable, true);
    assert.equal(join.wasRecovering, false);
    assert.ok(join.streamPosition.epoch.length > 0 && join.streamPosition.epoch !== "_");
    await writer.subscribe(ROOM);
    // Two writers at once, so that the order is the log's and nobody's own.
    const start = performance.now();
    await Promise.all([publishMany(writer, ROOM, 100, "writer"), publishMany(reader, ROOM, 100, "reader")]);
    await until("both have 200 publications", async () => await reader.count(ROOM) >= 200 && await writer.count(ROOM) >= 200);
    const took = sinceMs(start);
    const seen = await reader.publications(ROOM);
    assert.equal(seen.length, 200);
    assert.deepEqual(await writer.publications(ROOM), seen);
    assertIncreasing(offsets(seen), join.streamPosition.offset);
    for (const label of ["reader", "writer"]) {
      const own = seen.filter(({ data }) => data.text.startsWith(label));
      assert.deepEqual(indexes(own), numbers(100), `the order of the ${label}'s own publications`);
      assert.equal(new Set(own.map(({ info }) => info.client)).size, 1);
    }
    figure(`${place}: 200 publications of two writers at once: all seen once, in one order, with their authors, in ${took}`);
  });

  test(`${place}: history pages, forward and backward, and from a position`, async (t) => {
    const { make } = await prepare(t);
    const client = await connected(t, await make());
    await client.subscribe(ROOM);
    await publishMany(client, ROOM, 120);
    const top = await client.history(ROOM, { limit: 0 });
    assert.deepEqual(top.publications, []);
    const start = performance.now();
    const forward = await pagesForward(client, 25);
    assert.deepEqual(indexes(forward), numbers(120));
    assert.equal(forward.at(-1).offset, top.offset);
    assertIncreasing(offsets(forward));
    const backward = await pagesBackward(client, 25);
    const took = sinceMs(start);
    assert.deepEqual(offsets(backward), offsets(forward).reverse());
    const middle = { offset: forward[59].offset, epoch: top.epoch };
    const after = await client.history(ROOM, { limit: 10, since: middle });
    assert.deepEqual(indexes(after.publications), numbers(120).slice(60, 70));
    const before = await client.history(ROOM, { limit: 10, since: middle, reverse: true });
    assert.deepEqual(indexes(before.publications), numbers(120).slice(49, 59).reverse());
    const foreign = await client.history(ROOM, { limit: 1, since: { ...middle, epoch: "foreign" } });
    assert.equal(foreign.epoch, top.epoch, "a foreign epoch is no error; the answer says the true one");
    figure(`${place}: history of 120 messages in pages of 25, forward and backward, the same: 12 requests in ${took}`);
  });

  for (const trimmed of [false, true]) {
    const which = trimmed ? "missed messages that only the archive still has" : "missed messages";
    test(`${place}: ${MISSED_MESSAGES} ${which} come back in order, recovered: true`, async (t) => {
      const { weir, make } = await prepare(t);
      const reader = await connected(t, await make());
      const writer = await connected(t, inNode(weir.socketUrl));
      await reader.subscribe(ROOM);
      await publishMany(writer, ROOM, 5, "seen");
      await until("the reader has the first", async () => await reader.count(ROOM) === 5);
      await reader.disconnect();
      await publishMany(writer, ROOM, MISSED_MESSAGES, "missed");
      if (trimmed) {
        await weir.archived();
        const state = await weir.trim(10);
        const last = (await reader.publications(ROOM)).at(-1).offset;
        assert.ok(state.first_seq > last + MISSED_MESSAGES / 2, "the stream still has what was missed");
        // The memory of the edge goes too, so that nothing but the archive can answer.
        await weir.restart();
        await until("the writer is back", async () => { await writer.connect(); return true; });
      }
      const start = performance.now();
      await reader.connect();
      await until("all came back", async () => await reader.count(ROOM) >= 5 + MISSED_MESSAGES, 60_000);
      const took = sinceMs(start);
      const join = (await reader.joins(ROOM)).at(-1);
      assert.equal(join.wasRecovering, true);
      assert.equal(join.recovered, true);
      await writer.publish(ROOM, { text: "live again", index: MISSED_MESSAGES });
      await until("the live one", async () => await reader.count(ROOM) >= 6 + MISSED_MESSAGES);
      const all = await reader.publications(ROOM);
      assertIncreasing(offsets(all));
      assert.deepEqual(indexes(all.slice(5)), numbers(MISSED_MESSAGES + 1));
      assert.equal((await reader.joins(ROOM)).length, 2, "the SDK joined again while it caught up");
      figure(`${place}: ${MISSED_MESSAGES} ${which} came back in order, recovered: true, in ${took}`);
    });
  }

  test(`${place}: after the log is wiped: recovered false, a new epoch, higher offsets, and the archive still pages`, async (t) => {
    const { weir, make } = await prepare(t);
    const reader = await connected(t, await make());
    const first = await reader.subscribe(ROOM);
    await publishMany(reader, ROOM, 130, "before");
    await until("all are seen", async () => await reader.count(ROOM) === 130);
    const old = await reader.publications(ROOM);
    await weir.archived();
    await weir.restartWithoutLog();
    const second = await until("the reader has joined again", async () => (await reader.joins(ROOM))[1], 60_000);
    assert.equal(second.wasRecovering, true);
    assert.equal(second.recovered, false);
    assert.notEqual(second.streamPosition.epoch, first.streamPosition.epoch);
    assert.ok(second.streamPosition.offset >= old.at(-1).offset, "the position is not below what was seen");
    await publishMany(reader, ROOM, 5, "after");
    await until("the new ones are seen", async () => await reader.count(ROOM) >= 135);
    const seen = await reader.publications(ROOM, 130);
    assert.deepEqual(seen.map(({ data }) => data.text), numbers(5).map((index) => `after ${index}`), "something else than the new ones came");
    assertIncreasing(offsets(seen), old.at(-1).offset);
    const start = performance.now();
    const pages = (await pagesBackward(reader, 40)).reverse();
    const paged = sinceMs(start);
    assert.deepEqual(offsets(pages), [...offsets(old), ...offsets(seen)]);
    assert.deepEqual(pages.slice(0, 130).map(({ data }) => data), old.map(({ data }) => data));
    figure(`${place}: after the log is wiped: recovered: false, a new epoch, no publications, offsets above all earlier ones; ` +
      `all ${pages.length} messages, old and new, paged in ${paged}`);
  });
}
