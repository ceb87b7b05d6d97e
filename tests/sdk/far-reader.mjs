// Knows: one client of the centrifuge SDK in a process of its own, so that its memory and its time are nobody else's: joins a room from its
// beginning, counts what comes, and tells its parent. `fork(…, [URL, ROOM, COUNT])`, then any message from the parent starts it.
// Never: judges; keeps publications.

import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const REPORT_EVERY_MESSAGES = 1_000;

const [url, room, count] = process.argv.slice(2);
const due = Number(count);
const client = new Centrifuge(url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 500, timeout: 10_000 });
client.connect();
await client.ready(30_000);

const state = { next: 0, wrong: null, joins: [], tookMs: null, beforeBytes: 0, mostBytes: 0 };
const report = () => process.send(state);

process.once("message", () => {
  const start = performance.now();
  state.beforeBytes = state.mostBytes = process.memoryUsage().rss;
  const subscription = client.newSubscription(room, { since: { offset: 0, epoch: "" }, recoverable: true, positioned: true });
  subscription.on("subscribed", ({ wasRecovering, recovered }) => { state.joins.push({ wasRecovering, recovered }); report(); });
  subscription.on("publication", ({ data }) => {
    if (data.index !== state.next) state.wrong ??= `${data.index} where ${state.next} was due`;
    state.next += 1;
    if (state.next === due) state.tookMs = performance.now() - start;
    if (state.next % REPORT_EVERY_MESSAGES === 0 || state.next >= due) {
      state.mostBytes = Math.max(state.mostBytes, process.memoryUsage().rss);
      report();
    }
  });
  subscription.subscribe();
});
process.on("disconnect", () => process.exit());
report();
