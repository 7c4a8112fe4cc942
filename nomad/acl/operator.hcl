# An operator, who mends things by hand (the runbook's consul kv delete). Gateways need nothing of it.
key_prefix "openclaw/" { policy = "write" }
key_prefix "openclaw/credentials/" { policy = "deny" }
session_prefix "" { policy = "write" }
service "openclaw" { policy = "write" }

# What the infrastructure check looks at.
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
operator = "read" # consul operator raft list-peers
