module github.com/gatemesh/gatemesh/test/tools/nomad

go 1.26

tool github.com/hashicorp/nomad

require (
	github.com/hashicorp/nomad v1.10.5
	github.com/hashicorp/nomad/api v0.0.0-20260730080045-c3018272781e
)

replace github.com/hashicorp/hcl => github.com/hashicorp/hcl v1.0.1-nomad-1
