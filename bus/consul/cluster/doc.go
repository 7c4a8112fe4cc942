// Package cluster starts throwaway Consul servers on the loopback interface:
// the real binary, for "gatemesh demo", "gatemesh bench" and tests.
//
// The servers keep their data on disk (unless [Options.Dev]) and elect their
// leader as fast as Consul allows (raft_multiplier 1), so that one server accepts
// writes after about 2 seconds and three after about 4, and a killed leader is
// replaced in 2 to 3 seconds. Nodes are named server-1, server-2, ...
//
// What is not promised: security (ACLs and mutual TLS only when asked for, with keys on
// disk beside the data, and never among the servers themselves), a fixed address between
// runs unless [Options.Dir] is given, and, outside Linux, that the servers die when this
// process is killed with -9.
// [Cluster.Stop] ends them everywhere.
package cluster
