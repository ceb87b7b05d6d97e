// Knows: the centrifuge SDK, unchanged, behind calls whose arguments and results are plain JSON: so the same test drives it in Node and,
//        through `page.evaluate`, in a browser. This file runs in both.
// Never: judges what it sees.

const CALL_TIMEOUT_MS = 60_000;

/** A Centrifuge client and what its subscriptions were told. */
export class Client {
  #client;
  #rooms = new Map();     // channel → { subscription, publications, joins, states }
  errors = [];

  constructor(Centrifuge, url, options = {}) {
    this.#client = new Centrifuge(url, { minReconnectDelay: 50, maxReconnectDelay: 500, timeout: 10_000, ...options });
    this.#client.on("error", ({ error }) => this.errors.push(error));
  }

  async connect() {
    this.#client.connect();
    await this.#client.ready(CALL_TIMEOUT_MS);
  }

  async disconnect() { this.#client.disconnect(); }

  /** Joins a room and resolves with what the join was told: recovered, wasRecovering, streamPosition. */
  async subscribe(channel, options = {}) {
    const subscription = this.#client.newSubscription(channel, { minResubscribeDelay: 50, maxResubscribeDelay: 500, ...options });
    const room = { subscription, publications: [], joins: [], ends: [] };
    this.#rooms.set(channel, room);
    subscription.on("publication", ({ data, offset, info, tags }) => room.publications.push({ data, offset, info, tags }));
    subscription.on("subscribed", ({ recovered, wasRecovering, streamPosition, recoverable, positioned }) =>
      room.joins.push({ recovered, wasRecovering, streamPosition, recoverable, positioned }));
    subscription.on("unsubscribed", ({ code, reason }) => room.ends.push({ code, reason }));
    subscription.on("error", ({ error }) => this.errors.push(error));
    subscription.subscribe();
    await subscription.ready(CALL_TIMEOUT_MS);
    return room.joins[0];
  }

  async unsubscribe(channel) { this.#rooms.get(channel).subscription.unsubscribe(); }

  async publish(channel, data) { return this.#client.publish(channel, data); }

  async history(channel, options) { return this.#client.history(channel, options); }

  async rpc(method, data) { return this.#client.rpc(method, data); }

  async publications(channel, from = 0) { return this.#rooms.get(channel).publications.slice(from); }

  async count(channel) { return this.#rooms.get(channel).publications.length; }

  async joins(channel) { return this.#rooms.get(channel).joins; }
}
