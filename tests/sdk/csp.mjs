// Knows: the one style and the one script of the page, and the Content-Security-Policy that names their hashes.
// Never: changes anything but those two hashes. `node csp.mjs` checks; `node csp.mjs --write` writes.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const PAGE_PATH = fileURLToPath(new URL("../../src/page.html", import.meta.url));

/** The page with the hashes that its style and script have now. */
export function withHashes(page) {
  for (const element of ["script", "style"]) {
    const content = page.match(new RegExp(`<${element}>([^]*?)</${element}>`))[1];
    const hash = createHash("sha256").update(content).digest("base64");
    page = page.replace(new RegExp(`(${element}-src 'sha256-)[^']*'`), (_, start) => `${start}${hash}'`);
  }
  return page;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const page = readFileSync(PAGE_PATH, "utf8");
  const hashed = withHashes(page);
  if (process.argv.includes("--write")) {
    writeFileSync(PAGE_PATH, hashed);
  } else if (page !== hashed) {
    console.error("the Content-Security-Policy of src/page.html is stale: run `npm run csp` in tests/sdk");
    process.exitCode = 1;
  }
}
