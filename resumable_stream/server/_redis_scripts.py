"""
The scripts of `RedisLog`: one per verb, so that each question and the change that follows are one step.

They repeat the rules of `_rules`, in the same order; the contract test for all logs compares them. A script checks everything it
reads before it writes: an error halfway does not undo earlier writes.

A stream has four keys with the same tag, so that they are on one node of a Cluster:

    rs:{id}     hash    the record: v epoch fence n b c oldest until keep out head req note nn tk mk k kc cancel by at z
    rs:{id}:s   stream  the spans; the entry of a span is <number of its last event>-0, with b, l, and d or z
    rs:{id}:i   stream  the inbox; the entry of a message is <its place>-0, with m, kind, d
    rs:{id}:x   hash    id of a message → its place

`nn` is the event of the note, `tk` how many messages are dealt with, `mk` the event and the mark of the last append without a
span, and `kc` how many messages the inbox holds. `by` names the call that made the current writer, so that a call repeated after
a lost reply is recognised. `until` is in milliseconds on the server's clock, `keep` is the retention in milliseconds, and `at`
names the history of the server in which the record was last known to be complete. The record's `z` says that the stream was
compacted; an entry's `z` is compressed data, and then its `l` is compressed too.

The channel of a stream has the name of its hash. Outside a Cluster, a script also gets `rs:run`, a sorted set of the running
streams by the end of their leases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

__all__ = ["BELL_BYTES", "Script", "Scripts"]

BELL_BYTES: Final = 64 << 10
"""Largest span that a bell carries. 64 KiB: larger ones are read from the log, once by each process that wants them."""

_COMMON: Final = """
-- Keys of the current stream. The second stream of a script has its keys after those of the first.
local K = KEYS

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function damaged(what)
  error('DAMAGED[' .. what .. ']')
end

local function whole(name, text)
  if not text or text == '' or #text > 16 or string.find(text, '%D') then
    damaged('its ' .. name .. ' is not a whole number')
  end
  return tonumber(text)
end

local function decimal(number)
  return string.format('%.0f', number)
end

local function ring(message)
  redis.call('@PUBLISH@', K[1], message)
end

-- All keys of a stream expire together. At least 1: at 0 the record would be deleted now, and later commands would recreate it
-- without its version. A server out of memory refuses commands that need more, unless the script has written before. Where a
-- stream is ended, claimed or renewed, this call therefore comes first.
local function expire(ms)
  for i = 1, 4 do redis.call('PEXPIRE', K[i], math.max(ms, 1)) end
end

local function expire_like_the_record(key)
  local left = redis.call('PTTL', K[1])
  if left > 0 then redis.call('PEXPIRE', key, left) end
  if left == -1 then redis.call('PERSIST', key) end
end

local function drop(...)
  if redis.call('EXISTS', ...) > 0 then redis.call('UNLINK', ...) end
end

local function forget()
  drop(K[1], K[2], K[3], K[4])
end

-- The index lives as long as its newest entry; the sweep that reads it asks each stream itself.
local function index(run, id, score, ttl)
  if run then
    redis.call('ZADD', run, score, id)
    if redis.call('PTTL', run) < ttl then redis.call('PEXPIRE', run, ttl) end
  end
end

local function unindex(run, id)
  if run then redis.call('ZREM', run, id) end
end

local function lease_end(ms)
  if ms == 0 then return 0 end
  return now + ms
end

-- A server that takes over has another history, and so does one that restarts: writes it had not received are lost without a
-- trace. The call takes a microsecond. Empty if this connection may not ask.
local function history()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

