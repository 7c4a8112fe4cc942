# One gateway on each node of the homelab.
#
# Run it in this folder (it reads openclaw.json from where you are):
#
#   nomad job plan gatemesh.nomad.hcl
#   nomad job run gatemesh.nomad.hcl
#   nomad job run -var driver=exec -var secret_source=nomad gatemesh.nomad.hcl
#
# A system job, and not a group pinned to each node: a gateway *is* its node, so there is
# nothing to place; a fourth node is one more name in var.nodes; and an update goes from node
# to node (max_parallel), where groups of one job would all restart at once. What moves when a
# node dies is the agents, and gatemesh moves them itself, by its locks in Consul.

variable "datacenters" {
  type    = list(string)
  default = ["dc1"]
}

variable "nodes" {
  description = "Names of the Nomad clients that run a gateway. The gateway is called NODE-gateway."
  type        = list(string)
  default     = ["jerry", "bobby", "billy"]
}

variable "cluster_id" {
  description = "Name of the mesh, written to openclaw/cluster/id by the first gateway."
  type        = string
  default     = "octant-homelab"
}

variable "driver" {
  description = "raw_exec or exec. raw_exec (to be enabled in the client) lets the infrastructure check see the node; exec shows it the task's own file system."
  type        = string
  default     = "raw_exec"

  validation {
    condition     = var.driver == "raw_exec" || var.driver == "exec"
    error_message = "The driver must be raw_exec or exec."
  }
}

variable "binary" {
  description = "The gatemesh binary on the nodes: one static file (make build)."
  type        = string
  default     = "/usr/local/bin/gatemesh"
}

variable "config" {
  description = "The gateways' configuration, beside this file."
  type        = string
  default     = "openclaw.json"
}

variable "port" {
  description = "Port of API, probes and metrics."
  type        = number
  default     = 18789
}

variable "bind" {
  description = "loopback, lan or an address. Beyond loopback the secrets must hold gateway_token."
  type        = string
  default     = "lan"
}

variable "consul_addr" {
  description = "Consul as a node sees it: its own agent, so that losing one server is no news."
  type        = string
  default     = "http://127.0.0.1:8500"
}

variable "consul_cacert" {
  description = "With an https consul_addr: the file, on the nodes, of the authority that signed Consul's certificate."
  type        = string
  default     = ""
}

variable "consul_client_cert" {
  description = "Where Consul verifies who comes (verify_incoming): the file, on the nodes, of a client certificate."
  type        = string
  default     = ""
}

variable "consul_client_key" {
  description = "Its key."
  type        = string
  default     = ""
}

variable "consul_token_file" {
  description = "File, on the nodes, with the node's own Consul token (driver raw_exec). Empty: consul_token_NODE of the secrets, else consul_token."
  type        = string
  default     = ""
}

variable "nomad_addr" {
  description = "Nomad, for the infrastructure check."
  type        = string
  default     = "http://nomad.service.consul:4646"
}

variable "secret_source" {
  description = "Where gateway_token, consul_token and nomad_token lie: vault or nomad (a Nomad variable). The latter two are needed only where ACLs are on."
  type        = string
  default     = "vault"

  validation {
    condition     = var.secret_source == "vault" || var.secret_source == "nomad"
    error_message = "The secret_source must be vault or nomad."
  }
}

variable "secret_path" {
  description = "Path of the secrets. Empty: kv/data/openclaw in Vault, nomad/jobs/gatemesh in Nomad."
  type        = string
  default     = ""
}

locals {
  # Each gateway has a Consul token of its own: their rules differ. Written without a line's end too many.
  consul_token_from_vault = <<-EOT
    {{ with secret "${var.secret_path != "" ? var.secret_path : "kv/data/openclaw"}" }}{{ with .Data.data -}}
    {{ with index . (printf "consul_token_%s" (env "NODE")) }}{{ . }}{{ else }}{{ with .consul_token }}{{ . }}{{ end }}{{ end -}}
    {{ end }}{{ end }}
  EOT

  consul_token_from_nomad = <<-EOT
    {{ with nomadVar "${var.secret_path != "" ? var.secret_path : "nomad/jobs/gatemesh"}" -}}
    {{ with (index . (printf "consul_token_%s" (env "NODE"))).Value }}{{ . }}{{ else }}{{ with .consul_token }}{{ . }}{{ end }}{{ end -}}
    {{ end }}
  EOT

  # An absent secret leaves its variable out: an empty token is not the same as none.
  from_vault = <<-EOT
    {{ with secret "${var.secret_path != "" ? var.secret_path : "kv/data/openclaw"}" }}{{ with .Data.data }}
    {{ with .gateway_token }}OPENCLAW_GATEWAY_TOKEN={{ . }}{{ end }}
    {{ with .nomad_token }}NOMAD_TOKEN={{ . }}{{ end }}
    {{ with index . (printf "gateway_key_%s" (env "NODE")) }}GATEMESH_GATEWAY_KEY={{ . }}{{ end }}
    {{ end }}{{ end }}
  EOT

  from_nomad = <<-EOT
    {{ with nomadVar "${var.secret_path != "" ? var.secret_path : "nomad/jobs/gatemesh"}" }}
    {{ with .gateway_token }}OPENCLAW_GATEWAY_TOKEN={{ . }}{{ end }}
    {{ with .nomad_token }}NOMAD_TOKEN={{ . }}{{ end }}
    {{ with (index . (printf "gateway_key_%s" (env "NODE"))).Value }}GATEMESH_GATEWAY_KEY={{ . }}{{ end }}
    {{ end }}
  EOT
}

