// Promise: the centrifuge SDK, unchanged, with tokens that end: it fetches new ones by itself and notices nothing, for connections and for
// subscriptions; and it stops where the token is wrong, as going on would help nobody.

import assert from "node:assert/strict";
import { createHmac, generateKeyPairSync, sign as signWith } from "node:crypto";
import { createServer } from "node:http";
import { test } from "node:test";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { Weir, until } from "./harness.mjs";

const SECRET = "the secret of the SDK's tests, 32 bytes or more";
/** Seconds that a token of these tests is good for. The least that the SDK's timers and a busy machine leave room for. */
const BRIEF_S = 3;
const PRIVATE_ROOM = "$chat:private";

const part = (object) => Buffer.from(JSON.stringify(object)).toString("base64url");
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

/** A token by the secret. `ttl` may be negative. */
function token(claims, ttl = BRIEF_S) {
  const message = `${part({ alg: "HS256", typ: "JWT" })}.${part({ exp: inSeconds(ttl), ...claims })}`;
  return `${message}.${createHmac("sha256", SECRET).update(message).digest("base64url")}`;
}

const started = (t, client = "") => Weir.start(t, {
  client: `expired_close_delay = "2s"\nexpired_sub_close_delay = "2s"\n${client}\n[client.token]\nhmac_secret_key = "${SECRET}"`,
});

/** A client whose states are kept; it goes when the test ends. */
function clientOf(t, weir, options) {
  const client = new Centrifuge(weir.socketUrl, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500, ...options });
  const seen = { connected: 0, connecting: [], disconnected: [], errors: [] };
  client.on("connected", () => { seen.connected += 1; });
  client.on("connecting", ({ code }) => seen.connecting.push(code));
  client.on("disconnected", ({ code, reason }) => seen.disconnected.push({ code, reason }));
  client.on("error", ({ error }) => seen.errors.push(error.code));
  t.after(() => client.disconnect());
  return { client, seen };
}

/** A getToken that counts, and keeps what it gave. */
function source(make) {
  const given = [];
  return { given, get: async (context) => { given.push(make(context)); return given.at(-1); } };
}

test("a connection is refreshed again and again, and notices nothing", async (t) => {
  const weir = await started(t);
  const tokens = source(() => token({ sub: "ann" }));
  const { client, seen } = clientOf(t, weir, { getToken: tokens.get });
  client.connect();
  await client.ready(20_000);
  await until("three tokens were fetched", () => tokens.given.length >= 3, 30_000);
  await client.publish("chat:lobby", { still: "here" });
  assert.equal(seen.connected, 1);
  assert.deepEqual([seen.disconnected, seen.errors], [[], []]);
  assert.deepEqual(seen.connecting, [0], "connecting once, as it was called");
  const log = weir.log();
  for (const given of tokens.given) assert.ok(given.split(".").every((piece) => !log.includes(piece)), "a token is in the log");
  assert.ok(!log.includes(SECRET));
});

test("a token that has ended is replaced before anything else happens", async (t) => {
  const weir = await started(t);
  const tokens = source(() => token({ sub: "ann" }, 600));
  const { client, seen } = clientOf(t, weir, { token: token({ sub: "ann" }, -60), getToken: tokens.get });
  client.connect();
  await client.ready(20_000);
  assert.equal(tokens.given.length, 1);
  assert.deepEqual(seen.disconnected, []);
});

test("who cannot get a token in time is sent away with 3005, and comes back once it has one", async (t) => {
  const weir = await started(t);
  const release = [];
  let calls = 0;
  const getToken = () => {
    calls += 1;
    // The first refresh hangs; later ones do not.
    return calls === 1 ? new Promise((resolve) => release.push(resolve)) : Promise.resolve(token({ sub: "ann" }, 600));
  };
  const { client, seen } = clientOf(t, weir, { token: token({ sub: "ann" }), getToken });
  client.connect();
  await client.ready(20_000);
  await until("it was sent away", () => seen.connecting.includes(3005), 30_000);
  release.forEach((resolve) => resolve(token({ sub: "ann" }, 600)));
  await until("it is back", () => seen.connected >= 2, 30_000);
  await client.ready(20_000);
  assert.deepEqual(seen.disconnected, []);
});

test("a refresh as somebody else is the end", async (t) => {
  const weir = await started(t);
  const { client, seen } = clientOf(t, weir, { token: token({ sub: "ann" }), getToken: async () => token({ sub: "bob" }, 600) });
  client.connect();
  await until("it was disconnected", () => seen.disconnected.length > 0, 30_000);
  assert.equal(seen.disconnected[0].code, 3500);
});

