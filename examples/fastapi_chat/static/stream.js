/**
 * One stream of the server, for as long as it takes: an EventSource that also survives what ends an EventSource.
 *
 * A lost connection, and a server that shuts down, are an EventSource's own matter: it asks again with the id of its last event.
 * It gives up for good where the answer is not a stream, such as the 502 of a proxy. Then we ask what is the matter, and go on
 * from our place, or begin with a snapshot if the server no longer has what follows it.
 */

const WAITS = [500, 1000, 2000, 4000, 8000, 15000];
// A server that shuts down accepts a browser, tells it when to reconnect, and closes.
const SETTLED = 300;
// A short look at another tab does not close the connection.
const HIDDEN = 5000;

/**
 * @param {string} url
 * @param {{
 *   events: Record<string, (data: any) => void>,  // by name; "message" are those without one
 *   last?: string,                                // the name of the last event
 *   connection?: (isLive: boolean) => void,       // whenever that changes
 *   gone?: () => void,                            // the stream does not exist
 *   query?: string,                               // of every request, such as "&presence=1"
 * }} handlers
 */
export function followStream(url, { events, last, connection = () => {}, gone = () => {}, query = "" }) {
  let source, place, waiting, settling, sleeping;
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
    source = new EventSource(`${url}?${place ? `after=${place}` : "view=snapshot"}${query}`);
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
        // An event without an id, such as the number of readers, does not move our place.
        place = event.lastEventId || place;
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
        // No answer.
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

  /** Ask from our place: the device was asleep or offline, and an EventSource does not notice that its connection is dead. */
  function wake() {
    if (document.visibilityState === "visible" && navigator.onLine) open();
  }

  /** Close the connection of a hidden tab: a browser has only six per host, for all tabs. */
  function sleep() {
    clearTimeout(waiting);
    clearTimeout(settling);
    source.close();
  }

  function seen() {
    clearTimeout(sleeping);
    if (document.visibilityState === "hidden") sleeping = setTimeout(sleep, HIDDEN);
    else wake();
  }

  function offline() {
    tell(false);
  }

  function restored(event) {
    if (event.persisted) wake();
  }

  function close() {
    isOver = true;
    clearTimeout(sleeping);
    sleep();
    removeEventListener("online", wake);
    removeEventListener("offline", offline);
    removeEventListener("pageshow", restored);
    document.removeEventListener("visibilitychange", seen);
  }

  addEventListener("online", wake);
  addEventListener("offline", offline);
  addEventListener("pageshow", restored);
  document.addEventListener("visibilitychange", seen);
  open();
  // It may have been opened in a background tab.
  if (document.visibilityState === "hidden") seen();
  return { close };
}