local function load()
  local m = redis.call('HMGET', K[1], 'v', 'epoch', 'fence', 'n', 'b', 'c', 'oldest', 'until', 'k', 'keep', 'out',
    'cancel', 'by', 'at')
  if not m[1] then
    if redis.call('EXISTS', K[1]) == 0 then return nil end
    damaged('it has no version')
  end
  if m[1] ~= '1' then error('LATER[' .. m[1] .. ']') end
  if not m[2] or #m[2] < 4 or #m[2] > 8 or string.find(m[2], '[^a-z2-7]') then damaged('its epoch is invalid') end
  local fence = whole('fence', m[3])
  return {
    epoch = m[2], fence = fence, token = m[2] .. '.' .. m[3],
    n = whole('n', m[4]), b = whole('b', m[5]), c = whole('c', m[6]), oldest = whole('oldest', m[7]),
    lease_end = whole('until', m[8]), k = whole('k', m[9]), keep = whole('keep', m[10]),
    out = m[11], cancel = m[12], by = m[13] or '', at = m[14]
  }
end

local function place(r)
  return r.epoch .. ' ' .. decimal(r.n) .. ' ' .. decimal(r.oldest)
end

-- Set pairs of field and value in the record, from a range of ARGV.
local function fields(first, last)
  for i = first, last, 2 do redis.call('HSET', K[1], ARGV[i], ARGV[i + 1]) end
end

local function existing(r)
  return {'THERE', r.epoch, decimal(r.n), redis.call('HGET', K[1], 'head'), r.out}
end

-- ARGV from `a` on: token, before, start, n, b, lengths, data, lease, taken, 'e' if exact, the first event to keep, and the mark;
-- then the note, if there is one
local function append(a)
  local r = load()
  if not r then return {'LOST'} end
  if r.token ~= ARGV[a] then return {'FENCED', r.token} end
  if r.out then return {'ENDED', r.out, decimal(r.n)} end
  if redis.call('XLEN', K[2]) ~= r.c then return {'LOST'} end
  local n, trims = tonumber(ARGV[a + 3]), tonumber(ARGV[a + 10])
  if ARGV[a + 5] == '' then
    if r.n ~= n then return {'AT', decimal(r.n)} end
    local mark = tonumber(ARGV[a + 11])
    if mark > 0 then
      local at, last = string.match(redis.call('HGET', K[1], 'mk') or '', '^(%d+) (%d+)$')
      if at and tonumber(at) == n and mark <= tonumber(last) then return {'OK', decimal(r.n), decimal(r.k), r.cancel} end
      redis.call('HSET', K[1], 'mk', ARGV[a + 3] .. ' ' .. ARGV[a + 11])
    end
  elseif r.n == tonumber(ARGV[a + 1]) then
    if r.b ~= tonumber(ARGV[a + 2]) then return {'REFUSED', decimal(r.n), decimal(r.b)} end
    redis.call('XADD', K[2], ARGV[a + 3] .. '-0', 'b', ARGV[a + 4], 'l', ARGV[a + 5], 'd', ARGV[a + 6])
    if trims > r.oldest then
      r.c, r.oldest = r.c - redis.call('XTRIM', K[2], 'MINID', ARGV[a + 10] .. '-0'), trims
      redis.call('HSET', K[1], 'oldest', ARGV[a + 10])
    end
    redis.call('HSET', K[1], 'n', ARGV[a + 3], 'b', ARGV[a + 4], 'c', decimal(r.c + 1))
    r.n = n
    if #ARGV[a + 6] <= @BELL_BYTES@ then
      ring('s ' .. place(r) .. ' ' .. ARGV[a + 4] .. ' ' .. ARGV[a + 5] .. '\\n' .. ARGV[a + 6])
    else
      ring('g ' .. place(r))
    end
  else
    if ARGV[a + 9] == 'e' then return {'AT', decimal(r.n)} end
    if r.n == n and r.b ~= tonumber(ARGV[a + 4]) then return {'REFUSED', decimal(r.n), decimal(r.b)} end
    if r.n >= n then return {'OK', decimal(r.n), decimal(r.k), r.cancel} end
    return {'AT', decimal(r.n)}
  end
  if ARGV[a + 8] ~= '' then redis.call('HSET', K[1], 'tk', ARGV[a + 8]) end
  if ARGV[a + 12] then redis.call('HSET', K[1], 'note', ARGV[a + 12], 'nn', ARGV[a + 3]) end
  local lease, at = tonumber(ARGV[a + 7]), history()
  redis.call('HSET', K[1], 'until', decimal(lease_end(lease)))
  -- Its writer knows the log best and agrees with the record: nothing was lost.
  if r.at ~= at then redis.call('HSET', K[1], 'at', at) end
  expire(lease + r.keep)
  return {'OK', ARGV[a + 3], decimal(r.k), r.cancel}
