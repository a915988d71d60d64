/** The page: what it shows and what it sends. It follows the conversation only through `followSession()`. */

import { followSession } from "./session.js";

const sid = location.pathname.split("/")[2];
const $ = (id) => document.getElementById(id);
const turns = new Map(); // by the id of the message: {mid, text, answer, element}
const answers = new Map(); // by id: {text, state, reason}
let isLive = null;
let changing = null; // {turn, again}: the message that is being changed, and whether it is answered again
let sending = false;

const NOTES = {
  stopping: "Stopping …",
  cancelled: "Stopped.",
  incomplete: "The model stopped early.",
  gone: "This answer is no longer kept.",
};

// --- showing

function show(turn) {
  const answer = answers.get(turn.answer) ?? { text: "", state: "waiting" };
  const isRunning = ["waiting", "live", "stopping"].includes(answer.state);
  const [question, text, note] = turn.element.querySelectorAll(".question p, .answer p, .note");
  const followsEnd = isAtEnd();
  question.textContent = turn.text;
  text.textContent = answer.text;
  turn.element.dataset.state = answer.state;
  turn.element.dataset.answer = turn.answer;
  turn.element.setAttribute("aria-busy", isRunning);
  note.textContent = answer.state === "failed" ? `Failed: ${answer.reason ?? "the answer ended early"}.` : (NOTES[answer.state] ?? "");
  note.hidden = !note.textContent;
  if (followsEnd) scrollTo(0, document.body.scrollHeight);
}

function showState() {
  const last = [...turns.values()].at(-1);
  const running = last && answers.get(last.answer);
  let state = "ready";
  if (isLive === null) state = "connecting";
  else if (!isLive) state = "reconnecting";
  else if (last) state = NAMES[running?.state ?? "waiting"];
  $("state").textContent = state;
  $("state").dataset.state = state;
  document.title = last ? `${state} · Chat` : "Chat";
  $("empty").hidden = turns.size > 0 || isLive === null;
  $("stop").hidden = !active();
  $("stop").disabled = running?.state === "stopping";
  for (const turn of turns.values()) turn.element.querySelector(".change").disabled = sending;
  $("changing").hidden = !changing;
  if (changing) $("changing").firstElementChild.textContent = CHANGES[changing.again];
  $("send").disabled = sending || !$("prompt").value.trim();
}

const NAMES = {
  waiting: "live",
  live: "live",
  stopping: "live",
  completed: "done",
  ended: "done",
  incomplete: "done",
  cancelled: "stopped",
  failed: "failed",
  gone: "done",
};

const CHANGES = {
  true: "Changing your message. It is answered again.",
  false: "Changing an earlier message. Its answer stays.",
};

/** The running answer. */
function active() {
  return [...turns.values()].map((turn) => turn.answer).findLast((id) => ["live", "stopping"].includes(answers.get(id)?.state));
}

function isAtEnd() {
  return innerHeight + scrollY >= document.body.scrollHeight - 80;
}

function add({ mid, data }) {
  if (!turns.has(mid)) {
    const element = $("turn").content.firstElementChild.cloneNode(true);
    element.querySelector(".change").onclick = () => begin(turns.get(mid));
    element.querySelector(".delete").onclick = () => discard(turns.get(mid));
    element.querySelector(".delete").onblur = (event) => ask(event.target, false);
    $("chat").append(element);
    turns.set(mid, { mid, element });
  }
  edit(mid, data);
}

function edit(mid, data) {
  const turn = turns.get(mid);
  if (!turn) return;
  Object.assign(turn, { text: data.text, answer: data.answer });
  show(turn);
  showState();
}

function remove(mid) {
  turns.get(mid)?.element.remove();
  turns.delete(mid);
  // The typed text is kept: it is a new message now.
  if (changing?.turn.mid === mid) changing = null;
  showState();
}

