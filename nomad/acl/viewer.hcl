# Somebody who looks (consul kv get -recurse, Consul's own page) and changes nothing.
key_prefix "openclaw/" { policy = "read" }
key_prefix "openclaw/credentials/" { policy = "deny" }
session_prefix "" { policy = "read" }

# What the infrastructure check looks at.
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
