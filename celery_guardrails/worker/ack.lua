-- Forget a message that is done. KEYS: unacked (hash). ARGV: unacked_index (sorted set), delivery tag.
redis.call('ZREM', ARGV[1], ARGV[2])
return redis.call('HDEL', KEYS[1], ARGV[2])
