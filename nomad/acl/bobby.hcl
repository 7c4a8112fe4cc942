# Gateway bobby-gateway at Consul's node bobby.
key_prefix "openclaw/" { policy = "read" }
key_prefix "openclaw/credentials/" { policy = "deny" }
# Its own are below, with the right to write.

# Written by this gateway: each key has one writer, and rules know no patterns.
key_prefix "openclaw/agents/bobby/" { policy = "write" } # inbox of bobby: registry entry
key_prefix "openclaw/agents/jerry/" { policy = "write" } # inbox of jerry: registry entry
key_prefix "openclaw/blobs/bobby-gateway/" { policy = "write" } # own payloads
key "openclaw/cluster/deployment" { policy = "write" } # cluster block, by the first gateway
key "openclaw/cluster/id" { policy = "write" } # cluster block, by the first gateway
key_prefix "openclaw/credentials/bobby-gateway/" { policy = "write" } # own credentials
key_prefix "openclaw/deadletters/bobby-gateway/" { policy = "write" } # inbox of bobby-gateway: dead letters
key_prefix "openclaw/deadletters/bobby/" { policy = "write" } # inbox of bobby: dead letters
key_prefix "openclaw/deadletters/jerry/" { policy = "write" } # inbox of jerry: dead letters
key_prefix "openclaw/doctor/" { policy = "write" } # probe of doctor
key_prefix "openclaw/duties/bobby/" { policy = "write" } # inbox of bobby: room
key_prefix "openclaw/duties/jerry/" { policy = "write" } # inbox of jerry: room
key "openclaw/encryption-keys/bobby-gateway" { policy = "write" } # own encryption key
key_prefix "openclaw/fanouts/bobby-gateway/" { policy = "write" } # own fan-outs
key_prefix "openclaw/gateways/bobby-gateway/" { policy = "write" } # own registry entry
key "openclaw/inbox/billy-gateway/from/bobby-gateway" { policy = "write" } # own bell at billy-gateway
key "openclaw/inbox/billy/from/bobby-gateway" { policy = "write" } # own bell at billy
key "openclaw/inbox/bobby-gateway/about" { policy = "write" } # inbox of bobby-gateway: resident key
key "openclaw/inbox/bobby-gateway/from/bobby-gateway" { policy = "write" } # own bell at bobby-gateway
key "openclaw/inbox/bobby/about" { policy = "write" } # inbox of bobby: resident key
key "openclaw/inbox/bobby/from/bobby-gateway" { policy = "write" } # own bell at bobby
key "openclaw/inbox/jerry-gateway/from/bobby-gateway" { policy = "write" } # own bell at jerry-gateway
key "openclaw/inbox/jerry/about" { policy = "write" } # inbox of jerry: resident key
key "openclaw/inbox/jerry/from/bobby-gateway" { policy = "write" } # own bell at jerry
key_prefix "openclaw/lanes/bobby-gateway/" { policy = "write" } # own lanes
key_prefix "openclaw/ledger/billy-gateway/bobby-gateway/" { policy = "write" } # inbox of bobby-gateway: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/billy-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/billy-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/bobby-gateway/bobby-gateway/" { policy = "write" } # inbox of bobby-gateway: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/bobby-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/bobby-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/jerry-gateway/bobby-gateway/" { policy = "write" } # inbox of bobby-gateway: older receipts of mail from jerry-gateway
key_prefix "openclaw/ledger/jerry-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from jerry-gateway
key_prefix "openclaw/ledger/jerry-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from jerry-gateway
key "openclaw/owners/agents/bobby" { policy = "write" } # inbox of bobby: ownership
key "openclaw/owners/agents/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: ownership
key "openclaw/owners/agents/jerry" { policy = "write" } # inbox of jerry: ownership
key "openclaw/owners/gateways/bobby-gateway" { policy = "write" } # own name
key "openclaw/owners/transfers/bobby" { policy = "write" } # inbox of bobby: handoff
key "openclaw/owners/transfers/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: handoff
key "openclaw/owners/transfers/jerry" { policy = "write" } # inbox of jerry: handoff
key_prefix "openclaw/pending/bobby-gateway/" { policy = "write" } # inbox of bobby-gateway: work in progress
key_prefix "openclaw/pending/bobby/" { policy = "write" } # inbox of bobby: work in progress
key_prefix "openclaw/pending/jerry/" { policy = "write" } # inbox of jerry: work in progress
key "openclaw/receipts/billy-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/billy-gateway/from/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/billy-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/bobby-gateway/about" { policy = "write" } # own receipts: resident key
key "openclaw/receipts/bobby-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/bobby-gateway/from/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/bobby-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/jerry-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from jerry-gateway
key "openclaw/receipts/jerry-gateway/from/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: cursor and receipts of mail from jerry-gateway
key "openclaw/receipts/jerry-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from jerry-gateway
key_prefix "openclaw/results/bobby-gateway/" { policy = "write" } # own results
key "openclaw/shared-state/current-focus" { policy = "write" } # shared state, by compare-and-swap
key "openclaw/shared-state/recent-events" { policy = "write" } # shared state, by compare-and-swap
key_prefix "openclaw/tasks/bobby/unique/" { policy = "write" } # inbox of bobby: unique keys
key_prefix "openclaw/tasks/jerry/unique/" { policy = "write" } # inbox of jerry: unique keys
key "openclaw/terms/bobby" { policy = "write" } # inbox of bobby: term
key "openclaw/terms/bobby-gateway" { policy = "write" } # inbox of bobby-gateway: term
key "openclaw/terms/jerry" { policy = "write" } # inbox of jerry: term
key "openclaw/trust/requests/bobby-gateway" { policy = "write" } # own request to join

# Its locks hang from a session of its node, and from its service's check.
session "bobby" { policy = "write" }
service "openclaw" { policy = "write" }

# What the infrastructure check looks at, and where the gateway sees whether the catalog hears of its own check.
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