job "gatemesh" {
  datacenters = var.datacenters
  type        = "system"

  constraint {
    attribute = "${node.unique.name}"
    operator  = "regexp"
    value     = "^(${join("|", var.nodes)})$"
  }

  # One node after the other: the agents of a node that restarts are somewhere else meanwhile.
  update {
    max_parallel = 1
    stagger      = "30s"
  }

  group "gateway" {
    network {
      port "http" {
        static = var.port
      }
    }

    # A node that Nomad does not hear for a while keeps its gateway: the locks in Consul
    # decide who works, whatever Nomad thinks. Without this block the gateway would be
    # restarted as soon as the node is heard again.
    disconnect {
      lost_after = "12h"
      replace    = false
      reconcile  = "keep_original"
    }

    # The plan's numbers, but not its mode "fail": a system job is not rescheduled, so a node
    # whose gateway failed four times would stay without one.
    restart {
      attempts = 3
      delay    = "15s"
      interval = "5m"
      mode     = "delay"
    }

    # In Nomad's own catalog: for "nomad job status" and for restarting a gateway that hangs.
    # In Consul's the gateway registers itself (service openclaw), because its session, and
    # so its locks, hang from that check.
    service {
      name     = "gatemesh"
      provider = "nomad"
      port     = "http"

      # /health, not /ready: a gateway that waits for Consul is healthy, and restarting it
      # would not bring Consul back.
      check {
        type     = "http"
        path     = "/health"
        interval = "10s"
        timeout  = "2s"

        check_restart {
          limit = 6
          grace = "30s"
        }
      }
    }

    task "gateway" {
      driver = var.driver

      config {
        command = var.binary
        args    = ["gateway", "--config", "${NOMAD_TASK_DIR}/openclaw.json"]
      }

      env {
        NODE             = "${node.unique.name}"
        CLUSTER_ID       = var.cluster_id
        GATEMESH_BIND    = var.bind
        CONSUL_HTTP_ADDR = var.consul_addr
        NOMAD_ADDR       = var.nomad_addr

        # A file and not a variable: it is read again when it changes, so that a token is replaced
        # without a restart. Empty where ACLs are off.
        CONSUL_HTTP_TOKEN_FILE = var.consul_token_file != "" ? var.consul_token_file : "${NOMAD_SECRETS_DIR}/consul.token"

        # Empty means unset.
        CONSUL_CACERT      = var.consul_cacert
        CONSUL_CLIENT_CERT = var.consul_client_cert
        CONSUL_CLIENT_KEY  = var.consul_client_key
      }

      # It drains and hands over within 30 s. A Nomad client cuts this to its max_kill_timeout
      # (30 s unless configured): what is not done then is found by the next owner.
      kill_signal  = "SIGTERM"
      kill_timeout = "35s"

      template {
        destination   = "local/openclaw.json"
        data          = file(var.config)
        change_mode   = "signal"
        change_signal = "SIGHUP"
      }

      dynamic "vault" {
        for_each = var.secret_source == "vault" ? ["default"] : []
        content {}
      }

      template {
        destination = "secrets/gatemesh.env"
        env         = true
        data        = var.secret_source == "vault" ? local.from_vault : local.from_nomad
      }

      # Nomad's consul block cannot make this token: its identities name the job, and the rules of
      # its gateways differ by node.
      template {
        destination = "secrets/consul.token"
        change_mode = "noop" # the gateway sees it by itself
        data        = var.secret_source == "vault" ? local.consul_token_from_vault : local.consul_token_from_nomad
      }

      resources {
        cpu    = 200 # MHz; a gateway idles at a fraction of a per cent
        memory = 256
      }
    }
  }
}
