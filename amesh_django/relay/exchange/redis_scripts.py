"""The decisions that the processes of a relay make together: Lua scripts, which Redis runs by its own clock.

Why scripts: each decision reads and writes several keys in one step, and no command or transaction of Redis can branch in between.

Keys, each after the prefix: ``s:CODE`` a session (``w`` waiting or ``m`` matched; then its name, and process and number of its target),
``n`` all sessions by expiry, ``n:NETWORK`` those of a network, ``f:CODE`` failed tries, ``t:ADDRESS``, ``a:ADDRESS`` and ``i:ADDRESS``
tries of the last minute (to pair, to watch, to use a token), ``T:NETWORK`` and so on those of a network, ``w:TOKEN`` the watcher, ``v``
and ``v:NETWORK`` watches by expiry, ``u`` and ``u:NETWORK`` used tokens by expiry, ``o`` the network of each used token, ``p`` the
processes. Each key expires by itself, or is cleaned up before it is counted.
"""

from __future__ import annotations

from typing import Final

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

#: Rejects an address, or a network, that tries too often. Keys: the tries of the address, of the network; their two limits. As in
#: ``Rates`` of memory.py, a try that is one too many for the address does not count for the network, and the other way round.
_RATE: Final = """
if tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[2]) then return 'rate_limited' end
local tries = redis.call('INCR', KEYS[1])
if tries == 1 then redis.call('PEXPIRE', KEYS[1], 60000) end
if tries > tonumber(ARGV[1]) then return 'rate_limited' end
if redis.call('INCR', KEYS[2]) == 1 then redis.call('PEXPIRE', KEYS[2], 60000) end
"""

#: Counts what a network has of all sessions, or of all watches. What has ended is in *mine* until it is counted.
_SHARE: Final = """
local function share_is_full(mine, all, limit, lifetime)
    if redis.call('ZCARD', mine) < tonumber(limit) then return false end
    local count = redis.call('ZINTERSTORE', mine, 2, mine, all, 'WEIGHTS', 0, 1)
    redis.call('PEXPIRE', mine, lifetime)
    return count >= tonumber(limit)
end
"""

#: Rejects a code that is burnt: so many tries on it failed that nobody may wait with it. JOIN counts the failed tries.
_BURNT: Final = """
if tonumber(redis.call('GET', KEYS[4]) or '0') >= tonumber(ARGV[5]) then return 'otc_in_use' end
"""

#: Lets a target wait. Keys t, T, s, f, n, n:NETWORK; two limits of tries, milliseconds, limit of sessions, limit of failed tries, name,
#: process, number, limit of sessions of the network, milliseconds that a session lives at the longest.
OPEN: Final = (
    _RATE
    + _SHARE
    + """
if redis.call('EXISTS', KEYS[3]) == 1 then return 'otc_in_use' end
"""
    + _BURNT
    + _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now)
if share_is_full(KEYS[6], KEYS[5], ARGV[9], ARGV[10]) then return 'rate_limited' end
if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[4]) then return 'relay_capacity' end
redis.call('SET', KEYS[3], 'w ' .. ARGV[6] .. ' ' .. ARGV[7] .. ' ' .. ARGV[8], 'PX', ARGV[3])
for _, key in ipairs({KEYS[5], KEYS[6]}) do redis.call('ZADD', key, now + tonumber(ARGV[3]), ARGV[6]) end
redis.call('PEXPIRE', KEYS[6], ARGV[10])
return ''
"""
)

#: Matches a controller. Keys t, T, s, f, n; two limits of tries, milliseconds, lifetime of failed tries. Returns the session, or an
#: error code.
JOIN: Final = (
    _RATE
    + """
local held = redis.call('GET', KEYS[3])
if not held or string.sub(held, 1, 1) ~= 'w' then
    redis.call('INCR', KEYS[4])
    redis.call('PEXPIRE', KEYS[4], ARGV[4])
    if held then return 'peer_already_connected' end
    return 'otc_not_found'
end
"""
    + _NOW
    + """
redis.call('SET', KEYS[3], 'm' .. string.sub(held, 2), 'PX', ARGV[3])
redis.call('ZADD', KEYS[5], now + tonumber(ARGV[3]), string.match(held, '^w (%S+)'))
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

#: Starts or renews a watch. Keys a, A, w, v, v:NETWORK, p; two limits of tries, milliseconds, limit of watches, token, process, number,
#: limit of watches of the network. A watcher whose process is dead does not count.
WATCH: Final = (
    _RATE
    + _SHARE
    + _NOW
    + """
local held = redis.call('GET', KEYS[3])
local me = ARGV[6] .. ' ' .. ARGV[7]
if held and held ~= me then
    local beat = redis.call('HGET', KEYS[6], string.match(held, '^(%S+)'))
    if beat and tonumber(string.match(beat, ' (%d+)$')) > now then return 'jti_already_watched' end
end
if not held then
    redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now)
    if share_is_full(KEYS[5], KEYS[4], ARGV[8], ARGV[3]) then return 'rate_limited' end
    if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[4]) then return 'relay_capacity' end
end
redis.call('SET', KEYS[3], me, 'PX', ARGV[3])
for _, key in ipairs({KEYS[4], KEYS[5]}) do redis.call('ZADD', key, now + tonumber(ARGV[3]), ARGV[5]) end
redis.call('PEXPIRE', KEYS[5], ARGV[3])
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

#: Uses up a token. Keys i, I, u, u:NETWORK, o, w; two limits of tries, milliseconds, limit of used tokens, token, network, its limit.
#: Returns the watcher, or an error code. If the network has its share of used tokens, its oldest is forgotten.
USE: Final = (
    _RATE
    + _NOW
    + """
for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do redis.call('HDEL', KEYS[5], token) end
for _, key in ipairs({KEYS[3], KEYS[4]}) do redis.call('ZREMRANGEBYSCORE', key, '-inf', now) end
if redis.call('ZSCORE', KEYS[3], ARGV[5]) then return 'token_already_used' end
local held = redis.call('GET', KEYS[6])
if not held then return 'no_watcher' end
while redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[7]) do
    local oldest = redis.call('ZPOPMIN', KEYS[4])[1]
    redis.call('ZREM', KEYS[3], oldest)
    redis.call('HDEL', KEYS[5], oldest)
end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then return 'relay_capacity' end
for _, key in ipairs({KEYS[3], KEYS[4]}) do redis.call('ZADD', key, now + tonumber(ARGV[3]), ARGV[5]) end
redis.call('HSET', KEYS[5], ARGV[5], ARGV[6])
for _, key in ipairs({KEYS[3], KEYS[4], KEYS[5]}) do redis.call('PEXPIRE', key, ARGV[3]) end
return held
"""
)

#: Makes a token usable again. Keys u, u:NETWORK, o; token. The caller has read the network of the token from o.
UNUSE: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('HDEL', KEYS[3], ARGV[1])
"""

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

ALL: Final = (OPEN, JOIN, END, COUNT, RESTORE_SESSION, WATCH, RESTORE_WATCH, UNWATCH, USE, UNUSE, BEAT)
