// Knows: Chromium without a window, and a page of our own that holds the SDK's browser build.
// Never: what a test wants of them.

import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const CANDIDATES = [process.env.WEIR_CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"];

/** A browser that closes with the test. */
export async function launch(t) {
  const executablePath = CANDIDATES.find((path) => path && existsSync(path));
  if (!executablePath) throw new Error("no Chromium found: install Debian's chromium, or set WEIR_CHROMIUM");
  const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
  t.after(() => browser.close());
  return browser;
}

const FILES = {
  "/": ["text/html", () => "<!doctype html><title>SDK</title><script src=/centrifuge.js></script>"],
  "/centrifuge.js": ["text/javascript", () => readFileSync(here("node_modules/centrifuge/dist/centrifuge.js"))],
  "/client.mjs": ["text/javascript", () => readFileSync(here("client.mjs"))],
};

/** Serves the SDK's browser build to our test page: another origin than Weir's, as an application's page is. */
export async function serveSdk(t) {
  const server = createServer((request, response) => {
    const file = FILES[request.url];
    if (!file) { response.writeHead(404).end(); return; }
    response.writeHead(200, { "content-type": file[0] }).end(file[1]());
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  t.after(() => { server.closeAllConnections(); server.close(); });
  return `http://127.0.0.1:${server.address().port}`;
}

/** A client like `Client` of client.mjs that lives in a tab of `browser`. */
export async function clientInTab(browser, origin, url, options = {}) {
  const page = await browser.newPage();
  await page.goto(`${origin}/`);
  await page.evaluate(async ([socketUrl, settings]) => {
    const { Client } = await import("/client.mjs");
    globalThis.client = new Client(globalThis.Centrifuge, socketUrl, settings);
  }, [url, options]);
  return new Proxy({}, {
    get: (_, method) => method === "then" ? undefined
      : (...args) => page.evaluate(([name, values]) => globalThis.client[name](...values), [method, args]),
  });
}