end

-- The append to another stream in the same step, if any. Returns why it was refused, or nil.
local function also(a, first)
  if not ARGV[a] then return nil end
  K = {KEYS[first], KEYS[first + 1], KEYS[first + 2], KEYS[first + 3]}
  local found = append(a)
  K = KEYS
  if found[1] ~= 'OK' then return {'ALSO', unpack(found)} end
end
"""

_CREATE: Final = """
-- KEYS[6] to KEYS[9]: another stream. ARGV: by, epoch, lease, keep, replaces, id, number of values in the record's fields, those,
-- then the append to the other stream
local r = load()
local lease, keep = tonumber(ARGV[3]), tonumber(ARGV[4])
if r and not r.out and (r.by == ARGV[1] or (r.epoch == ARGV[2] and r.fence == 1 and r.n == 0)) then
  -- An earlier attempt of the same caller.
  expire(lease + keep)
  redis.call('HSET', KEYS[1], 'until', decimal(now + lease))
  index(KEYS[5], ARGV[6], now + lease, lease + keep)
  return {'OK', r.epoch}
end
if r and not (r.out and r.epoch == ARGV[5]) then return existing(r) end
if r and r.epoch == ARGV[2] then return {'SAME'} end
local last = 7 + tonumber(ARGV[7])
local refused = also(last + 1, 6)
if refused then return refused end
forget()
redis.call('HSET', KEYS[1], 'v', 1, 'epoch', ARGV[2], 'fence', 1, 'n', 0, 'b', 0, 'c', 0, 'oldest', 1, 'k', 0, 'kc', 0,
  'until', decimal(now + lease), 'keep', ARGV[4], 'by', ARGV[1], 'at', history())
fields(8, last)
index(KEYS[5], ARGV[6], now + lease, lease + keep)
expire(lease + keep)
return {'OK', ARGV[2]}
"""

_APPEND: Final = """
return append(1)
"""

_RENEW: Final = """
-- token, lease, id
local r = load()
if not r then return {'LOST'} end
if r.token ~= ARGV[1] then return {'FENCED', r.token} end
if r.out then return {'ENDED', r.out, decimal(r.n)} end
local lease = tonumber(ARGV[2])
expire(lease + r.keep)
redis.call('HSET', KEYS[1], 'until', decimal(lease_end(lease)))
index(KEYS[5], ARGV[3], lease_end(lease), lease + r.keep)
if lease == 0 then ring('r ' .. place(r)) end
return {'OK', decimal(r.k), r.cancel}
"""

_FINISH: Final = """
-- KEYS[6] to KEYS[9]: another stream. ARGV: token, n, ending, id, then the append to the other stream
local r = load()
if not r then return {'LOST'} end
if r.token ~= ARGV[1] then return {'FENCED', r.token} end
if r.out then
  local again = r.out == ARGV[3] and r.n == tonumber(ARGV[2])
  return again and also(5, 6) or {'ENDED', r.out, decimal(r.n)}
