// The reference server of Durable Streams, in memory.

import { DurableStreamTestServer } from "@durable-streams/server";
import { ready } from "./common.mjs";

// A short wait, so that keep-alive events are seen too.
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1", longPollTimeout: 100 });
await server.start();
ready(new URL(server.url).port);
