-- KEYS: resource. ARGV: holder, and what resource.lua wants.
leave(ARGV[1])
return 1
