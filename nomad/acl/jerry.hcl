# Gateway jerry-gateway at Consul's node jerry.
key_prefix "openclaw/" { policy = "read" }
key_prefix "openclaw/credentials/" { policy = "deny" }
# Its own are below, with the right to write.

# Written by this gateway: each key has one writer, and rules know no patterns.
key_prefix "openclaw/agents/bobby/" { policy = "write" } # inbox of bobby: registry entry
key_prefix "openclaw/agents/jerry/" { policy = "write" } # inbox of jerry: registry entry
key_prefix "openclaw/blobs/jerry-gateway/" { policy = "write" } # own payloads
key "openclaw/cluster/deployment" { policy = "write" } # cluster block, by the first gateway
key "openclaw/cluster/id" { policy = "write" } # cluster block, by the first gateway
key_prefix "openclaw/credentials/jerry-gateway/" { policy = "write" } # own credentials
key_prefix "openclaw/deadletters/bobby/" { policy = "write" } # inbox of bobby: dead letters
key_prefix "openclaw/deadletters/jerry-gateway/" { policy = "write" } # inbox of jerry-gateway: dead letters
key_prefix "openclaw/deadletters/jerry/" { policy = "write" } # inbox of jerry: dead letters
key_prefix "openclaw/doctor/" { policy = "write" } # probe of doctor
key_prefix "openclaw/duties/bobby/" { policy = "write" } # inbox of bobby: room
key_prefix "openclaw/duties/jerry/" { policy = "write" } # inbox of jerry: room
key "openclaw/encryption-keys/jerry-gateway" { policy = "write" } # own encryption key
key_prefix "openclaw/fanouts/jerry-gateway/" { policy = "write" } # own fan-outs
key_prefix "openclaw/gateways/jerry-gateway/" { policy = "write" } # own registry entry
key "openclaw/inbox/billy-gateway/from/jerry-gateway" { policy = "write" } # own bell at billy-gateway
key "openclaw/inbox/billy/from/jerry-gateway" { policy = "write" } # own bell at billy
key "openclaw/inbox/bobby-gateway/from/jerry-gateway" { policy = "write" } # own bell at bobby-gateway
key "openclaw/inbox/bobby/about" { policy = "write" } # inbox of bobby: resident key
key "openclaw/inbox/bobby/from/jerry-gateway" { policy = "write" } # own bell at bobby
key "openclaw/inbox/jerry-gateway/about" { policy = "write" } # inbox of jerry-gateway: resident key
key "openclaw/inbox/jerry-gateway/from/jerry-gateway" { policy = "write" } # own bell at jerry-gateway
key "openclaw/inbox/jerry/about" { policy = "write" } # inbox of jerry: resident key
key "openclaw/inbox/jerry/from/jerry-gateway" { policy = "write" } # own bell at jerry
key_prefix "openclaw/lanes/jerry-gateway/" { policy = "write" } # own lanes
key_prefix "openclaw/ledger/billy-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/billy-gateway/jerry-gateway/" { policy = "write" } # inbox of jerry-gateway: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/billy-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from billy-gateway
key_prefix "openclaw/ledger/bobby-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/bobby-gateway/jerry-gateway/" { policy = "write" } # inbox of jerry-gateway: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/bobby-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from bobby-gateway
key_prefix "openclaw/ledger/jerry-gateway/bobby/" { policy = "write" } # inbox of bobby: older receipts of mail from jerry-gateway
key_prefix "openclaw/ledger/jerry-gateway/jerry-gateway/" { policy = "write" } # inbox of jerry-gateway: older receipts of mail from jerry-gateway
key_prefix "openclaw/ledger/jerry-gateway/jerry/" { policy = "write" } # inbox of jerry: older receipts of mail from jerry-gateway
key "openclaw/owners/agents/bobby" { policy = "write" } # inbox of bobby: ownership
key "openclaw/owners/agents/jerry" { policy = "write" } # inbox of jerry: ownership
key "openclaw/owners/agents/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: ownership
key "openclaw/owners/gateways/jerry-gateway" { policy = "write" } # own name
key "openclaw/owners/transfers/bobby" { policy = "write" } # inbox of bobby: handoff
key "openclaw/owners/transfers/jerry" { policy = "write" } # inbox of jerry: handoff
key "openclaw/owners/transfers/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: handoff
key_prefix "openclaw/pending/bobby/" { policy = "write" } # inbox of bobby: work in progress
key_prefix "openclaw/pending/jerry-gateway/" { policy = "write" } # inbox of jerry-gateway: work in progress
key_prefix "openclaw/pending/jerry/" { policy = "write" } # inbox of jerry: work in progress
key "openclaw/receipts/billy-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/billy-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/billy-gateway/from/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: cursor and receipts of mail from billy-gateway
key "openclaw/receipts/bobby-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/bobby-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/bobby-gateway/from/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: cursor and receipts of mail from bobby-gateway
key "openclaw/receipts/jerry-gateway/about" { policy = "write" } # own receipts: resident key
key "openclaw/receipts/jerry-gateway/from/bobby" { policy = "write" } # inbox of bobby: cursor and receipts of mail from jerry-gateway
key "openclaw/receipts/jerry-gateway/from/jerry" { policy = "write" } # inbox of jerry: cursor and receipts of mail from jerry-gateway
key "openclaw/receipts/jerry-gateway/from/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: cursor and receipts of mail from jerry-gateway
key_prefix "openclaw/results/jerry-gateway/" { policy = "write" } # own results
key "openclaw/shared-state/current-focus" { policy = "write" } # shared state, by compare-and-swap
key "openclaw/shared-state/recent-events" { policy = "write" } # shared state, by compare-and-swap
key_prefix "openclaw/tasks/bobby/unique/" { policy = "write" } # inbox of bobby: unique keys
key_prefix "openclaw/tasks/jerry/unique/" { policy = "write" } # inbox of jerry: unique keys
key "openclaw/terms/bobby" { policy = "write" } # inbox of bobby: term
key "openclaw/terms/jerry" { policy = "write" } # inbox of jerry: term
key "openclaw/terms/jerry-gateway" { policy = "write" } # inbox of jerry-gateway: term
key "openclaw/trust/requests/jerry-gateway" { policy = "write" } # own request to join

# Its locks hang from a session of its node, and from its service's check.
session "jerry" { policy = "write" }
service "openclaw" { policy = "write" }

# What the infrastructure check looks at, and where the gateway sees whether the catalog hears of its own check.
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" }
agent_prefix "" { policy = "read" }
