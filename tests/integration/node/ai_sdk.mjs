// Routes as the AI SDK's guide "Chatbot resume streams" and the readme of resumable-stream have them, over a real Redis.
// The model is the package's mock; a reader has to tell that it holds what was sent before the answer goes on.

import {
  createUIMessageStreamResponse,
  isStepCount,
  jsonSchema,
  streamText,
  tool,
  toUIMessageStream,
  UI_MESSAGE_STREAM_HEADERS,
} from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { createResumableStreamContext } from "resumable-stream";
import { gate, serve } from "./common.mjs";

const context = createResumableStreamContext({ waitUntil: null });
const usage = { inputTokens: { total: 3 }, outputTokens: { total: 7 } };

/** Parts of a model's answer; in place of a `null` it waits for the reader. */
function paced(name, parts) {
  return new ReadableStream({
    async start(controller) {
      for (const part of parts) {
        if (part === null) await gate(name);
        else controller.enqueue(part);
      }
      controller.close();
    },
  });
}

function model(name) {
  const finish = (unified) => ({ type: "finish", finishReason: { unified, raw: unified }, usage });
  const text = (delta) => ({ type: "text-delta", id: "0", delta });
  const steps = [
    [
      { type: "stream-start", warnings: [] },
      { type: "reasoning-start", id: "r0" },
      { type: "reasoning-delta", id: "r0", delta: "Über " },
      { type: "reasoning-end", id: "r0" },
      { type: "tool-input-start", id: "t1", toolName: "weather" },
      { type: "tool-input-delta", id: "t1", delta: '{"city":"Köln"}' },
      { type: "tool-input-end", id: "t1" },
      null,
      { type: "tool-call", toolCallId: "t1", toolName: "weather", input: '{"city":"Köln"}' },
      finish("tool-calls"),
    ],
    [
      { type: "stream-start", warnings: [] },
      { type: "text-start", id: "0" },
      text("Sieben ☔"),
      null,
      text(" finish"),
      text(" finish"),
      null,
      { type: "text-end", id: "0" },
      finish(name.startsWith("short") ? "length" : "stop"),
    ],
  ];
  return new MockLanguageModelV4({ doStream: async () => ({ stream: paced(name, steps.shift()) }) });
}

// The chats of the guide's `readChat` and `saveChat`: the answer that is being made in each.
const active = new Map();

async function post(request) {
  const { id } = await request.json();
  active.set(id, null);
  const tools = {
    weather: tool({
      inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } } }),
      execute: async () => {
        if (id.startsWith("broken")) throw new Error("no weather today");
        return { celsius: 7 };
      },
    }),
  };
  const result = streamText({ model: model(id), prompt: "hi", tools, stopWhen: isStepCount(2) });
  const stream = toUIMessageStream({ stream: result.stream, originalMessages: [], generateMessageId: () => "m1" });
  // Between `finish` and the end it waits for the reader too.
  const held = stream.pipeThrough(
    new TransformStream({
      async transform(part, controller) {
        if (part.type === "finish-step" && id.startsWith("failing")) {
          controller.enqueue({ type: "error", errorText: "overloaded" });
        }
        controller.enqueue(part);
      },
      async flush() {
        await gate(id);
        active.set(id, null);
      },
    }),
  );
  let noted;
  const registered = new Promise((resolve) => (noted = resolve));
  const response = createUIMessageStreamResponse({
    stream: held,
    keepAliveMs: 50,
    async consumeSseStream({ stream }) {
      await context.createNewResumableStream(id, () => stream);
      active.set(id, id);
      noted();
    },
  });
  // The guide answers before it has noted the stream: who came back that early would be told that there is none.
  await registered;
  return response;
}

async function get(id) {
  if (active.get(id) == null) return new Response(null, { status: 204 });
  return new Response((await context.resumeExistingStream(id)).pipeThrough(new TextEncoderStream()), {
    headers: UI_MESSAGE_STREAM_HEADERS,
  });
}

function words(name) {
  const event = (word) => `data: ${JSON.stringify({ word })}\n\n`;
  // One chunk may hold several events, and a part of one.
  const [start, ...rest] = event("🦊 ends").split("🦊");
  return paced(name, [event("Über "), event("so") + event("so"), null, `${start}🦊`, rest.join(""), null, "data: [DONE]\n\n", null]);
}

function readme(stream) {
  if (!stream) return new Response("Stream is already done", { status: 422 });
  return new Response(stream.pipeThrough(new TextEncoderStream()), { headers: { "Content-Type": "text/event-stream" } });
}

serve(async (request) => {
  const url = new URL(request.url);
  const [, route, name] = url.pathname.split("/").map(decodeURIComponent);
  const resumeAt = url.searchParams.get("resumeAt");
  const skip = resumeAt ? parseInt(resumeAt) : undefined;
  switch (`${request.method} ${route}`) {
    case "POST api":
      return post(request);
    case "GET api":
      return get(decodeURIComponent(url.pathname.split("/")[3]));
    case "GET idempotent":
      return readme(await context.resumableStream(name, () => words(name), skip));
    case "POST explicit":
      return readme(await context.createNewResumableStream(name, () => words(name)));
    case "GET explicit":
      return readme(await context.resumeExistingStream(name, skip));
  }
  return new Response(null, { status: 404 });
});
