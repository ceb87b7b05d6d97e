// Promise: two people chat on the page at `/`; one pulls the cable, the other writes 500 messages; back online all are there, in order, none
// twice, and the page says so. Older messages come from the archive, and no message is ever markup.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";
import { launch } from "./browser.mjs";
import { Client } from "./client.mjs";
import { PAGE_PATH, withHashes } from "./csp.mjs";
import { ANY_ARCHIVE, RESULTS_DIR, Weir, figure, publishMany, sinceMs, until } from "./harness.mjs";

const ROOM = "chat:lobby";
const DESKTOP = { width: 1180, height: 780 };
const PHONE = { width: 390, height: 780 };

/** A tab on the page, as its user sees it. Each has a profile of its own. */
class Tab {
  constructor(page) { this.page = page; this.problems = []; }

  static async open(browser, weir, { query = "", nickname = "", ...options } = {}) {
    const context = await browser.newContext({ viewport: DESKTOP, locale: "en-GB", ...options });
    const tab = new Tab(await context.newPage());
    tab.page.on("pageerror", (error) => tab.problems.push(error.message));
    tab.page.on("console", (message) => { if (message.type() === "error") tab.problems.push(message.text()); });
    tab.page.on("dialog", (dialog) => { tab.problems.push(`a dialog: ${dialog.message()}`); return dialog.dismiss(); });
    tab.requests = [];
    tab.page.on("request", (request) => tab.requests.push(request.url()));
    await tab.page.goto(weir.pageUrl + query);
    if (nickname) { await tab.part("nickname").fill(nickname); await tab.part("nickname").blur(); }
    await tab.isReady();
    return tab;
  }

  part(id) { return this.page.getByTestId(id); }
  says(id, text, timeout = 20_000) { return this.part(id).filter({ hasText: text }).waitFor({ timeout }); }

  /** Connected, and in the room. */
  async isReady() {
    await this.says("state", "Connected");
    await this.page.locator('[data-testid=room][aria-current=true][data-status=joined]').waitFor({ state: "attached" });
  }

  async write(text) {
    await this.part("draft").fill(text);
    await this.part("draft").press("Enter");
  }

  async shows(text) { await this.part("text").getByText(text, { exact: true }).last().waitFor({ timeout: 20_000 }); }

  /** The rows as shown: offset, author and text. */
  rows() {
    return this.part("message").evaluateAll((rows) => rows.map((row) => ({
      offset: Number(row.dataset.offset),
      author: row.querySelector("[data-testid=author]").textContent,
      text: row.querySelector("[data-testid=text]").textContent,
    })));
  }

  async picture(name) {
    mkdirSync(RESULTS_DIR, { recursive: true });
    await this.page.screenshot({ path: join(RESULTS_DIR, `${name}.png`) });
  }
}

function assertInOrder(rows) {
  for (const [index, { offset }] of rows.entries()) {
    if (index > 0) assert.ok(offset > rows[index - 1].offset, `row ${index}: offset ${offset} after ${rows[index - 1].offset}`);
  }
}

const numbered = (count, prefix = "") => Array.from({ length: count }, (_, index) => `${prefix}Message ${String(index + 1).padStart(String(count).length, "0")} of ${count}`);

async function writer(t, weir) {
  const client = new Client(Centrifuge, weir.socketUrl, { websocket: WebSocket });
  t.after(() => client.disconnect());
  await client.connect();
  return client;
}

test("the policy of the page names the hashes of its style and script", ANY_ARCHIVE, () => {
  const page = readFileSync(PAGE_PATH, "utf8");
  assert.ok(page === withHashes(page), "run `npm run csp` in tests/sdk");
});