end
if redis.call('XLEN', KEYS[2]) ~= r.c then return {'LOST'} end
if r.n ~= tonumber(ARGV[2]) then return {'AT', decimal(r.n)} end
expire(r.keep)
local refused = also(5, 6)
if refused then return refused end
redis.call('HSET', KEYS[1], 'out', ARGV[3], 'until', 0)
unindex(KEYS[5], ARGV[4])
ring('e ' .. place(r) .. '\\n' .. ARGV[3])
return {'OK', decimal(r.n)}
"""

_CLAIM: Final = """
-- by, epoch, lease, id, 1 if the new writer will append
local r = load()
if not r then return {'UNKNOWN'} end
if r.out then return {'ENDED', r.out, decimal(r.n)} end
-- The result: '+' with its events, '-' without, '=' and the previous epoch: with its events under a new one.
local how = string.sub(r.by, 1, #ARGV[1]) == ARGV[1] and string.match(r.by, '^[+=-].*', #ARGV[1] + 1) or ''
local lease = tonumber(ARGV[3])
if how ~= '' then
  -- An earlier attempt of the same caller.
  expire(lease + r.keep)
  redis.call('HSET', KEYS[1], 'until', decimal(now + lease))
  index(KEYS[5], ARGV[4], now + lease, lease + r.keep)
else
  if r.lease_end > now then return {'HELD', decimal(r.lease_end - now)} end
  local at = history()
  if redis.call('XLEN', KEYS[2]) ~= r.c then
    how = '-'
  elseif ARGV[5] == '1' and r.at ~= at then
    how = '=' .. r.epoch
  else
    how = '+'
  end
  if how ~= '+' and r.epoch == ARGV[2] then return {'SAME'} end
  expire(lease + r.keep)
  r.fence = r.fence + 1
  redis.call('HSET', KEYS[1], 'fence', decimal(r.fence), 'until', decimal(now + lease), 'by', ARGV[1] .. how)
  redis.call('HDEL', KEYS[1], 'mk')
  if how == '-' then
    redis.call('HSET', KEYS[1], 'n', 0, 'b', 0, 'c', 0, 'oldest', 1)
    redis.call('HDEL', KEYS[1], 'note', 'nn')
    redis.call('UNLINK', KEYS[2])
    r.n, r.b, r.oldest = 0, 0, 1
  end
  if how ~= '+' then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'at', at)
    r.epoch = ARGV[2]
    ring('x ' .. place(r))
  end
  index(KEYS[5], ARGV[4], now + lease, lease + r.keep)
end
local more = redis.call('HMGET', KEYS[1], 'head', 'note', 'nn', 'tk', 'req')
return {'OK', r.epoch, decimal(r.fence), decimal(r.n), decimal(r.b), decimal(r.k), r.cancel, how ~= '-' and 1 or 0,
  string.sub(how, 2), more[1], more[2], more[3], more[4], more[5]}
"""

_STAGE: Final = """
-- KEYS[1]: staging key. ARGV: 1 for the first part, milliseconds, then for each entry its place, number of values, and the values
if ARGV[1] == '1' then drop(KEYS[1]) end
local i = 3
while i < #ARGV do
  local values = {}
  for j = 1, tonumber(ARGV[i + 1]) do values[j] = ARGV[i + 1 + j] end
  redis.call('XADD', KEYS[1], ARGV[i] .. '-0', unpack(values))
  i = i + 2 + #values
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {'OK'}
"""

_RESTORE: Final = """
-- KEYS[5] and KEYS[6]: staged spans and messages; KEYS[7]: rs:run. ARGV: by, token, epoch, lease, keep, spans, messages, id,
-- number of values in the record's fields, those, then id and place of each message
local r = load()
local count, messages, last = tonumber(ARGV[6]), tonumber(ARGV[7]), 9 + tonumber(ARGV[9])
local verdict
if r and not r.out and r.by == ARGV[1] then
  verdict = {'OK'}
elseif r and not (r.token == ARGV[2] and not r.out and redis.call('XLEN', KEYS[2]) ~= r.c) then
  verdict = existing(r)
elseif redis.call('XLEN', KEYS[5]) ~= count or redis.call('XLEN', KEYS[6]) ~= messages then
  verdict = {'AGAIN'}
end
if verdict then
  drop(KEYS[5], KEYS[6])
  return verdict
end
forget()
local lease, keep = tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('HSET', KEYS[1], 'v', 1, 'epoch', ARGV[3], 'c', ARGV[6], 'kc', ARGV[7], 'until', decimal(now + lease), 'keep', ARGV[5],
  'by', ARGV[1], 'at', history())
