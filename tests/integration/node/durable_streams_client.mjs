// What @durable-streams/client reads of a stream, or writes to one: a line of JSON for each batch.
//
//   node durable_streams_client.mjs read URL KIND LIVE OFFSET BATCHES      stops after so many batches; 0: at the end
//   node durable_streams_client.mjs write URL COUNT                        messages {"n": 0}, … in batches of its own, then closes

import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";

const [verb, url, ...rest] = process.argv.slice(2);
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

async function read(kind, live, offset, batches) {
  const response = await stream({ url, offset, live: live === "none" ? false : live, json: kind === "json" });
  let left = Number(batches);
  const subscribe = { json: "subscribeJson", text: "subscribeText", binary: "subscribeBytes" }[kind];
  response[subscribe]((batch) => {
    const content =
      kind === "json" ? batch.items : kind === "text" ? batch.text : Buffer.from(batch.data).toString("base64");
    print({ content, offset: batch.offset, upToDate: batch.upToDate, streamClosed: batch.streamClosed });
    left -= 1;
    if (left === 0) process.exit(0);
  });
  // It is resolved before the last batch has been handed over, so the process ends by itself.
  await response.closed;
}

async function write(count) {
  const handle = await DurableStream.create({ url, contentType: "application/json" });
  const producer = new IdempotentProducer(handle, "writer", { lingerMs: 1, maxBatchBytes: 200 });
  for (let n = 0; n < Number(count); n += 1) producer.append(JSON.stringify({ n }));
  await producer.flush();
  await producer.close();
}

await (verb === "read" ? read(...rest) : write(...rest));
