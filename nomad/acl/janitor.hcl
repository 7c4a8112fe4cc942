# Beside the policy of a gateway: it may clear up after gateways that are gone. Give it to one or two.
key_prefix "openclaw/blobs/" { policy = "write" } # left by gateways that are gone
key_prefix "openclaw/fanouts/" { policy = "write" } # left by gateways that are gone
key_prefix "openclaw/lanes/" { policy = "write" } # left by gateways that are gone
key "openclaw/owners/duties/janitor" { policy = "write" } # the janitor's duty
key_prefix "openclaw/owners/gateways/" { policy = "write" } # names of gateways that are gone
key_prefix "openclaw/results/" { policy = "write" } # left by gateways that are gone
