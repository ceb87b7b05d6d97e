// Promise: bots on NATS and devices on MQTT talk in the same rooms as browsers, each as itself, and read back what browsers can.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Centrifuge } from "centrifuge";
import mqtt from "mqtt";
import WebSocket from "ws";
import { clientInTab, launch, serveSdk } from "./browser.mjs";
import { Client } from "./client.mjs";
import { ANY_ARCHIVE, Weir, figure, publishMany, sinceMs, until } from "./harness.mjs";

const ROOM = "chat:lobby";
const REQUEST = { timeout: 5_000 };

async function inNode(t, weir) {
  const client = new Client(Centrifuge, weir.socketUrl, { websocket: WebSocket });
  t.after(() => client.disconnect());
  await client.connect();
  return client;
}

test("a bot's say is acknowledged with its position, and a browser sees it with the bot as author", ANY_ARCHIVE, async (t) => {
  const origin = await serveSdk(t);
  const weir = await Weir.start(t, { origins: [origin] });
  const tab = await clientInTab(await launch(t), origin, weir.socketUrl);
  await tab.connect();
  const join = await tab.subscribe(ROOM);
  const bot = await weir.nats(t, "bot");
  const start = performance.now();
  const answer = (await bot.request("say.bot.chat.lobby", '{"text":"hi"}', REQUEST)).json();
  const acknowledged = sinceMs(start);
  assert.deepEqual(Object.keys(answer).sort(), ["epoch", "offset"]);
  assert.equal(answer.epoch, join.streamPosition.epoch);
  await until("the browser has it", async () => await tab.count(ROOM) === 1);
  const seenAfter = sinceMs(start);
  const [seen] = await tab.publications(ROOM);
  assert.deepEqual(seen.data, { text: "hi" });
  assert.equal(seen.offset, answer.offset);
  assert.equal(seen.info.user, "bot");
  figure(`a bot's say is acknowledged with its position in ${acknowledged}, and a tab of Chromium has it ${seenAfter} after it was sent`);
});

test("a bot hears the room on room.>, with the body as the browser sent it", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const ops = await weir.nats(t, "ops");
  const heard = [];
  ops.subscribe("room.>", { callback: (_, message) => heard.push([message.subject, message.string()]) });
  await ops.flush();
  const client = await inNode(t, weir);
  await client.publish(ROOM, { text: "to everyone", name: "ana" });
  await until("ops hears it", () => heard.length === 1);
  assert.deepEqual(heard, [["room.chat.lobby", '{"text":"to everyone","name":"ana"}']]);
});

test("what a bot may not say is refused with the documented code, and nothing is stored", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const bot = await weir.nats(t, "bot");
  const refused = { "say.bot.nowhere.lobby": ["{}", 102], "say.bot.chat.lobby": ["not JSON", 107], "say.bot.chat.a*b": ["{}", 107] };
  for (const [subject, [body, code]] of Object.entries(refused)) {
    const answer = (await bot.request(subject, body, REQUEST)).json();
    assert.equal(answer.error?.code, code, `${subject} ${body}: ${JSON.stringify(answer)}`);
  }
  const { state } = await weir.jetstream("STREAM.INFO.ROOMS_0");
  assert.equal(state.messages, 0);
});

test("a bot under another's name, or straight into a room or a log, is stopped by nats-server", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const client = await inNode(t, weir);
  await client.subscribe(ROOM);
  for (const subject of ["say.ops.chat.lobby", "room.chat.lobby", "log.rooms.0.chat.lobby", "$JS.API.STREAM.DELETE.ROOMS_0"]) {
    const bot = await weir.nats(t, "bot");
    const refusals = [];
    (async () => { for await (const { type, error } of bot.status()) if (type === "error") refusals.push(error.message); })();
    bot.publish(subject, '{"text":"forged"}');
    await until(`${subject} is refused`, () => refusals.some((text) => /permissions violation/i.test(text) && text.includes(subject)));
  }
  await client.publish(ROOM, { text: "true" });
  await until("the true one", async () => await client.count(ROOM) >= 1);
  assert.deepEqual((await client.publications(ROOM)).map(({ data }) => data.text), ["true"]);
  figure("a bot that publishes as another, into a room, into a log or to JetStream's API is refused by nats-server: 4 of 4, nothing changed");
});

