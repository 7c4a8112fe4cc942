// Package infra is the deterministic infrastructure check behind the
// capabilities "infra.check" and "node.report": it asks Consul, Nomad and the
// node it runs on, and says in one line whether anything is wrong. No model is
// involved and nothing is changed.
//
// # What is looked at
//
//   - Consul: the agent, the leader, the members (serf), and every check that is
//     not passing.
//   - Nomad: the leader, the client nodes, the jobs and the failed or lost
//     allocations of all namespaces the token may see.
//   - The node: load per core, memory, the disk below one path, uptime.
//
// The three parts run at the same time, each under its own deadline, and inside
// a part every question is asked on its own: one that fails never hides the
// answers of the others.
//
// # What is said
//
// [Report.Result] keeps the words of the project's plan:
//
//	all-healthy
//	alert: X failed allocations, Y unhealthy services[, more]
//	absent: no Consul or Nomad answered; node ok
//
// "more" are the troubles that the plan has no words for, always in the same
// order: failed members, failing node checks, no leader, an unreachable or
// forbidden server, an incomplete check, down nodes, dead and pending jobs, and
// the node's load, memory and disk.
//
// The two numbers are what was *seen*. A 0 from a part that could not be seen is
// never alone: an unreachable, forbidden or half-answered part is named on the
// same line, an absent one in [Report.Detail].
//
// # Absent is not healthy, and not an alert
//
// Each part has a [Status]. "absent" means that nobody asked for the server and
// nothing listens at its default address: no alert, but Detail and
// [Report.Absent] name it, and if neither Consul nor Nomad is there the result
// is "absent: ...", never "all-healthy". "unreachable" means that the server was
// configured (an address in the options or the environment), or that something
// listens at the default address, and no question was answered as it should be:
// an alert. "forbidden" means that the token does not
// show everything: an alert too, because what was not seen cannot be called
// healthy. Consul filters lists silently instead of refusing them; an answer
// that says so, or that lacks what always exists (the agent itself, the consul
// service), counts as forbidden.
//
// # What is deliberately not an alert
//
// Members that left, nodes that are ineligible or draining, and services in
// maintenance mode: an operator did that on purpose. They are listed. Failed
// allocations that Nomad has replaced, whose job was stopped, or (batch) whose
// job was registered again since, are not counted.
//
// # Limits
//
// Instances on a dead Consul node have passing checks of their own; the dead
// node appears as a failed member. A Nomad token that sees some namespaces and
// not others cannot be told from one that sees all. Memory is the machine's, not
// the cgroup's.
//
// # Secrets and sizes
//
// Tokens, passwords and credentials in addresses never reach a report or an
// error, even when a server echoes them. Check output is never copied. Lists
// hold at most [Options.MaxNames] names, each of at most 100 characters; a
// server's answer is read up to 16 MiB; redirects are not followed, because a
// token would follow them.
package infra