test("two tabs chat; one pulls the cable, 500 messages later it has all of them and says so", async (t) => {
  const weir = await Weir.start(t);
  const browser = await launch(t);
  const [ana, ben] = [await Tab.open(browser, weir, { nickname: "ana" }), await Tab.open(browser, weir, { nickname: "ben", colorScheme: "dark" })];
  await ana.write("Good morning");
  await ben.shows("Good morning");
  await ben.write("Good morning, ana");
  await ana.shows("Good morning, ana");
  assert.deepEqual((await ana.rows()).map(({ author }) => author), ["ana", "ben"]);
  await ana.picture("page-light");
  await ben.picture("page-dark");

  await ana.part("cable").click();
  await ana.says("state", "Offline");
  assert.equal(await ana.part("send").isDisabled(), true);
  await ana.picture("page-offline");
  await ben.part("burst-count").fill("500");
  await ben.part("burst").click();
  await ben.says("burst-note", "500 of 500 messages stored", 120_000);
  assert.equal((await ana.rows()).length, 2, "an unplugged tab sees nothing");

  const start = performance.now();
  await ana.part("cable").click();
  await ana.says("verdict-title", "Back online: 500 messages recovered in order, nothing missing.", 60_000);
  const took = sinceMs(start);
  const rows = await ana.rows();
  assertInOrder(rows);
  assert.deepEqual(rows.map(({ text }) => text), ["Good morning", "Good morning, ana", ...numbered(500)]);
  await ben.shows("Message 500 of 500");
  assert.deepEqual(await ben.rows(), rows, "both tabs show the same");
  await ana.picture("page-back-online");
  figure(`the page in Chromium: 500 messages missed with the cable out, all shown in order ${took} after it is in again; pictures are in test-results`);

  await ana.part("cable").click();
  await ana.says("state", "Offline");
  await ana.part("cable").click();
  await ana.says("verdict-title", "Back online: no messages were missed.");
  assert.deepEqual(await ana.rows(), rows);
  await ana.write("Still here");
  await ben.shows("Still here");
  assert.deepEqual([...ana.problems, ...ben.problems], []);
  const elsewhere = [...ana.requests, ...ben.requests].filter((url) => !url.startsWith(weir.pageUrl) && !url.startsWith("data:"));
  assert.deepEqual(elsewhere, [], "the page asks nobody else");
});

test("more than one reply holds is recovered to its end, and counted", async (t) => {
  const weir = await Weir.start(t);
  const tab = await Tab.open(await launch(t), weir);
  const other = await writer(t, weir);
  await tab.part("cable").click();
  await tab.says("state", "Offline");
  await publishMany(other, ROOM, 1_500);
  await tab.part("cable").click();
  await tab.says("verdict-title", "Back online: 1500 messages recovered in order, nothing missing.", 60_000);
  await tab.shows("n 1499");
  const rows = await tab.rows();
  assertInOrder(rows);
  assert.ok(rows.length <= 1_000, `${rows.length} rows are more than the window`);
});

test("a connection that is lost comes back by itself, and what was missed with it", async (t) => {
  const weir = await Weir.start(t);
  const tab = await Tab.open(await launch(t), weir);
  await tab.write("before");
  await tab.shows("before");
  await weir.restart();
  const other = await writer(t, weir);
  await other.publish(ROOM, { text: "meanwhile", name: "other" });
  await tab.says("state", "Connected", 60_000);
  await tab.shows("meanwhile");
  assertInOrder(await tab.rows());
});

test("the page answers pings; a server that falls silent is left, and a publish without an answer is called neither stored nor lost", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t, { client: 'ping_interval = "2s"\npong_timeout = "1s"' });
  const browser = await launch(t);
  const context = await browser.newContext({ viewport: DESKTOP });
  const tab = new Tab(await context.newPage());
  const sockets = [];
  tab.page.on("websocket", (socket) => {
    const seen = { pings: 0, pongs: 0 };
    sockets.push(seen);
    socket.on("framereceived", ({ payload }) => { if (payload === "{}") seen.pings++; });
    socket.on("framesent", ({ payload }) => { if (payload === "{}") seen.pongs++; });
  });
  await tab.page.goto(weir.pageUrl);
  await tab.isReady();
  await until("three pings are answered on one socket", () => sockets[0].pings >= 3 && sockets[0].pongs >= 3);
  assert.equal(sockets.length, 1);

  weir.freeze();
  await tab.write("into the frost");
  await tab.says("pending-message", "it may or may not be stored");
  await tab.says("state", "Reconnecting", 30_000);
  weir.thaw();
  await tab.says("verdict-title", "Back online:", 60_000);
  // The server may have closed the old socket before it read the message from it, and may not: the page shows what the room has.
  const other = await writer(t, weir);
  await other.publish(ROOM, { text: "after the frost" });
  await tab.shows("after the frost");
  const { publications } = await other.history(ROOM, { limit: 10 });
  assert.deepEqual((await tab.rows()).map(({ text }) => text), publications.map(({ data }) => data.text));
});