test("a bot pages a room's history, and asks whether a position can be continued", async (t) => {
  const weir = await Weir.start(t);
  const client = await inNode(t, weir);
  await client.subscribe(ROOM);
  await publishMany(client, ROOM, 60);
  await until("all are seen", async () => await client.count(ROOM) === 60);
  const seen = await client.publications(ROOM);
  const bot = await weir.nats(t, "bot");
  const ask = async (body) => (await bot.request("history.bot.chat.lobby", JSON.stringify(body), REQUEST)).json();
  const newest = await ask({ limit: 25, reverse: true });
  assert.deepEqual(newest.publications.map(({ offset }) => offset), seen.slice(-25).reverse().map(({ offset }) => offset));
  assert.equal(newest.offset, seen.at(-1).offset);
  const all = [];
  const start = performance.now();
  for (let since = { offset: 0, epoch: newest.epoch }, more = true; more;) {
    const page = await ask({ limit: 25, since });
    all.push(...page.publications);
    more = page.more;
    since = { offset: all.at(-1).offset, epoch: page.epoch };
  }
  const took = sinceMs(start);
  assert.deepEqual(all.map(({ data }) => data), seen.map(({ data }) => data));
  const proven = await ask({ recover: true, since: { offset: seen[49].offset, epoch: newest.epoch } });
  assert.equal(proven.recovered, true);
  assert.deepEqual(proven.publications.map(({ offset }) => offset), seen.slice(50).map(({ offset }) => offset));
  const foreign = await ask({ recover: true, since: { offset: seen[49].offset, epoch: "foreign" } });
  assert.equal(foreign.recovered, false);
  assert.deepEqual(foreign.publications, []);
  figure(`a bot pages 60 messages by history.bot.chat.lobby in ${took}, as the browser saw them, and gets the same verdicts`);
});

test("a device on MQTT publishes at QoS 0, 1 and 2, each stored once, and receives the room", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const client = await inNode(t, weir);
  await client.subscribe(ROOM);
  const device = await mqtt.connectAsync(weir.mqttUrl, { username: "dev1", password: "dev1", clientId: "dev1-test", protocolVersion: 4, reconnectPeriod: 0 });
  t.after(() => device.endAsync(true));
  const received = [];
  device.on("message", (topic, payload) => received.push([topic, JSON.parse(payload)]));
  const [granted] = await device.subscribeAsync("room/chat/lobby", { qos: 0 });
  assert.equal(granted.qos, 0);
  for (const qos of [0, 1, 2]) {
    await device.publishAsync("say/dev1/chat/lobby", JSON.stringify({ qos }), { qos });
    await until(`QoS ${qos} is in the room`, async () => await client.count(ROOM) === qos + 1);
  }
  await client.publish(ROOM, { text: "to the device" });
  await until("the device and the browser have all four", async () => received.length >= 4 && await client.count(ROOM) >= 4);
  const seen = await client.publications(ROOM);
  assert.deepEqual(seen.map(({ data, info }) => [data, info.user]),
    [[{ qos: 0 }, "dev1"], [{ qos: 1 }, "dev1"], [{ qos: 2 }, "dev1"], [{ text: "to the device" }, ""]]);
  assert.deepEqual(received, seen.map(({ data }) => ["room/chat/lobby", data]));
  const { state } = await weir.jetstream("STREAM.INFO.ROOMS_0");
  assert.equal(state.messages, 4);
  figure("a device on MQTT at QoS 0, 1 and 2: each message stored once, seen by the browser, and the browser's by the device");
});

test("a device that publishes under another's name changes nothing", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const device = await mqtt.connectAsync(weir.mqttUrl, { username: "dev1", password: "dev1", clientId: "dev1-test", protocolVersion: 4, reconnectPeriod: 0 });
  t.after(() => device.endAsync(true));
  for (const topic of ["say/bot/chat/lobby", "room/chat/lobby", "log/rooms/0/chat/lobby"]) {
    await device.publishAsync(topic, '{"text":"forged"}', { qos: 0 });
  }
  await device.publishAsync("say/dev1/chat/lobby", '{"text":"own"}', { qos: 0 });
  const client = await inNode(t, weir);
  await until("its own message is in the room", async () => (await client.history(ROOM, { limit: 10 })).publications.length > 0);
  const page = await client.history(ROOM, { limit: 10 });
  assert.deepEqual(page.publications.map(({ data, info }) => [data.text, info.user]), [["own", "dev1"]]);
});

test("rpc reaches a bot that serves it, with the caller's identity, and its answer comes back", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const bot = await weir.nats(t, "bot");
  bot.subscribe("rpc.echo", { callback: (_, message) => message.respond(JSON.stringify({ body: message.json(), client: message.headers?.get("Weir-Client") })) });
  await bot.flush();
  const client = await inNode(t, weir);
  const { data } = await client.rpc("echo", { ask: 1 });
  assert.deepEqual(data.body, { ask: 1 });
  assert.ok(data.client.length > 0);
  await assert.rejects(client.rpc("nobody", {}), (error) => error.code === 108);
});
