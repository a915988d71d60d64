"""
Break the package on purpose, one line at a time, and check that the tests of the broken part fail.

    python scripts/mutants.py                 all of them, two at once
    python scripts/mutants.py ledger file     only those whose name, file or description contains one of the words
    python scripts/mutants.py --check         only whether every piece of text to break is still there, once

A surviving mutant means that no test covers a sentence of docs/guarantees.md: write that test, in the part's own test file.
A text that is not found has moved: update the table below. Both end with status 1.

The working tree is not touched: each process works in its own copy.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "resumable_stream",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "pyproject.toml",
    "README.md",
    "mkdocs.yml",
    "CHANGELOG.md",
)
SOAK = "tests/soak -k each_kind_of_stream_arrives_whole_in_each_row"
# Longer than any of these sets of tests takes, so a mutant that never ends is caught too.
LONGEST = 240.0


@dataclass(frozen=True)
class Mutant:
    """
    Args:
        name: Short.
        what: What is broken, as a sentence about the package.
        file: Relative to `resumable_stream/`.
        old, new: A text that occurs once in the file, and its replacement.
        tests: Arguments for pytest: the tests of its own area.
        soak: The random-fault soak must fail too.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: str
    soak: bool = False


RULE = "tests/core/test_rule_"
CORE = "tests/core --ignore-glob=*/test_every_*.py --ignore-glob=*/test_properties.py"

