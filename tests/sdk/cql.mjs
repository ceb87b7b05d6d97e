// Knows: enough of CQL's native protocol, version 4, to run one statement: `node cql.mjs HOST:PORT STATEMENT`.
// Never: a driver, rows.

import { connect } from "node:net";

const ERROR = 0x00, STARTUP = 0x01, READY = 0x02, QUERY = 0x07, RESULT = 0x08;
const CONSISTENCY_ONE = 1;
const HEADER_BYTES = 9;
/** Longer than any of Cassandra's own limits. */
const ANSWER_LIMIT_MS = 20_000;

const short = (number) => Buffer.from([number >> 8, number & 0xff]);
const long = (number) => Buffer.concat([short(number >>> 16), short(number & 0xffff)]);
const text = (string) => Buffer.concat([short(string.length), Buffer.from(string)]);
const startup = Buffer.concat([short(1), text("CQL_VERSION"), text("3.0.0")]);
const query = (statement) => Buffer.concat([long(Buffer.byteLength(statement)), Buffer.from(statement), short(CONSISTENCY_ONE), Buffer.from([0])]);

function run(address, statement) {
  const [host, port] = address.split(":");
  const socket = connect(Number(port), host);
  const fail = (what) => { console.error(`${address}: ${statement}: ${what}`); process.exit(1); };
  const send = (opcode, body) => socket.write(Buffer.concat([Buffer.from([4, 0, 0, 0, opcode]), long(body.length), body]));
  socket.setTimeout(ANSWER_LIMIT_MS, () => fail("no answer"));
  socket.on("error", (error) => fail(error.message));
  socket.on("end", () => fail("it hung up"));
  let got = Buffer.alloc(0);
  socket.on("connect", () => send(STARTUP, startup));
  socket.on("data", (bytes) => {
    got = Buffer.concat([got, bytes]);
    if (got.length < HEADER_BYTES || got.length < HEADER_BYTES + got.readUInt32BE(5)) return;
    const [opcode, body] = [got[4], got.subarray(HEADER_BYTES)];
    got = Buffer.alloc(0);
    // One request is under way at a time, so one answer is what came.
    if (opcode === READY) send(QUERY, query(statement));
    else if (opcode === RESULT) process.exit(0);
    else fail(opcode === ERROR ? body.subarray(6).toString() : `answer ${opcode}`);
  });
}

run(...process.argv.slice(2));
