// A chat that runs a workflow, with the routes of the Workflow DevKit's guide "Resumable streams", in its local world.

import { createUIMessageStreamResponse } from "ai";
import { getWritable } from "@workflow/core";
import { registerStepFunction } from "@workflow/core/private";
import { getRun, getWorld, start, stepEntrypoint, workflowEntrypoint } from "@workflow/core/runtime";
import { gate, serve } from "./common.mjs";

// What the compiler makes of `"use workflow"` and `"use step"`, by hand, so that no bundler is needed.
const code = `
  const say = globalThis[Symbol.for("WORKFLOW_USE_STEP")]("step//./chat//say");
  async function chat(name) {
    await say(name);
  }
  chat.workflowId = "workflow//./chat//chat";
  (globalThis.__private_workflows ??= new Map()).set(chat.workflowId, chat);
`;

const text = (delta) => ({ type: "text-delta", id: "0", delta });
// It waits for its reader behind each of them.
const PARTS = [
  [{ type: "start", messageId: "m1" }, { type: "start-step" }, { type: "text-start", id: "0" }, text("Sieben ☔")],
  [text(" finish"), text(" finish"), { type: "text-end", id: "0" }],
  [{ type: "finish-step" }, { type: "finish", finishReason: "stop" }],
];

registerStepFunction("step//./chat//say", async (name) => {
  const writer = getWritable().getWriter();
  for (const parts of PARTS) {
    for (const part of parts) await writer.write(part);
    await gate(name);
  }
  await writer.close();
});

const world = getWorld();
world.registerHandler("__wkf_workflow_", workflowEntrypoint(code));
world.registerHandler("__wkf_step_", stepEntrypoint);
await world.start();

serve(async (request) => {
  const url = new URL(request.url);
  if (request.method === "POST") {
    const { name } = await request.json();
    const run = await start({ workflowId: "workflow//./chat//chat" }, [name]);
    return createUIMessageStreamResponse({ stream: run.readable, headers: { "x-workflow-run-id": run.runId } });
  }
  const id = decodeURIComponent(url.pathname.split("/")[3]);
  const param = url.searchParams.get("startIndex");
  const readable = getRun(id).getReadable({ startIndex: param ? parseInt(param, 10) : undefined });
  const tail = await readable.getTailIndex();
  return createUIMessageStreamResponse({ stream: readable, headers: { "x-workflow-stream-tail-index": String(tail) } });
});