test("load older reads what only the archive has, to the beginning of the room", async (t) => {
  const weir = await Weir.start(t);
  const other = await writer(t, weir);
  await publishMany(other, ROOM, 1_230);
  await weir.archived();
  await weir.trim(10);
  await weir.restart();
  const tab = await Tab.open(await launch(t), weir);
  await tab.shows("n 1229");
  assert.equal((await tab.rows()).length, 50);
  const start = performance.now();
  await until("the beginning", async () => {
    if (await tab.part("older-note").getByText("This is the beginning of the room.").isVisible()) return true;
    // Scrolling up may have asked already.
    if (await tab.part("load-older").isEnabled()) await tab.part("load-older").click({ timeout: 1_000 }).catch(() => { /* it was just hidden */ });
    return false;
  }, 60_000);
  const took = sinceMs(start);
  const oldest = await tab.rows();
  assertInOrder(oldest);
  assert.equal(oldest[0].text, "n 0");
  assert.equal(oldest.length, 1_000, "the window is full, and no fuller");
  await tab.picture("page-archive");
  figure(`the page in Chromium: scrolled up through 1,230 messages that only the archive has, to the beginning of the room, in ${took}`);

  await other.connect();
  await other.publish(ROOM, { text: "while reading far back" });
  await tab.part("jump").click();
  await tab.shows("while reading far back");
  assertInOrder(await tab.rows());
});

test("reading far back, load newer leads without a hole to the newest", async (t) => {
  const weir = await Weir.start(t);
  const other = await writer(t, weir);
  await publishMany(other, ROOM, 1_100);
  const tab = await Tab.open(await launch(t), weir);
  await tab.shows("n 1099");
  await until("the beginning", async () => {
    if (await tab.part("older-note").getByText("This is the beginning of the room.").isVisible()) return true;
    if (await tab.part("load-older").isEnabled()) await tab.part("load-older").click({ timeout: 1_000 }).catch(() => { /* it was just hidden */ });
    return false;
  }, 60_000);
  await publishMany(other, ROOM, 20, "late");
  await until("the newest", async () => {
    if (await tab.part("load-newer").isHidden()) return true;
    // Scrolling down may have asked already.
    if (await tab.part("load-newer").isEnabled()) await tab.part("load-newer").click({ timeout: 1_000 }).catch(() => { /* it was just hidden */ });
    return false;
  }, 60_000);
  const rows = await tab.rows();
  assertInOrder(rows);
  assert.equal(rows.at(-1).text, "late 19");
  const expected = [...Array.from({ length: 1_100 }, (_, index) => `n ${index}`), ...Array.from({ length: 20 }, (_, index) => `late ${index}`)];
  assert.deepEqual(rows.map(({ text }) => text), expected.slice(-rows.length));
});

test("after the log is wiped the page says that nothing is proven, and shows what the archive has", async (t) => {
  const weir = await Weir.start(t);
  const tab = await Tab.open(await launch(t), weir);
  await tab.write("kept in the archive");
  await tab.shows("kept in the archive");
  await tab.part("cable").click();
  await tab.says("state", "Offline");
  await weir.archived();
  await weir.restartWithoutLog();
  await tab.part("cable").click();
  await tab.says("verdict-title", "History could not be proven complete (recovered: false) — reloaded.", 60_000);
  await tab.shows("kept in the archive");
  await tab.write("and on");
  await tab.shows("and on");
  assertInOrder(await tab.rows());
  await tab.picture("page-unproven");
});