fields(10, last)
if count > 0 then redis.call('RENAME', KEYS[5], KEYS[2]) end
if messages > 0 then redis.call('RENAME', KEYS[6], KEYS[3]) end
for i = last + 1, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
index(KEYS[7], ARGV[8], now + lease, lease + keep)
expire(lease + keep)
ring('x ' .. place(load()))
return {'OK'}
"""

_SAY: Final = """
-- id, kind, data, most messages of an inbox, 1 if it is a cancel
local r = load()
if not r then return {'UNKNOWN'} end
local known = redis.call('HGET', KEYS[4], ARGV[1])
if known then return {'OK', known, r.out} end
if r.out then return {'ENDED', r.out, decimal(r.n)} end
local cancel = ARGV[5] == '1'
local held = whole('kc', redis.call('HGET', KEYS[1], 'kc'))
local entries, ids = redis.call('XLEN', KEYS[3]), redis.call('HLEN', KEYS[4])
if r.k >= tonumber(ARGV[4]) and not (cancel and not r.cancel) then return {'FULL'} end
if entries ~= held or ids ~= held then
  -- A repeated message could no longer be recognised. A repeated cancel does no harm.
  if not cancel then damaged('its inbox has lost messages') end
end
if cancel then expire_like_the_record(KEYS[1]) end
local k = decimal(r.k + 1)
redis.call('XADD', KEYS[3], k .. '-0', 'm', ARGV[1], 'kind', ARGV[2], 'd', ARGV[3])
redis.call('HSET', KEYS[4], ARGV[1], k)
redis.call('HSET', KEYS[1], 'k', k, 'kc', decimal(held + 1))
if cancel and not r.cancel then
  redis.call('HSET', KEYS[1], 'cancel', ARGV[3])
  r.cancel = ARGV[3]
