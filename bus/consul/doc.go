// Package consul is the bus.Store on HashiCorp Consul: its KV, transactions,
// sessions and catalog. It is the only importer of Consul's API client.
//
// Reads are consistent (Consul's mode of that name): a leader that was just elected after a restart otherwise answers from
// what it has replayed so far, and one that was cut off from its state for the rest of its lease. Two reads are
// in default mode, never stale mode (measured through a follower, a stale watch wakes 50 times later): a watch that waits, because it asks for
// what is newer, and the value of a key that is written once, as long as there is one. Nothing is written on the
// strength of what a watch says alone: every write is a transaction with its conditions inside.
//
// Things of Consul that callers meet:
//
//   - Writing the value that a key already holds succeeds without changing its
//     ModifyIndex, and wakes nobody.
//   - A watch on a prefix below which there has never been a key wakes on nearly
//     every unrelated write. Keep a resident key there.
//   - Reads clean key paths ("a//b" is read as "a/b") while transactions do not, so
//     keys that would be two things are refused here before they are sent.
//   - A recursive list leaves out silently what the token may not read. Consul marks
//     such an answer, and it is refused here with bus.ErrForbidden: an empty list
//     must mean that there is nothing.
package consul
