/**
 * One stream of the server, for as long as it takes: an EventSource that also survives what ends an EventSource.
 *
 * A lost connection, and a server that shuts down, are an EventSource's own matter: it asks again with the id of its last event.
 * It gives up for good where the answer is not a stream, such as the 502 of a proxy. Then we ask what is the matter, and go on
 * from our place, or begin with a snapshot if the server no longer has what follows it.
 */

const WAITS = [500, 1000, 2000, 4000, 8000, 15000];
// A server that shuts down accepts a browser, tells it when to come back, and closes.
const SETTLED = 300;

/**
 * @param {string} url
 * @param {{
 *   events: Record<string, (data: any) => void>,  // by name; "message" are those without one
 *   last?: string,                                // the name of the last event
 *   connection?: (isLive: boolean) => void,       // whenever that changes
 *   gone?: () => void,                            // there is no such stream
 * }} handlers
 */
export function followStream(url, { events, last, connection = () => {}, gone = () => {} }) {
  let source, place, waiting, settling;
  let failures = 0;
  let isLive = null;
  let isOver = false;

  function tell(live) {
    clearTimeout(settling);
    if (live) failures = 0;
    if (live !== isLive) connection((isLive = live));
  }

  function open() {
    source?.close();
    clearTimeout(waiting);
    source = new EventSource(place ? `${url}?after=${place}` : `${url}?view=snapshot`);
    const mine = source;
    source.onopen = () => {
      clearTimeout(settling);
      settling = setTimeout(tell, SETTLED, true);
    };
    source.onerror = () => {
      if (mine !== source || isOver) return;
      tell(false);
      if (source.readyState === EventSource.CLOSED) again();
    };
    for (const [name, handle] of Object.entries(events)) {
      source.addEventListener(name, (event) => {
        if (mine !== source || isOver) return;
        place = event.lastEventId;
        if (name === last) close();
        tell(true);
        handle(JSON.parse(event.data));
      });
    }
  }

  /** The EventSource gave up. */
  function again() {
    waiting = setTimeout(async () => {
      let status = 0;
      try {
        status = (await fetch(place ? `${url}?after=${place}` : url, { method: "HEAD", cache: "no-store" })).status;
      } catch {
        // Nobody answers.
      }
      if (isOver) return;
      if (status === 404) {
        close();
        gone();
      } else if (status === 200 || status === 204 || status === 410) {
        if (status !== 200) place = undefined;
        open();
      } else {
        again();
      }
    }, WAITS[Math.min(failures++, WAITS.length - 1)]);
  }

  /** The device was asleep or offline: its connection may be dead, and an EventSource does not notice. */
  function wake() {
    if (document.visibilityState === "visible" && navigator.onLine) open();
  }

  function offline() {
    tell(false);
  }

  function close() {
    isOver = true;
    clearTimeout(waiting);
    clearTimeout(settling);
    source.close();
    removeEventListener("online", wake);
    removeEventListener("offline", offline);
    removeEventListener("pageshow", restored);
    document.removeEventListener("visibilitychange", seen);
  }

  let hiddenAt = 0;
  function seen() {
    if (document.visibilityState === "hidden") hiddenAt = Date.now();
    else if (Date.now() - hiddenAt > 30000) wake();
  }

  function restored(event) {
    if (event.persisted) wake();
  }

  addEventListener("online", wake);
  addEventListener("offline", offline);
  addEventListener("pageshow", restored);
  document.addEventListener("visibilitychange", seen);
  open();
  return { close };
}
