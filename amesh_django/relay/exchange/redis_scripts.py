"""The decisions that the processes of a relay make together: Lua scripts, which Redis runs by its own clock.

Why scripts: each decision reads and writes several keys in one step, and no command or transaction of Redis can branch in between.

Keys, each after the prefix: ``s:CODE`` a session (``w`` waiting or ``m`` matched; then its name, and process and number of its target),
``n`` all sessions by expiry, ``f:CODE`` failed tries, ``t:ADDRESS`` and ``a:ADDRESS`` tries of the last minute, ``w:TOKEN`` the watcher,
``v`` all watches by expiry, ``u`` used tokens by expiry, ``p`` the processes. Each key expires by itself, or is cleaned up before it is
counted.
"""

from __future__ import annotations

from typing import Final

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

#: Rejects an address that tries too often. Key: the tries of the address; ARGV[1]: the limit.
_RATE: Final = """
local tries = redis.call('INCR', KEYS[1])
if tries == 1 then redis.call('PEXPIRE', KEYS[1], 60000) end
if tries > tonumber(ARGV[1]) then return 'rate_limited' end
"""

#: Rejects a code that is burnt: so many tries on it failed that nobody may wait with it. JOIN counts the failed tries.
_BURNT: Final = """
if tonumber(redis.call('GET', KEYS[3]) or '0') >= tonumber(ARGV[4]) then return 'otc_in_use' end
"""

#: Lets a target wait. Keys t, s, f, n; limit of tries, milliseconds, limit of sessions, limit of failed tries, name, process, number.
OPEN: Final = (
    _RATE
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then return 'otc_in_use' end
"""
    + _BURNT
    + _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[3]) then return 'relay_capacity' end
redis.call('SET', KEYS[2], 'w ' .. ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7], 'PX', ARGV[2])
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[2]), ARGV[5])
return ''
"""
)

#: Matches a controller. Keys t, s, f, n; limit of tries, milliseconds, lifetime of failed tries. Returns the session, or an error code.
JOIN: Final = (
    _RATE
    + """
local held = redis.call('GET', KEYS[2])
if not held or string.sub(held, 1, 1) ~= 'w' then
    redis.call('INCR', KEYS[3])
    redis.call('PEXPIRE', KEYS[3], ARGV[3])
    if held then return 'peer_already_connected' end
    return 'otc_not_found'
end
"""
    + _NOW
    + """
redis.call('SET', KEYS[2], 'm' .. string.sub(held, 2), 'PX', ARGV[2])
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[2]), string.match(held, '^w (%S+)'))
return held
"""
)

#: Ends a session. Keys s, n; name.
END: Final = """
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%a (%S+)') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: Counts the sessions. Key n.
COUNT: Final = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZCARD', KEYS[1])
"""
)

#: Restores a session. Keys s, n; milliseconds, name, process, number. Returns 1 if the code was free.
RESTORE_SESSION: Final = (
    _NOW
    + """
local value = 'w ' .. ARGV[2] .. ' ' .. ARGV[3] .. ' ' .. ARGV[4]
if not redis.call('SET', KEYS[1], value, 'PX', ARGV[1], 'NX') then
    if redis.call('GET', KEYS[1]) == value then return 1 end
    return 0
end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[1]), ARGV[2])
return 1
"""
)

#: Starts or renews a watch. Keys a, w, v, p; limit of tries, milliseconds, limit of watches, token, process, number.
#: A watcher whose process is dead does not count.
WATCH: Final = (
    _RATE
    + _NOW
    + """
local held = redis.call('GET', KEYS[2])
local me = ARGV[5] .. ' ' .. ARGV[6]
if held and held ~= me then
    local beat = redis.call('HGET', KEYS[4], string.match(held, '^(%S+)'))
    if beat and tonumber(string.match(beat, ' (%d+)$')) > now then return 'jti_already_watched' end
end
if not held then
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
    if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[3]) then return 'relay_capacity' end
end
redis.call('SET', KEYS[2], me, 'PX', ARGV[2])
redis.call('ZADD', KEYS[3], now + tonumber(ARGV[2]), ARGV[4])
return ''
"""
)

#: Restores a watch. Keys w, v; milliseconds, token, process, number.
RESTORE_WATCH: Final = (
    _NOW
    + """
if redis.call('SET', KEYS[1], ARGV[3] .. ' ' .. ARGV[4], 'PX', ARGV[1], 'NX') then
    redis.call('ZADD', KEYS[2], now + tonumber(ARGV[1]), ARGV[2])
end
return 1
"""
)

#: Ends a watch. Keys w, v; token, process, number.
UNWATCH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[2] .. ' ' .. ARGV[3] then return 0 end
redis.call('DEL', KEYS[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: Uses up a token. Keys u, w; milliseconds, limit of used tokens, token. Returns the watcher, or an error code.
USE: Final = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZSCORE', KEYS[1], ARGV[3]) then return 'token_already_used' end
local held = redis.call('GET', KEYS[2])
if not held then return 'no_watcher' end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 'relay_capacity' end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return held
"""
)

#: Heartbeat. Key p; process, connections, milliseconds until it is outdated. Returns the connections of the others, and all processes.
BEAT: Final = (
    _NOW
    + """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. string.format('%.0f', now + tonumber(ARGV[3])))
local all = redis.call('HGETALL', KEYS[1])
local others, alive = 0, {}
for i = 1, #all, 2 do
    local count, till = string.match(all[i + 1], '^(%d+) (%d+)$')
    if tonumber(till) <= now then
        redis.call('HDEL', KEYS[1], all[i])
    else
        if all[i] ~= ARGV[1] then others = others + tonumber(count) end
        alive[#alive + 1] = all[i]
    end
end
return {others, unpack(alive)}
"""
)

ALL: Final = (OPEN, JOIN, END, COUNT, RESTORE_SESSION, WATCH, RESTORE_WATCH, UNWATCH, USE, BEAT)