test("hostile text is shown as text", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const tab = await Tab.open(await launch(t), weir);
  const other = await writer(t, weir);
  const hostile = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "<svg onload=alert(3)>", "javascript:alert(4)", "</li></ol><h1>out</h1>",
    "\u202Egnp.exe", "a\u0000b", "line\nbreak\tand tab", "&lt;b&gt;", "{{constructor.constructor('alert(5)')()}}", "x".repeat(20_000), "👩‍👩‍👧‍👦 e\u0301 ﷽",
  ];
  for (const text of hostile) await other.publish(ROOM, { text, name: text.slice(0, 60) });
  for (const data of [null, 7, "plain", [1, "<b>"], { text: 5 }, { name: "<i>", other: "<script>" }, { text: "last" }]) await other.publish(ROOM, data);
  await tab.shows("last");
  const rows = await tab.rows();
  assert.deepEqual(rows.slice(0, hostile.length).map(({ text }) => text), hostile);
  assert.deepEqual(rows.slice(hostile.length).map(({ text }) => text),
    ["null", "7", "plain", '[1,"<b>"]', '{"text":5}', '{"name":"<i>","other":"<script>"}', "last"]);
  const markup = await tab.part("messages").evaluate((list) => [...new Set([...list.querySelectorAll("*")].map(({ localName }) => localName))].sort());
  assert.deepEqual(markup, ["bdi", "div", "li", "span", "time"]);
  assert.deepEqual(tab.problems, []);
  const refused = await tab.page.evaluate(() => {
    try { document.createElement("div").innerHTML = "<b>x</b>"; return false; } catch { return true; }
  });
  assert.equal(refused, true, "the policy of the page lets a script make markup of text");
});

test("several rooms, their unread counts, and a room that does not exist", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const tab = await Tab.open(await launch(t), weir);
  await tab.part("join-name").fill("chat:garden");
  await tab.part("join").click();
  await tab.says("room-title", "chat:garden");
  await tab.isReady();
  const other = await writer(t, weir);
  await publishMany(other, ROOM, 3);
  await other.publish("chat:garden", { text: "in the garden" });
  await tab.shows("in the garden");
  const lobby = tab.page.locator('[data-testid=room][data-room="chat:lobby"]');
  await lobby.getByTestId("unread").getByText("3", { exact: true }).waitFor();
  assert.match(await tab.page.title(), /^\(3\) chat:garden/);
  await lobby.click();
  await tab.shows("n 2");
  await lobby.getByTestId("unread").waitFor({ state: "hidden" });
  await tab.part("join-name").fill("nowhere:x");
  await tab.part("join").click();
  await tab.says("older-note", "unknown channel (102)");
  assert.equal(await tab.part("send").isDisabled(), true);

  await tab.page.reload();
  await tab.says("state", "Connected");
  assert.equal(await tab.part("room").count(), 3, "the rooms are remembered");
});

test("the page on a phone, by touch and by keyboard", ANY_ARCHIVE, async (t) => {
  const weir = await Weir.start(t);
  const browser = await launch(t);
  const tab = await Tab.open(browser, weir, { viewport: PHONE, isMobile: true, hasTouch: true, deviceScaleFactor: 2, nickname: "" });
  await tab.write("From a phone");
  await tab.shows("From a phone");
  const overflow = await tab.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `the page is ${overflow} px too wide`);
  await tab.picture("page-phone");
  await tab.page.getByRole("button", { name: "Rooms and settings" }).tap();
  await tab.part("join-name").waitFor({ state: "visible" });
  await tab.picture("page-phone-menu");
  await tab.page.keyboard.press("Escape");
  await tab.part("join-name").waitFor({ state: "hidden" });
  const cable = tab.page.getByRole("switch", { name: "Network cable" });
  assert.equal(await cable.getAttribute("aria-checked"), "true");
  await cable.focus();
  await tab.page.keyboard.press("Space");
  await tab.says("state", "Offline");
  assert.equal(await cable.getAttribute("aria-checked"), "false");
});
