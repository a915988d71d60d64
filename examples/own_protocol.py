"""An endpoint that numbers events inside its JSON and expects the number in the query."""

import json

import resumable_stream as rs
from resumable_stream.protocols import CursorProtocol
from resumable_stream.testing import Fault, FlakyServer, ServerEvent

ACME = CursorProtocol(
    read="seq",  # path of the cursor in the JSON of `data`
    send="query:after",  # where it goes in the next request
    sequence="contiguous",  # 1, 2, 3 …: a jump is a gap, which is requested again
    first_sequence=1,
    text="delta",  # what `iter_text()` yields
    end=lambda event: event.event == "done",
    name="Acme",
)

WORDS = ["An ", "answer ", "of ", "five ", "words"]
LOG = [ServerEvent(data=json.dumps({"seq": n, "delta": word})) for n, word in enumerate(WORDS, 1)]
LOG.append(ServerEvent(event="done", data=json.dumps({"seq": 6})))


def seq_of(frame: bytes) -> str:
    return str(json.loads(frame.partition(b"data: ")[2])["seq"])


faults = [Fault.cut(after_events=2), Fault.hole(after_events=0)]
with FlakyServer(LOG, faults, cursor_param="after", cursor_of=seq_of) as server:
    with rs.connect("GET", server.url, protocol=ACME) as stream:
        text = stream.read_text()
    print(text, stream.outcome, [request.query for request in server.requests])
    assert (text, stream.outcome) == ("".join(WORDS), rs.Outcome.COMPLETED)
