/**
 * A conversation, as its feed tells it: which messages there are, and which answers run. Every tab and every device gets the same
 * feed, so a second tab learns of what begins in the first one, and opens and closes the same streams.
 */

import { followStream } from "./stream.js";

/**
 * @param {string} sid
 * @param {{
 *   messages: (all: {mid: string, role: string, data: any}[]) => void,   // instead of those so far
 *   message: (one: {mid: string, role: string, data: any}) => void,
 *   edited: (mid: string, data: any) => void,
 *   deleted: (mid: string) => void,
 *   answer: (id: string, how: {text: string, state: string, reason?: string}) => void,
 *   readers: (count: number) => void,             // how many follow it now, in all tabs and on all devices
 *   connection: (isLive: boolean) => void,
 * }} view
 */
export function followSession(sid, view) {
  const answers = new Map(); // of each named answer: {text, state, reason, stream, isLive}
  let feedIsLive = false;

  function tellConnection() {
    const open = [...answers.values()].filter((answer) => answer.stream);
    view.connection(feedIsLive && open.every((answer) => answer.isLive !== false));
  }

  function change(id, how) {
    const answer = answers.get(id);
    Object.assign(answer, how);
    view.answer(id, answer);
  }

  /** Read an answer, from its current text to its end. */
  function read(id) {
    if (answers.has(id)) return;
    const answer = { text: "", state: "live", stream: null, isLive: null };
    answers.set(id, answer);
    answer.stream = followStream(`/streams/${id}`, {
      last: "end",
      events: {
        snapshot: ({ text }) => change(id, { text }),
        message: ({ text }) => change(id, { text: answer.text + text }),
        reset: () => change(id, { text: "" }),
        end: ({ outcome, reason, error }) => finish(id, outcome, reason ?? error?.message ?? error?.reason),
      },
      connection: (isLive) => {
        answer.isLive = isLive;
        tellConnection();
      },
      gone: () => finish(id, "gone"),
    });
    view.answer(id, answer);
  }

  function finish(id, state, reason) {
    const answer = answers.get(id);
    answer.stream?.close();
    change(id, { state, reason, stream: null });
    tellConnection();
  }

  const feed = followStream(`/sessions/${sid}/feed`, {
    events: {
      // The first event, and sometimes one that replaces old ones.
      snapshot: ({ messages, streams }) => {
        view.messages(messages);
        // Running answers come first, because a browser has few connections.
        streams.forEach(({ id }) => read(id));
        messages.forEach(({ data }) => data.answer && read(data.answer));
      },
      message: view.message,
      edited: ({ mid, data }) => view.edited(mid, data),
      deleted: ({ mid }) => view.deleted(mid),
      started: ({ id, supersedes = [] }) => {
        for (const old of supersedes) if (answers.get(old)?.stream) finish(old, "cancelled", "superseded");
        // A message names its answer a moment before that begins.
        if (answers.get(id)?.state === "gone") answers.delete(id);
        read(id);
      },
      cancelled: ({ id }) => {
        if (answers.get(id)?.stream) change(id, { state: "stopping" });
      },
      // Its stream reports the same, and has the last words. An unread stream is read now.
      ended: ({ id }) => read(id),
      presence: ({ readers }) => view.readers(readers),
    },
    query: "&presence=1",
    connection: (isLive) => {
      feedIsLive = isLive;
      tellConnection();
    },
  });

  return {
    close() {
      feed.close();
      for (const answer of answers.values()) answer.stream?.close();
    },
  };
}