test("a forged token is the end at once", async (t) => {
  const weir = await started(t);
  const forged = `${token({ sub: "ann" }, 600).slice(0, -6)}AAAAAA`;
  const { client, seen } = clientOf(t, weir, { token: forged });
  client.connect();
  await until("it was disconnected", () => seen.disconnected.length > 0, 30_000);
  assert.equal(seen.disconnected[0].code, 3500);
});

test("a private room opens by its token, which is refreshed while messages flow", async (t) => {
  const weir = await started(t);
  const { client, seen } = clientOf(t, weir, { token: token({ sub: "ann" }, 600) });
  client.connect();
  await client.ready(20_000);
  const tokens = source(({ channel }) => token({ sub: "ann", channel, info: { role: "owner" } }));
  const room = client.newSubscription(PRIVATE_ROOM, { getToken: tokens.get });
  const states = [], texts = [], infos = [];
  room.on("subscribing", ({ code }) => states.push(code));
  room.on("unsubscribed", ({ code }) => states.push(code));
  room.on("publication", ({ data, info }) => { texts.push(data.n); infos.push(info.chanInfo); });
  room.subscribe();
  await room.ready(20_000);
  let sent = 0;
  await until("three tokens were fetched", async () => {
    await room.publish({ n: sent });
    sent += 1;
    return tokens.given.length >= 3;
  }, 30_000);
  await until("all came", () => texts.length === sent);
  assert.deepEqual(texts, Array.from({ length: sent }, (_, n) => n));
  assert.ok(infos.every((info) => info.role === "owner"), JSON.stringify(infos[0]));
  assert.deepEqual(states, [0], "it was subscribed once");
  assert.deepEqual(seen.disconnected, []);
  const log = weir.log();
  for (const given of tokens.given) assert.ok(!log.includes(given.split(".")[1]), "a token is in the log");
});

test("a subscription whose token ends is ended, and comes back with the next one", async (t) => {
  const weir = await started(t);
  const { client } = clientOf(t, weir, { token: token({ sub: "ann" }, 600) });
  client.connect();
  await client.ready(20_000);
  let calls = 0;
  const getToken = ({ channel }) => {
    calls += 1;
    // The second, a refresh, never comes.
    return calls === 2 ? new Promise(() => {}) : Promise.resolve(token({ sub: "ann", channel }, calls === 1 ? BRIEF_S : 600));
  };
  const room = client.newSubscription(PRIVATE_ROOM, { getToken, minResubscribeDelay: 50, maxResubscribeDelay: 500 });
  const subscribing = [];
  room.on("subscribing", ({ code }) => subscribing.push(code));
  room.subscribe();
  await until("it was ended", () => subscribing.includes(2501), 30_000);
  await room.ready(20_000);
  assert.equal(room.state, "subscribed");
});

test("without its token a private room is closed, and with another room's the connection is", async (t) => {
  const weir = await started(t);
  const { client, seen } = clientOf(t, weir, { token: token({ sub: "ann" }, 600) });
  client.connect();
  await client.ready(20_000);
  const bare = client.newSubscription(PRIVATE_ROOM);
  const ends = [];
  bare.on("unsubscribed", ({ code }) => ends.push(code));
  bare.subscribe();
  await until("it was refused", () => ends.length > 0, 30_000);
  assert.equal(ends[0], 103);
  const other = client.newSubscription("$chat:other", { token: token({ sub: "ann", channel: PRIVATE_ROOM }, 600) });
  other.subscribe();
  await until("it was disconnected", () => seen.disconnected.length > 0, 30_000);
  assert.equal(seen.disconnected[0].code, 3500);
});

test("an issuer's new key is taken with its first token", async (t) => {
  const keys = ["k1", "k2"].map((kid) => ({ kid, ...generateKeyPairSync("ed25519") }));
  let published = [keys[0]];
  const server = createServer((_, response) => response.end(JSON.stringify({
    keys: published.map(({ kid, publicKey }) => ({ ...publicKey.export({ format: "jwk" }), kid, use: "sig", alg: "EdDSA" })),
  })));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  t.after(() => server.close());
  const by = ({ kid, privateKey }) => {
    const message = `${part({ alg: "EdDSA", kid })}.${part({ exp: inSeconds(600), sub: kid, iss: "keys" })}`;
    return `${message}.${signWith(null, Buffer.from(message), privateKey).toString("base64url")}`;
  };
  const weir = await Weir.start(t, {
    client: `[client.token]\njwks_public_endpoint = "http://127.0.0.1:${server.address().port}/keys"\nissuer = "keys"`,
  });
  for (const [nth, key] of keys.entries()) {
    published = keys.slice(0, nth + 1);
    const { client, seen } = clientOf(t, weir, { token: by(key) });
    client.connect();
    await client.ready(20_000);
    assert.deepEqual([seen.connected, seen.errors], [1, []], key.kid);
  }
});