MUTANTS = (
    # --- core: the end
    Mutant(
        "slow-empty",
        "a slow empty answer ends a stream without a marker",
        "_core/ending.py",
        "        if requests.asking and quick and ledger.fresh == 0:\n",
        "        if requests.asking and ledger.fresh == 0:\n",
        RULE + "07_end.py",
    ),
    Mutant(
        "believed-twice",
        "quick answers are believed twice, not three times",
        "_core/ending.py",
        "        return self._quick_answers <= BELIEVED\n",
        "        return self._quick_answers < BELIEVED\n",
        RULE + "07_end.py",
    ),
    Mutant(
        "over-unasked",
        "a run reported as over is believed without requesting the rest",
        "_core/side.py",
        "        if asked < found.asks:\n",
        "        if asked < found.asks - 1:\n",
        RULE + "07_end.py",
    ),
    Mutant(
        "over-anywhere",
        "a run reported as over is believed although something new came since",
        "_core/side.py",
        "state.over[:2] == (found.outcome, state.offset)",
        "state.over.outcome is found.outcome",
        RULE + "07_end.py",
    ),
    Mutant(
        "partial-is-end",
        "a close inside an event is an end",
        "_core/ending.py",
        "        if broken_off:\n            return self.on_cut(broken_off, now)\n",
        "        if False:\n            return self.on_cut(broken_off, now)\n",
        RULE + "07_end.py",
    ),
    Mutant(
        "complete-kept-open",
        "a cut after the settled end causes a request",
        "_core/ending.py",
        "        if self.settled is not None and not self.wants_more(now):\n            return Done(self.settled)\n",
        "        if False:\n            return Done(Outcome.ENDED)\n",
        CORE,
    ),
    Mutant(
        "marker-upgrades",
        "a marker makes an answer complete that stopped early",
        "_core/ending.py",
        "        return self.settled if end is Outcome.COMPLETED and self.settled is not None else end\n",
        "        return end\n",
        "tests/core/test_rule_07_settled.py tests/core/test_rule_07_end.py tests/protocols/test_openai_chat.py",
    ),
    Mutant(
        "asked-twice",
        "an answer without an event is requested for ever",
        "_core/ending.py",
        "            self._asked_empty = True\n",
        "            self._asked_empty = False\n",
        RULE + "07_end.py",
    ),
    # --- core: progress, waits, clocks
    Mutant(
        "prompt-free",
        "the prompt reconnect is free for ever",
        "_core/budget.py",
        "        if self._free:\n            self._free = False\n",
        "        if self._free:\n            pass\n",
        RULE + "02_progress.py",
    ),
    Mutant(
        "retry-forever",
        "Retry-After applies to every later wait",
        "_core/budget.py",
        "        self._retry_after = 0.0\n        return seconds\n",
        "        return seconds\n",
        RULE + "02_progress.py",
    ),
    Mutant(
        "retry-unbounded",
        "the server's retry: is not capped",
        "_core/budget.py",
        "        self._retry = min(milliseconds / 1000, self._settings.max_server_wait)\n",
        "        self._retry = milliseconds / 1000\n",
        RULE + "02_progress.py",
    ),
    Mutant(
        "local-date",
        "a Retry-After date without a zone is local time",
        "_core/budget.py",
        "date if date.tzinfo is not None else date.replace(tzinfo=UTC)",
        "date",
        RULE + "02_progress.py",
    ),
    Mutant(
        "restarts-reset",
        "progress resets the count of restarts",
        "_core/budget.py",
        "        self._restarts += 1\n",
        "        self._restarts = 1\n",
        RULE + "08_lost.py",
    ),
    Mutant(
        "stall-forgets",
        "heartbeats reset the clock of events",
        "_core/clocks.py",
        "        self._waited += now - self.started_at\n",
        "        self._waited = now - self.started_at\n",
        RULE + "04_clocks.py",
    ),
    Mutant(
        "deadline-reads",
        "the deadline does not bound a read",
        "_core/clocks.py",
        '            limits.append((left, "deadline"))\n',
        "            pass\n",
        RULE + "04_clocks.py",
    ),
    Mutant(
        "deadline-waits",
        "the deadline does not bound a wait",
        "_core/machine.py",
        "        seconds = wait.seconds if left is None else min(wait.seconds, max(left, 0.0))\n",
        "        seconds = wait.seconds\n",
        RULE + "04_clocks.py",
    ),
    Mutant(
        "restart-twice",
        "a stored result that is forgotten is generated again and again",
        "_core/lost.py",
        '        if choice == "restart" and not stored and',
        '        if choice == "restart" and',
        RULE + "08_lost.py",
    ),
    Mutant(
        "refresh-once",
        "credentials are refreshed once per stream",
        "_core/machine.py",
        "            self._budget.progress()\n            self.requests.progress()\n",
        "            self._budget.progress()\n",
        CORE,
    ),
    # --- core: paying twice
    Mutant(
        "post-again",
        "a POST that may have arrived is sent again",
        "_core/reconnecting.py",
        "        if sent and not self.requests.may_repeat():\n",
        "        if sent and False:\n",
        RULE + "09_identity.py",
    ),
    Mutant(
        "post-500",
        "a POST that was answered with 500 is sent again",
        "_core/heads.py",
        "        again = status in self.settings.statuses and (self.requests.may_repeat() or status in NOT_ACCEPTED)\n",
        "        again = status in self.settings.statuses\n",
        RULE + "09_identity.py",
    ),
    # --- core: the ledger
    Mutant(
        "commit-late",
        "the data of a committed place are looked up later",
        "_core/ledger.py",
        "        return self._committed.since if place is self._committed.place else self._since(place)\n",
        "        return self._since(place)\n",
        CORE,
    ),
    Mutant(
        "roll-back",
        "an interrupted batch leaves its problem behind",
        "_core/examining.py",
        "        self._tip, self.answer, self.problem, (numbers, repeats, resets, memory, seams) = kept\n",
        "        self._tip, self.answer, _, (numbers, repeats, resets, memory, seams) = kept\n",
        CORE,
    ),
    Mutant(
        "roll-back-memory",
        "an interrupted batch is remembered",
        "_core/memory.py",
        "        while self.items and self.items[-1].offset >= offset:\n            self.items.pop()\n",
        "",
        CORE,
    ),
    Mutant(
        "roll-back-held",
        "an interrupted batch takes the events held before it",
        "_core/seams.py",
        "        self.held = list(held)\n",
        "        self.held = []\n",
        "tests/core/test_interrupted_batch.py",
    ),
    Mutant(
        "roll-back-part",
        "an interrupted batch leaves the knowledge of its part of the ledger",
        "_core/examining.py",
        "        self.repeats.put_back(repeats)\n",
        "",
        CORE,
    ),
    Mutant(
        "ambiguous-id",
        "an id that two events share names the newest",
        "_core/memory.py",
        "            index[key] = item if self._unique or key not in index else _AMBIGUOUS\n",
        "            index[key] = item\n",
        CORE,
    ),
    Mutant(
        "digest-kept",
        "the replay of a folded log is not compared",
        "_core/overlap.py",
        "            if index == self._base - 1 and self._digest != self._wanted:\n",
        "            if False:\n",
        CORE,
    ),
    Mutant(
        "prefix-loose",
        "a replay from the start may differ",
        "_core/overlap.py",
        '        return "diverged" if self._strict else "over"\n',
        '        return "over"\n',
        CORE,
    ),
    Mutant(
        "prefix-none",
        "repeated events without ids are not recognised",
        "_core/repeats.py",
        "        if log is not None and (logged or replays):\n",
        "        if log is not None and replays:\n",
        RULE + "05_duplicates.py",
        True,
    ),
    Mutant(
        "no-overlap",
        "nothing is expected again after a reconnect",
        "_core/repeats.py",
        "        self.overlap = self._window\n",
        "        self.overlap = 0\n",
        RULE + "05_duplicates.py",
        True,
    ),
    Mutant(
        "beginning",
        "a server that ignores the cursor is not recognised",
        "_core/beginning.py",
        "        self._at = 0 if known else None\n",
        "        self._at = None\n",
        RULE + "05_duplicates.py",
        True,
    ),
    Mutant(
        "jump",
        "in the steady state a jump of the numbers is not detected",
        "_core/lanes.py",
        "        if (sequences := [item.sequence for item in items]) != list(numbers):\n",
        "        if (sequences := [item.sequence for item in items])[:0]:\n",
        RULE + "06_gaps.py",
    ),
    # --- core: origins, saving, skimming
    Mutant(
        "other-origin",
        "a resume URL on another origin is accepted",
        "_contract/origins.py",
        "    if seen != origin:\n",
        "    if not seen:\n",
        RULE + "10_origins.py",
    ),
    Mutant(
        "tls-down",
        "a redirect may give up TLS",
        "_core/origins.py",
        '(here.startswith("https:") and not there.startswith("https:"))',
        "False",
        RULE + "10_origins.py",
    ),
    Mutant(
        "secret-redirect",
        "a protocol's header follows a redirect to another origin",
        "_core/origins.py",
        "name.lower() not in _HARMLESS and value != cursor",
        "False",
        RULE + "10_origins.py",
    ),
    Mutant(
        "bare-not",
        "a redirect to another origin carries what the client adds",
        "_core/origins.py",
        '    return Request(method="GET", url=target, headers=request.headers, bare=True)\n',
        '    return Request(method="GET", url=target, headers=request.headers)\n',
        RULE + "10_origins.py",
    ),
    Mutant(
        "save-floor",
        "a save may follow the previous one at once",
        "_core/saving.py",
        "        self.earliest = now + self._floor\n",
        "        self.earliest = now\n",
        "tests/core/test_saving.py",
    ),
    Mutant(
        "save-again",
        "saved events are written again",
        "_core/saving.py",
        "        known = place == self._place and reset == self._reset\n",
        "        known = False\n",
        "tests/core/test_saving.py",
    ),
    Mutant(
        "skim-cr",
        "the skimmer overlooks CR",
        "_core/skimming.py",
        "        front, chunk = self.front, self.front + chunk\n        if _CR in chunk or _NUL in chunk:\n",
        "        front, chunk = self.front, self.front + chunk\n        if _NUL in chunk:\n",
        "tests/core/test_skimming.py",
    ),
    Mutant(
        "skim-count",
        "the skimmer ignores numbers",
        "_core/skimming.py",
        "        held = self.held\n        if len(held) == _KEPT and not self._make_room():\n            return None\n"
        '        if self._counts:\n            if match[1] != b"%d" % self._next:\n',
        "        held = self.held\n        if len(held) == _KEPT and not self._make_room():\n            return None\n"
        "        if self._counts:\n            if False:\n",
        "tests/core/test_skimming.py",
    ),
    # --- framing
    Mutant(
        "split-crlf",
        "a CRLF that two chunks share ends a line twice",
        "framing/sse.py",
        "            self._skip_lf = data[-1] == _CR\n",
        "            self._skip_lf = False\n",
        "tests/framing/test_sse.py",
    ),
    Mutant(
        "bom",
        "a byte-order mark is part of the first field",
        "framing/sse.py",
        "            self._started = True\n            return data.removeprefix(_BOM)\n",
        "            self._started = True\n            return data\n",
        "tests/framing/test_sse.py",
    ),
    Mutant(
        "line-bound",
        "the length of a line is unbounded",
        "framing/sse.py",
        "        if len(pending) > self._line_bytes and self._started:\n",
        "        if False:\n",
        "tests/framing/test_sse.py",
    ),
    Mutant(
        "half-line",
        "a last line of NDJSON is believed although it is cut",
        "framing/ndjson.py",
        "Python can follow\n            return []\n",
        "Python can follow\n            pass\n",
        "tests/framing/test_ndjson.py",
    ),
    Mutant(
        "raw-skip",
        "bytes that were delivered are delivered again",
        "framing/raw.py",
        "            data = data[skipped:]\n",
        "            data = data[0:]\n",
        "tests/framing/test_raw.py",
    ),
    Mutant(
        "message-bound",
        "a message may have any size if it comes in fragments",
        "framing/websocket.py",
        "len(self._message) + length > self._event_bytes",
        "length > self._event_bytes",
        "tests/framing/test_websocket.py",
    ),
    Mutant(
        "half-message",
        "a close frame inside a message counts as an end",
        "framing/websocket.py",
        "self.partial = bool(self._opcode)",
        "self.partial = False",
        "tests/framing/test_websocket.py",
    ),
    Mutant(
        "masked-server",
        "masked bytes of a server are taken for its message",
        "framing/websocket.py",
        "        if length & _MASKED:\n",
        "        if False:\n",
        "tests/framing/test_websocket.py",
    ),
    # --- protocols
    Mutant(
        "place-inherited",
        "an inherited place() passes over the position() of a subclass",
        "_contract/judging.py",
        "    return at < len(classes) and all(at <= declared(method) for method in methods)\n",
        "    return at < len(classes)\n",
        "tests/protocols/test_abilities.py",
    ),
    Mutant(
        "memo-stale",
        "what a memo has forgotten comes back from the checkpoint before",
        "_contract/values.py",
        "                found.pop(name, None)\n",
        "                pass\n",
        "tests/protocols/test_memo.py",
    ),
    Mutant(
        "weak-tag",
        "a weak entity tag vouches for a range",
        "protocols/byte_range.py",
        '            if (etag := state.memo(_Memo).etag) and not etag.startswith("W/"):\n',
        "            if etag := state.memo(_Memo).etag:\n",
        "tests/protocols/test_byte_range.py",
    ),
    Mutant(
        "other-document",
        "a range of another document is taken",
        "protocols/byte_range.py",
        "            if self._other_document(headers, state):\n",
        "            if False:\n",
        "tests/protocols/test_byte_range.py",
    ),
    Mutant(
        "padding",
        "OpenAI's padding is part of an event",
        "protocols/openai_responses.py",
        '_PADDING.sub("", event.data) if \'"obfuscation"\' in event.data else event.data',
        "event.data",
        "tests/protocols/test_openai_responses.py",
    ),
    Mutant(
        "reason-stop",
        "an unknown finish_reason is a complete answer",
        "protocols/openai_chat.py",
        "_REASONS.get(str(reason), Outcome.INCOMPLETE)",
        "_REASONS.get(str(reason), Outcome.COMPLETED)",
        "tests/protocols/test_openai_chat.py",
    ),
    Mutant(
        "done-proves",
        "[DONE] proves a chat without its finish_reason",
        "protocols/openai_chat.py",
        "            return unproven_done(event, self._without, self._advice)\n",
        "            return Outcome.COMPLETED if event.data.startswith(DONE) else None\n",
        "tests/protocols/test_openai_chat.py",
    ),
    Mutant(
        "gemini-two",
        "Gemini's status is believed after two empty answers",
        "protocols/gemini_interactions.py",
        "_BELIEVED: Final = 3\n",
        "_BELIEVED: Final = 2\n",
        "tests/protocols/test_gemini_interactions.py",
    ),
    Mutant(
        "mcp-409",
        "MCP's 409 is final",
        "protocols/mcp.py",
        "        if status == 409:\n",
        "        if status == 9:\n",
        "tests/protocols/test_mcp.py",
    ),
    Mutant(
        "a2a-refusal",
        "an A2A refusal in an event is an error",
        "protocols/a2a.py",
        "    def refusal(self, event: Any, state: StreamState) -> Lost | None:\n",
        "    def refusal(self, event: Any, state: StreamState) -> Lost | None:\n        return None\n",
        "tests/protocols/test_a2a.py",
    ),
    Mutant(
        "inclusive",
        "an inclusive server is asked for the last event again",
        "protocols/cursor.py",
        "            cursor = str(state.sequence + 1)\n",
        "            cursor = str(state.sequence)\n",
        "tests/protocols/test_cursor.py",
    ),
    Mutant(
        "langgraph-cursor",
        "LangGraph is asked for what follows the newest id, which may be shared",
        "protocols/langgraph.py",
        "        source.cursor = memo.before\n",
        "        source.cursor = memo.last\n",
        "tests/protocols/test_langgraph.py",
        True,
    ),
    # --- drivers
    Mutant(
        "proxy-sent",
        "a proxy's refusal counts as sent",
        "_drivers/http.py",
        ', *_loaded("ProxyError"))',
        ")",
        "tests/drivers/test_failures.py",
    ),
    Mutant(
        "tolerance",
        "sync clocks may be half as long again",
        "_drivers/sync.py",
        "_TOLERANCE = 0.01\n",
        "_TOLERANCE = 0.5\n",
        "tests/drivers/test_clocks.py",
    ),
    Mutant(
        "bare-auth",
        "a bare request keeps the client's auth",
        "_drivers/http.py",
        '            arguments["auth"] = None\n',
        "            pass\n",
        "tests/drivers/test_redirects.py",
    ),
    Mutant(
        "saved-twice",
        "a cancelled save is written again",
        "_drivers/loop.py",
        "            if written or self._wrote(save):\n                self._saved(save)\n",
        "            if written or self._wrote(save):\n                pass\n",
        "tests/drivers/test_leaving.py tests/drivers/test_polling.py",
    ),
    Mutant(
        "last-save",
        "the last save in async can be cancelled",
        "_drivers/async_.py",
        "        with anyio.move_on_after(_SAVE_SECONDS, shield=True) as scope:\n",
        "        with anyio.move_on_after(_SAVE_SECONDS) as scope:\n",
        "tests/drivers/test_leaving.py tests/drivers/test_stores.py",
    ),
    # --- stores
    Mutant(
        "memory-fence",
        "an older writer overwrites a newer one in memory",
        "stores/memory.py",
        "            if record is None or record.fence != fence:\n",
        "            if record is None:\n",
        "tests/stores/test_contract.py",
    ),
    Mutant(
        "file-fence",
        "an older writer overwrites a newer one in a file",
        "stores/file.py",
        "            if state is None or state.fence != fence:\n",
        "            if state is None:\n",
        "tests/stores/test_contract.py tests/stores/test_file.py",
    ),
    Mutant(
        "leftovers",
        "the remains of a crash after the events are kept",
        "stores/file.py",
        "            file.seek(end)\n            file.truncate()\n",
        "",
        "tests/stores/test_contract.py tests/stores/test_file.py",
    ),
    Mutant(
        "file-mode",
        "others may read a checkpoint",
        "stores/file.py",
        '        fd = os.open(files.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)\n',
        '        fd = os.open(files.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)\n',
        "tests/stores/test_file.py",
    ),
    Mutant(
        "sqlite-fence",
        "an older writer overwrites a newer one in SQLite",
        "stores/sqlite.py",
        "            if place is None or place.fence != fence:\n",
        "            if place is None:\n",
        "tests/stores/test_contract.py tests/stores/test_sqlite.py",
    ),
    Mutant(
        "sqlite-transaction",
        "events and place are two steps in SQLite",
        "stores/sqlite.py",
        '                    database.execute("BEGIN IMMEDIATE")\n',
        "                    pass\n",
        "tests/stores/test_sqlite.py",
    ),
    Mutant(
        "sqlite-fork",
        "a connection to SQLite is carried across a fork",
        "stores/sqlite.py",
        "            held.enter_context(handle.lock)\n            handle.close()\n",
        "            held.enter_context(handle.lock)\n",
        "tests/stores/test_sqlite.py",
    ),
    Mutant(
        "sqlite-mode",
        "others may read a database",
        "stores/sqlite.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))\n",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))\n",
        "tests/stores/test_sqlite.py",
    ),
    Mutant(
        "sqlite-inode",
        "a deleted database is still written",
        "stores/sqlite.py",
        "            if handle.inode == _inode(self._path):\n",
        "            if handle.inode:\n",
        "tests/stores/test_sqlite.py",
    ),
    Mutant(
        "redis-fence",
        "an older writer overwrites a newer one in Redis",
        "stores/redis.py",
        "if f[1] ~= ARGV[1] then return {'FENCED', f[1]} end\n",
        "",
        "tests/stores/test_contract.py",
    ),
    Mutant(
        "redis-lost-reply",
        "a save whose reply was lost is stored twice",
        "stores/redis.py",
        "if first > 0 and seq >= first then\n",
        "if false then\n",
        "tests/stores/test_redis.py",
    ),
    Mutant(
        "redis-late",
        "a late save takes effect",
        "stores/redis.py",
        "if seq > this then return {'LATE'} end\n",
        "",
        "tests/stores/test_redis.py",
    ),
    Mutant(
        "redis-settle",
        "after an interrupt a save may still be done",
        "stores/redis.py",
        "            doubt.interrupted = True\n            raise\n",
        "            raise\n",
        "tests/stores/test_redis.py",
    ),
    Mutant(
        "redis-evicted",
        "an answer with evicted events is a shorter answer",
        "stores/redis.py",
        "        if length != place.count:\n",
        "        if False:\n",
        "tests/stores/test_redis.py",
    ),
    Mutant(
        "redis-secret",
        "an error of Redis repeats the password",
        "stores/redis.py",
        "            failure, cause = self._explained(exc), self._scrubber.harmless(exc)\n",
        "            failure, cause = self._explained(exc), exc\n",
        "tests/stores/test_redis.py",
    ),
    # --- transports
    Mutant(
        "coded",
        "a spliced response says it is coded",
        "transports/_splice.py",
        '            gone.add(b"content-encoding")\n',
        "            pass\n",
        "tests/transports",
    ),
    # --- the log in Redis
    Mutant(
        "redis-create",
        "a repeated create finds another writer",
        "server/_redis_scripts.py",
        "if r and not r.out and (r.by == ARGV[1] or (r.epoch == ARGV[2] and r.fence == 1 and r.n == 0)) then\n",
        "if false then\n",
        "tests/server/test_redis_faults.py",
    ),
    Mutant(
        "redis-evicted",
        "evicted spans are not noticed",
        "server/_redis_scripts.py",
        "  if redis.call('XLEN', K[2]) ~= r.c then return {'LOST'} end\n",
        "",
        "tests/server/test_redis_verdicts.py",
    ),
    Mutant(
        "redis-full",
        "a stream cannot end while the memory of the server is full",
        "server/_redis_scripts.py",
        "expire(r.keep)\nlocal refused = also(5, 6)",
        "local refused = also(5, 6)",
        "tests/server/test_redis_damage.py",
    ),
    Mutant(
        "redis-page",
        "a page ends too early after a partly read span",
        "server/_redis_scripts.py",
        "  local from = last()\n",
        "  local from = last() and last() - 1000000\n",
        "tests/server/test_redis_log.py",
    ),
    Mutant(
        "redis-noscript",
        "calls are repeated out of order when a server has forgotten a script",
        "server/_redis_client.py",
        "        if whose in unknown:\n            again.append(place)",
        "        if isinstance(reply, NoScriptError):\n            again.append(place)",
        "tests/server/test_redis_faults.py",
    ),
    Mutant(
        "redis-log-secret",
        "a password repeated by the server is shown",
        "_scrubbing.py",
        "        for secret in self._secrets:\n",
        "        for secret in ():\n",
        "tests/server/test_redis_damage.py",
    ),
    Mutant(
        "redis-missed",
        "a resubscribed stream does not report lost bells",
        "server/_redis_bells.py",
        "                bells.ring(Bell(id=channel.stream_id), 0)\n",
        "                pass\n",
        "tests/server/test_redis_bells.py",
    ),
    Mutant(
        "redis-silent",
        "a silent connection is kept",
        "server/_redis_bells.py",
        "            if self._last < asked:",
        "            if False:",
        "tests/server/test_redis_bells.py",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants that contain one of these words")
    parser.add_argument("--check", action="store_true", help="only look whether each text is there")
    parser.add_argument("--jobs", type=int, default=2, help="at once (default 2)")
    options = parser.parse_args()
    chosen = [
        one for one in MUTANTS if not options.words or any(word in f"{one.name} {one.file} {one.what}" for word in options.words)
    ]
    moved = [one for one in chosen if (ROOT / "resumable_stream" / one.file).read_text(encoding="utf-8").count(one.old) != 1]
    for one in moved:
        print(f"{one.name}: its text does not stand in resumable_stream/{one.file} exactly once:\n{one.old}")
    if options.check or moved or not chosen:
        print(f"{len(chosen) - len(moved)} of {len(chosen)} texts found")
        return bool(moved) or not chosen
    started = time.perf_counter()
    runs: queue.SimpleQueue[tuple[Mutant, str]] = queue.SimpleQueue()
    for one in chosen:
        runs.put((one, one.tests))
        if one.soak:
            runs.put((one, SOAK))
    print(f"{len(chosen)} mutants", flush=True)
    verdicts: list[bool] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        workers = [
            threading.Thread(target=_work, args=(runs, Path(directory) / str(number), verdicts)) for number in range(options.jobs)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    survived = len(verdicts) - sum(verdicts)
    print(f"{sum(verdicts)} caught, {survived} survived, {time.perf_counter() - started:.0f} s")
    return bool(survived)


def _work(runs: queue.SimpleQueue[tuple[Mutant, str]], copy: Path, verdicts: list[bool]) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    while True:
        try:
            one, tests = runs.get_nowait()
        except queue.Empty:
            return
        file = copy / "resumable_stream" / one.file
        whole = file.read_text(encoding="utf-8")
        file.write_text(whole.replace(one.old, one.new), encoding="utf-8")
        began = time.perf_counter()
        try:
            code, last = _test(copy, tests)
        finally:
            file.write_text(whole, encoding="utf-8")
        # 1: tests failed. Anything else (no tests, a wrong argument) is a mistake in the table.
        caught = code == 1
        verdicts.append(caught)
        by = "soak" if tests == SOAK else last
        word = "caught" if caught else f"SURVIVED ({tests})" if code == 0 else f"NOT TESTED (pytest {code})"
        print(f"{word:9} {one.name:18} {one.what}  [{time.perf_counter() - began:.0f} s] {by if caught else ''}", flush=True)


def _test(copy: Path, tests: str) -> tuple[int, str]:
    """Pytest's exit code, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-n", "0", "-p", "no:cacheprovider", "--tb", "no"]
    # Old byte code must not hide a change that keeps the file's size and second.
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests.split()], cwd=copy, env=env, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "never ends"
    failed = [line.split(" - ")[0].removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return done.returncode, failed[0] if failed else ""


if __name__ == "__main__":
    sys.exit(main())