end
expire_like_the_record(KEYS[3])
expire_like_the_record(KEYS[4])
ring('c ' .. place(r) .. ' ' .. k .. (r.cancel and ' 1\\n' .. r.cancel or ' 0\\n'))
return {'OK', k}
"""

_INBOX: Final = """
-- after, most messages, approximate bytes
local r = load()
if not r then return {'UNKNOWN'} end
if redis.call('XLEN', KEYS[3]) ~= whole('kc', redis.call('HGET', KEYS[1], 'kc')) then damaged('its inbox has lost messages') end
local found, bytes, start, room = {}, 0, tonumber(ARGV[1]) + 1, tonumber(ARGV[2])
while room > 0 and bytes < tonumber(ARGV[3]) do
  local part = redis.call('XRANGE', KEYS[3], decimal(start), '+', 'COUNT', math.min(room, 16))
  for _, entry in ipairs(part) do
    found[#found + 1] = entry
    start = tonumber(string.match(entry[1], '^%d+')) + 1
    for _, value in ipairs(entry[2]) do bytes = bytes + #value end
  end
  room = room - #part
  if #part < 16 then break end
end
return {'OK', found}
"""

_READ: Final = """
-- epoch or nothing, first event, approximate bytes
local r = load()
if not r then return {'UNKNOWN'} end
local head, z = unpack(redis.call('HMGET', KEYS[1], 'head', 'z'))
local entries, limit, first, found = redis.call('XLEN', KEYS[2]), tonumber(ARGV[3]), tonumber(ARGV[2]), {}
if limit > 0 and first <= r.n and first >= r.oldest and entries > 0 and (ARGV[1] == '' or ARGV[1] == r.epoch) then
  -- The first entry may have been read in part. The page starts after it, and is measured by its position.
  found = redis.call('XRANGE', KEYS[2], decimal(first), '+', 'COUNT', 1)
  local function last() return found[#found] and found[#found][2][1] == 'b' and tonumber(found[#found][2][2]) end
  local from = last()
  while from and last() and last() < r.b and last() - from < limit do
    local after = decimal(tonumber(string.match(found[#found][1], '^%d+')) + 1)
    -- All the rest, or a few at a time: an entry may have many megabytes.
    local count = (r.b - from <= limit) and 1000000 or 8
    local part = redis.call('XRANGE', KEYS[2], after, '+', 'COUNT', count)
    for _, entry in ipairs(part) do found[#found + 1] = entry end
    if #part == 0 then break end
  end
end
-- A note may be large, and readers of events do not need it.
local note = limit <= 0 and redis.call('HGET', KEYS[1], 'note')
return {'OK', decimal(now), r.epoch, decimal(r.fence), decimal(r.n), decimal(r.b), decimal(r.c), decimal(r.oldest),
  decimal(r.lease_end), r.out, head, z, entries, found, note}
"""

_COMPACT: Final = """
-- KEYS[5]: staged entries. ARGV: epoch, number of entries
local r = load()
if not r or not r.out or r.epoch ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'z') == 1 then
  -- Deleted, replaced or compacted meanwhile. Nothing else changes an ended stream.
  drop(KEYS[5])
  return {'OK'}
end
if redis.call('XLEN', KEYS[5]) ~= tonumber(ARGV[2]) then return {'AGAIN'} end
redis.call('RENAME', KEYS[5], KEYS[2])
redis.call('HSET', KEYS[1], 'c', ARGV[2], 'z', 1)
expire_like_the_record(KEYS[2])
return {'OK'}
"""

_DELETE: Final = """
-- id
unindex(KEYS[5], ARGV[1])
local found = redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
forget()
if found > 0 then ring('x') end
return {'OK'}
"""

_STATE: Final = """
local r = load()
if not r or r.out then return {'GONE'} end
if r.lease_end > now then return {'HELD', decimal(r.lease_end - now), decimal(r.lease_end)} end
return {'OVER', decimal(r.lease_end)}
"""

_DUE: Final = """
-- KEYS[1]: rs:run. ARGV: offset, count
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', ARGV[1], ARGV[2])
"""

_SETTLE: Final = """
-- KEYS[1]: rs:run. ARGV: its shortest lifetime in milliseconds, then for each stream its id, and 'gone' and anything, 'over' and
-- a time, or 'for' and a duration
local i = 2
while i < #ARGV do
  if ARGV[i + 1] == 'gone' then
    redis.call('ZREM', KEYS[1], ARGV[i])
  else
    index(KEYS[1], ARGV[i], tonumber(ARGV[i + 2]) + (ARGV[i + 1] == 'for' and now or 0), tonumber(ARGV[1]))
  end
  i = i + 3
end
return {'OK'}
"""


@dataclass(frozen=True, slots=True)
class Script:
    """
    A script, and the name by which a server knows it after the first run.

    Attributes:
        name: Name of the verb.
        text: In Lua.
        writes: It may change something.
        sha: SHA-1 of the text.
    """

    name: str
    text: bytes = field(repr=False)
    writes: bool = True
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        # Redis names scripts by SHA-1; nothing depends on its strength.
        digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest.encode())


class Scripts:
    """
    All scripts, for one server or for a Cluster.

    Args:
        cluster: Ring bells with `SPUBLISH`, which stays on the nodes of one slot; `PUBLISH` goes to all nodes.
    """

    def __init__(self, *, cluster: bool = False) -> None:
        def script(name: str, body: str, *, writes: bool = True) -> Script:
            text = _COMMON + body
            text = text.replace("@PUBLISH@", "SPUBLISH" if cluster else "PUBLISH").replace("@BELL_BYTES@", str(BELL_BYTES))
            return Script(name, text.encode(), writes)

        self.create = script("create", _CREATE)
        self.append = script("append", _APPEND)
        self.renew = script("renew", _RENEW)
        self.finish = script("finish", _FINISH)
        self.claim = script("claim", _CLAIM)
        self.stage = script("stage", _STAGE)
        self.restore = script("restore", _RESTORE)
        self.say = script("say", _SAY)
        self.inbox = script("inbox", _INBOX, writes=False)
        self.read = script("read", _READ, writes=False)
        self.compact = script("compact", _COMPACT)
        self.delete = script("delete", _DELETE)
        self.state = script("state", _STATE, writes=False)
        self.due = script("due", _DUE, writes=False)
        self.settle = script("settle", _SETTLE)
