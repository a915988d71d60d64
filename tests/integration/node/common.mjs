// What the servers share. They end with their standard input, so that none outlives the tests.

import { createServer } from "node:http";
import { Readable } from "node:stream";
import { createInterface } from "node:readline";

// Standard output has one line: the port.
console.log = console.error;
const print = (text) => process.stdout.write(`${text}\n`);

const passed = new Map();
const waiting = new Map();

const lines = createInterface({ input: process.stdin });
lines.on("line", (name) => {
  passed.set(name, (passed.get(name) ?? 0) + 1);
  waiting.get(name)?.();
});
lines.on("close", () => process.exit(0));

/** Hold an answer until the reader has told, by its name on standard input, that it holds what was sent so far. */
export async function gate(name) {
  while (!passed.get(name)) await new Promise((resolve) => waiting.set(name, resolve));
  passed.set(name, passed.get(name) - 1);
}

export function ready(port) {
  print(port);
}

/** Serve a function of a web Request, as Next.js has it. A reader that goes away cancels the body. */
export function serve(answer) {
  const server = createServer(async (req, res) => {
    try {
      const chunks = [];
      for await (const chunk of req) chunks.push(chunk);
      const body = chunks.length ? Buffer.concat(chunks) : undefined;
      const request = new Request(`http://${req.headers.host}${req.url}`, { method: req.method, body });
      const response = await answer(request);
      res.writeHead(response.status, Object.fromEntries(response.headers));
      if (!response.body) return res.end();
      const stream = Readable.fromWeb(response.body);
      res.on("close", () => stream.destroy());
      stream.on("error", () => res.destroy());
      stream.pipe(res);
    } catch (error) {
      // What Next.js makes of a route that throws.
      console.error(error);
      res.writeHead(500).end();
    }
  });
  server.listen(0, "127.0.0.1", () => ready(server.address().port));
}