followSession(sid, {
  messages(all) {
    for (const mid of turns.keys()) if (!all.some((message) => message.mid === mid)) remove(mid);
    all.forEach(add);
    showState();
  },
  message: add,
  edited: edit,
  deleted: remove,
  answer(id, { text, state, reason }) {
    answers.set(id, { text, state, reason });
    for (const turn of turns.values()) if (turn.answer === id) show(turn);
    showState();
  },
  readers(count) {
    $("readers").textContent = `${count} readers`;
    $("readers").hidden = count < 2;
  },
  connection(live) {
    // Until it is live for the first time, it is connecting, not reconnecting.
    if (live || isLive !== null) isLive = live;
    showState();
  },
});

// --- sending

/** 128 unguessable bits. */
function randomId() {
  return btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(16)))).replace(/[+/=]/g, (c) => ({ "+": "-", "/": "_" })[c] ?? "");
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

/** Send it until it has surely arrived. That is safe: a repeated key starts nothing, and the rest may be done twice. */
async function request(method, url, { key, body } = {}) {
  for (let tries = 0; ; tries++) {
    let status = 0;
    try {
      const response = await fetch(url, {
        method,
        headers: { "Content-Type": "application/json", Prefer: "respond-async", ...(key && { "Idempotency-Key": key }) },
        body: JSON.stringify(body),
      });
      if (response.ok) return trouble("");
      status = response.status;
    } catch {
      // No answer.
    }
    if (status && status < 500) throw new Error(status === 404 ? "It is no longer there." : `The server refused it (${status}).`);
    if (tries === 12) throw new Error("The server does not answer.");
    trouble("The server does not answer. Trying again …");
    await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** tries, 5000)));
  }
}

function begin(turn) {
  changing = turn && { turn, again: turn === [...turns.values()].at(-1) };
  $("prompt").value = turn ? turn.text : "";
  $("prompt").focus();
  grow();
  showState();
}

async function send() {
  const text = $("prompt").value.trim();
  if (!text || sending) return;
  const { turn, again } = changing ?? { again: true };
  sending = true;
  showState();
  try {
    if (again) {
      await request("POST", `/c/${sid}`, { key: randomId(), body: { text, mid: turn?.mid ?? randomId(), supersedes: turn?.answer } });
      scrollTo(0, document.body.scrollHeight);
    } else {
      await request("PUT", `/c/${sid}/messages/${turn.mid}`, { body: { text } });
    }
    begin(null);
  } catch (error) {
    trouble(`Not sent. ${error.message}`);
  }
  sending = false;
  showState();
}

async function stop() {
  const id = active();
  if (!id) return;
  $("stop").disabled = true;
  try {
    await request("POST", `/streams/${id}/cancel`);
  } catch (error) {
    trouble(`Not stopped. ${error.message}`);
    $("stop").disabled = false;
  }
}

/** The button itself asks for confirmation. */
function ask(button, asks) {
  button.classList.toggle("asks", asks);
  button.textContent = asks ? "Delete it and its answer?" : "Delete";
}

async function discard(turn) {
  const button = turn.element.querySelector(".delete");
  if (!button.classList.contains("asks")) return ask(button, true);
  ask(button, false);
  button.disabled = true;
  try {
    await request("DELETE", `/c/${sid}/messages/${turn.mid}`);
    $("prompt").focus();
  } catch (error) {
    trouble(`Not deleted. ${error.message}`);
    button.disabled = false;
  }
}

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("prompt").addEventListener("input", () => {
  grow();
  showState();
});
$("stop").addEventListener("click", stop);
$("keep").addEventListener("click", () => begin(null));

// --- another device

$("share").addEventListener("click", () => {
  const opens = $("sharing").hidden;
  const followsEnd = isAtEnd();
  $("sharing").hidden = !opens;
  $("share").setAttribute("aria-expanded", opens);
  $("address").value = location.href;
  $("local").hidden = !["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  $("qr").hidden = !$("local").hidden;
  if (opens && $("local").hidden) $("qr").src = `/c/${sid}/qr.svg`;
  if (followsEnd) scrollTo(0, document.body.scrollHeight);
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("copy").textContent = "Copied";
  } catch {
    // A page that did not come over HTTPS may not write to the clipboard.
    $("address").select();
  }
});

$("prompt").focus();
